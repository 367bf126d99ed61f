//! A daemon of each provider for as long as is asked for, with faults at random all the time; then calm, and a look at what
//! came of it. `tests/soak` starts this.
//!
//! One broker, behind a proxy that loses frames, stops and dies; the host of the composes breaks off; daemons are killed, and
//! asked to stop; and the calls of each provider fail in the ways that the rest of these tests try one at a time. In the end
//! must be there what is there when the same composes are published one after another and nothing fails.

mod daemon;
mod stage;

use std::collections::BTreeMap;
use std::time::Duration;

use cloud_image_uploader_test_support::survival::leave;
use serde_json::json;

use self::daemon::{Suffered, suffer};
use self::stage::Stage;
use crate::local::Folder;
use crate::world::World;

/// How often what happened at a place, by kind of fault.
type Faults = BTreeMap<&'static str, usize>;

/// A sequence that looks random and is the same for a seed.
struct Random(u64);

impl Random {
    /// A sequence of this place's own.
    fn new(seed: u64, place: &str) -> Self {
        let mix = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(place.bytes().fold(seed, mix))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// Until the next fault.
    async fn pause(&mut self) {
        let pause = Duration::from_millis(300 + self.below(2000));
        tokio::time::sleep(pause).await;
    }
}

/// A number that was asked for in the environment.
fn asked(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}")))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: see tests/soak"]
async fn what_is_there_in_the_end_is_what_should_be() {
    let time = Duration::from_secs(asked("CIU_SOAK_SECONDS").unwrap_or(180));
    let seed = asked("CIU_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{} s of faults with seed {seed}", time.as_secs());
    // Where the composes are, too.
    let local = Folder::start().await;
    let stage = Stage::set(&local, time, seed).await;
    let (blocks, import, azure, gcp, container) = tokio::join!(
        crate::aws::ByBlocks::start(),
        crate::aws::ByImport::start(),
        crate::azure::Gallery::start(),
        crate::gcp::Project::start(),
        crate::container::Registries::start(),
    );
    let (of_all, blocks, import, azure, gcp, container, local) = tokio::join!(
        stage.play(),
        suffer(&blocks, &stage),
        suffer(&import, &stage),
        suffer(&azure, &stage),
        suffer(&gcp, &stage),
        suffer(&container, &stage),
        suffer(&local, &stage),
    );
    report(&stage, &of_all, &[blocks, import, azure, gcp, container, local]);
}

/// Prints what happened, and fails if anything came to harm.
fn report(stage: &Stage<'_>, of_all: &Faults, providers: &[Suffered]) {
    println!("\nfaults of all: {of_all:?}");
    let total = |faults: &Faults| faults.values().sum::<usize>();
    for Suffered { name, faults, outcome } in providers {
        println!("{name}: {} faults: {faults:?}", total(faults));
        let numbers = json!({
            "provider": name, "seconds": stage.seconds(), "composes": stage.composes().len(),
            "own": total(faults), "shared": total(of_all),
            "lost": outcome.lost.len(), "duplicated": outcome.duplicated.len(), "leaked": outcome.leaked.len(),
        });
        leave(env!("CARGO_TARGET_TMPDIR"), &format!("soak-{name}"), &numbers).unwrap();
    }
    let harms: Vec<_> = providers
        .iter()
        .filter_map(|provider| provider.outcome.harm())
        .collect();
    assert!(harms.is_empty(), "with seed {}:\n{}", stage.seed(), harms.join("\n"));
    let (announced, sent) = stage.announcements();
    println!(
        "{} composes, {announced} announcements sent {sent} times under the same ids; lost 0, duplicated 0, leaked 0",
        stage.composes().len()
    );
}
