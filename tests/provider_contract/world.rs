//! A provider's servers, its calls by name, and the program that publishes to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use cloud_image_uploader_test_support::archive::{self, message};
use cloud_image_uploader_test_support::front::Front;
use cloud_image_uploader_test_support::program::{Exit, Program};
use jiff::{Span, Timestamp, tz::TimeZone};

/// Far more than anything here takes, but for what waits for time-outs.
pub const LONG: Duration = Duration::from_secs(120);
/// Ten failures of an upload, which only a new round repeats, take a quarter of an hour and more of waiting.
pub const PATIENT: Duration = Duration::from_secs(40 * 60);

/// Everything that a reader finds, by name.
pub type Found = BTreeMap<String, String>;

/// A call of a provider.
pub struct Call {
    pub name: &'static str,
    /// Whether it changes anything.
    pub changes: bool,
    /// The event that brings this call about; without one it is made in any case.
    pub after: Option<After>,
    /// Whether it only removes something. After a minute that is given up with a warning: buckets have rules of their own
    /// for it, and the next clean-up comes.
    pub tidies: bool,
}

/// An event that makes a call necessary that is not made when all goes well.
#[derive(Clone, Copy)]
pub enum After {
    /// The answer to the call of this name was lost.
    Lost(&'static str),
    /// A process was killed when the server had received the call of this name.
    Crash(&'static str),
}

pub const fn reads(name: &'static str) -> Call {
    Call {
        name,
        changes: false,
        after: None,
        tidies: false,
    }
}

pub const fn changes(name: &'static str) -> Call {
    Call {
        name,
        changes: true,
        after: None,
        tidies: false,
    }
}

impl Call {
    pub const fn tidies(self) -> Self {
        Self { tidies: true, ..self }
    }

    pub const fn after(self, what: After) -> Self {
        Self {
            after: Some(what),
            ..self
        }
    }
}

/// A provider's servers, and a compose to be published there.
pub trait World: Sized {
    /// Its column's title in `docs/reliability.md`.
    const NAME: &'static str;
    /// Every call that publishing takes. The front's namer knows just these.
    const CALLS: &'static [Call];
    /// Those that are made only when something takes long. They come when time has passed, so nothing is done to them.
    const SELDOM: &'static [&'static str] = &[];
    /// Set where composes older than the published one are left out.
    const SKIPS_OLDER: bool = false;

    async fn start() -> Self;

    /// The front that the calls go through.
    fn front(&self) -> &Front;

    /// The sections below `[consumer_config]`; with `announces` they have publications announced.
    fn sections(&self, announces: bool) -> String;

    /// Gives a program what else it needs to come here, through the front.
    fn lead(&self, program: Program) -> Program;

    /// The compose to be published, and where it is.
    async fn compose(&self) -> (&'static str, String);

    /// A fresh process that publishes the compose.
    async fn program(&self) -> Program {
        let (compose, location) = self.compose().await;
        reconsume(self, compose, &location)
    }

    /// With nothing in it that differs from one sound run to another; see [`put`].
    async fn found(&self) -> Found;
}

/// Marks a name that was taken already, so the thing is there twice.
pub const AGAIN: &str = " again";

/// Adds what was found.
pub fn put(found: &mut Found, name: String, value: String) {
    let mut name = name;
    while found.contains_key(&name) {
        name += AGAIN;
    }
    found.insert(name, value);
}

/// `[consumer_config]`, with these keys, and these sections below.
pub fn config(keys: &str, sections: &str) -> String {
    let data = release_data().display();
    format!(
        "[consumer_config]\nrelease_metadata_url = \"{data}/release.json\"\nbodhi_url = \"{data}\"\n{keys}\n{sections}"
    )
}

/// A process that publishes a compose, as if a message had announced it.
pub fn reconsume<W: World>(world: &W, compose: &str, location: &str) -> Program {
    let program = configured(world, &config("", &world.sections(false)));
    let file = program.folder().join("message.json");
    fs::write(&file, message(compose, None, location).to_string()).unwrap();
    program.args(["reconsume", "--file"]).arg(file)
}

/// The program with this configuration, yet without a command.
pub fn configured<W: World>(world: &W, config: &str) -> Program {
    let program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader")).unwrap();
    world.lead(program.config(config).unwrap())
}

/// A folder of this test's own, empty.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("contract-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Writes a compose of one image into a folder of this test's own.
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
pub fn write(name: &str, compose: &str, image: archive::Row) -> PathBuf {
    let folder = folder(name);
    let builder = archive::ComposeBuilder::new(compose, None);
    builder.image(image).write(&folder).unwrap();
    folder
}

/// Releases whose end is always ahead: EC2 takes no date of the past.
fn release_data() -> &'static Path {
    static DATA: OnceLock<PathBuf> = OnceLock::new();
    DATA.get_or_init(|| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/release-data");
        let data = folder("release-data");
        fs::create_dir(data.join("releases")).unwrap();
        fs::copy(fixtures.join("release.json"), data.join("release.json")).unwrap();
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let end = today.saturating_add(Span::new().days(300));
        for number in ["42", "43"] {
            let release =
                serde_json::json!({"name": format!("F{number}"), "version": number, "state": "current", "eol": end.to_string()});
            fs::write(data.join(format!("releases/F{number}")), release.to_string()).unwrap();
        }
        data
    })
}

pub async fn publish<W: World>(world: &W, what: &str) -> Exit {
    let exit = world.program().await.run(PATIENT).await.unwrap();
    assert_published(&exit, what);
    exit
}

#[track_caller]
pub fn assert_published(exit: &Exit, what: &str) {
    assert_eq!(exit.code, Some(0), "{what}: {}{}", exit.stdout, exit.stderr);
}

/// Every call was one of those by name, also of those that only a failure brings about.
#[track_caller]
pub fn assert_known<W: World>(world: &W, what: &str) {
    assert_eq!(world.front().unknown(), [""; 0], "{what}");
    for name in world.front().calls().into_keys() {
        let known = W::SELDOM.contains(&name) || W::CALLS.iter().any(|call| call.name == name);
        assert!(known, "{what}: {name} is not listed");
    }
}
