//! The obligations of every provider to its operators, whichever of its calls fails, each by name: the same end as if
//! nothing had failed, nothing twice, nothing left over.
//!
//! A provider joins with a [`World`] of its own, one line at the end of this file, and one in `survival`.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
#[cfg(any(feature = "azure", feature = "gcp"))]
mod clean_up;
#[cfg(feature = "container")]
mod container;
mod faults;
#[cfg(feature = "gcp")]
mod gcp;
mod load;
#[cfg(feature = "local")]
mod local;
#[cfg(all(
    feature = "aws",
    feature = "azure",
    feature = "gcp",
    feature = "container",
    feature = "local"
))]
mod soak;
mod survival;
mod world;

use std::collections::BTreeSet;

use crate::faults::{Kind, survives};
use crate::world::{Found, World, assert_known, publish};

/// The names say all there is: each call has one, and each name is that of a call. A second run changes nothing.
async fn names_are_complete<W: World>() {
    let world = W::start().await;
    publish(&world, "first").await;
    assert_known(&world, "first");
    let mut made: BTreeSet<_> = world.front().calls().into_keys().collect();
    made.retain(|name| !W::SELDOM.contains(name));
    let usual = W::CALLS.iter().filter(|call| call.after.is_none());
    assert_eq!(made, usual.map(|call| call.name).collect());
    let (calls, found) = (world.front().calls(), world.found().await);
    publish(&world, "second").await;
    for call in W::CALLS.iter().filter(|call| call.changes) {
        assert_eq!(
            world.front().calls().get(call.name),
            calls.get(call.name),
            "{}",
            call.name
        );
    }
    assert_eq!(world.found().await, found);
}

macro_rules! contract {
    ($provider:ident, $world:ty) => {
        mod $provider {
            use super::*;

            /// The end state when nothing fails.
            static EXPECTED: tokio::sync::OnceCell<Found> = tokio::sync::OnceCell::const_new();

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_has_a_name_and_a_repeat_changes_nothing() {
                names_are_complete::<$world>().await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_fail_once() {
                survives::<$world>(&EXPECTED, Kind::Fails).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_be_throttled() {
                survives::<$world>(&EXPECTED, Kind::IsThrottled).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_answer_may_be_lost() {
                survives::<$world>(&EXPECTED, Kind::LosesItsAnswer).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_call_may_hang() {
                survives::<$world>(&EXPECTED, Kind::OneHangs).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "takes minutes, of an upload half an hour: what fails ten times is waited for longer and longer"]
            async fn every_call_may_fail_ten_times() {
                survives::<$world>(&EXPECTED, Kind::FailsTenTimes).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "takes two minutes: a call that hangs is waited for half a minute, or a whole one"]
            async fn every_call_may_hang() {
                survives::<$world>(&EXPECTED, Kind::Hangs).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_be_the_last_of_a_crash() {
                survives::<$world>(&EXPECTED, Kind::Crash).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_be_the_last_before_a_signal() {
                survives::<$world>(&EXPECTED, Kind::Signal).await;
            }
        }
    };
}

mod contract {
    use super::*;

    #[cfg(feature = "aws")]
    contract!(aws_import, crate::aws::ByImport);
    #[cfg(feature = "aws")]
    contract!(aws_blocks, crate::aws::ByBlocks);
    #[cfg(feature = "azure")]
    contract!(azure, crate::azure::Gallery);
    #[cfg(feature = "gcp")]
    contract!(gcp, crate::gcp::Project);
    #[cfg(feature = "azure")]
    contract!(azure_clean_up, crate::clean_up::CleanUp<crate::azure::Gallery>);
    #[cfg(feature = "gcp")]
    contract!(gcp_clean_up, crate::clean_up::CleanUp<crate::gcp::Project>);
    #[cfg(feature = "container")]
    contract!(container, crate::container::Registries);
    #[cfg(feature = "local")]
    contract!(local, crate::local::Folder);
}
