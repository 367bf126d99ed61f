//! The retention policy by itself, where something has to go.

use cloud_image_uploader_test_support::front::Front;
use cloud_image_uploader_test_support::program::Program;
use serde_json::{Value, json};

use crate::world::{Call, Found, World, changes, config, configured, reads};

const OLD: &str = "2020-01-01T00:00:00Z";

/// A world in which time goes by.
pub trait Ages: World {
    /// Its column's title in `docs/reliability.md`.
    const NAME: &'static str;
    /// Every call that the clean-up takes. A call that fails for long is left to the next run, and the command
    /// says so.
    const CALLS: &'static [Call];

    /// Puts things there as if they had been made long ago, some of them due.
    fn age(&self);
}

/// The same with a process that does what is due.
pub struct CleanUp<W>(W);

impl<W: Ages> World for CleanUp<W> {
    const NAME: &'static str = <W as Ages>::NAME;
    const CALLS: &'static [Call] = <W as Ages>::CALLS;
    const SELDOM: &'static [&'static str] = W::SELDOM;

    async fn start() -> Self {
        let world = W::start().await;
        world.age();
        Self(world)
    }

    fn front(&self) -> &Front {
        self.0.front()
    }

    fn sections(&self, announces: bool) -> String {
        self.0.sections(announces)
    }

    fn lead(&self, program: Program) -> Program {
        self.0.lead(program)
    }

    async fn compose(&self) -> (&'static str, String) {
        self.0.compose().await
    }

    async fn program(&self) -> Program {
        configured(self, &config("", &self.sections(false))).arg("clean-up")
    }

    async fn found(&self) -> Found {
        self.0.found().await
    }
}

/// A definition with three versions: two of them past their end of life, one of these with another owner.
#[cfg(feature = "azure")]
impl Ages for crate::azure::Gallery {
    const NAME: &'static str = "azure, clean-up";
    const CALLS: &'static [Call] = &[
        reads("get a token").tidies(),
        reads("look at the gallery").tidies(),
        reads("list definitions").tidies(),
        reads("list versions").tidies(),
        reads("look at the version").tidies(),
        changes("delete the version").tidies(),
        reads("follow an operation").tidies(),
    ];

    fn age(&self) {
        use crate::azure::GALLERY;

        const DEFINITION: &str = "Fedora-Cloud-41-x64";
        self.azure.add_gallery(GALLERY, "eastus");
        let properties = json!({
            "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2", "architecture": "x64",
            "identifier": {"publisher": "Fedora", "offer": "Cloud", "sku": DEFINITION},
        });
        self.azure.add_definition(GALLERY, DEFINITION, properties);
        for (name, owner, end) in [
            ("41.20250101.0", "cloud-image-uploader", OLD),
            ("41.20250102.0", "CoreOS", OLD),
            ("41.20250103.0", "cloud-image-uploader", "2099-01-01T00:00:00Z"),
        ] {
            let tags = json!({"owner": owner, "compose-id": "Fedora-Cloud-41-20250101.0"});
            let profile = json!({"targetRegions": [{"name": "eastus"}], "endOfLifeDate": end});
            self.azure.add_version(GALLERY, DEFINITION, name, tags, profile);
        }
    }
}

/// A family whose head is due to be followed by a newer image, and an image that was deprecated long ago.
#[cfg(feature = "gcp")]
impl Ages for crate::gcp::Project {
    const NAME: &'static str = "gcp, clean-up";
    const CALLS: &'static [Call] = &[
        reads("get a token").tidies(),
        reads("images.list").tidies(),
        reads("images.get").tidies(),
        changes("images.setLabels").tidies(),
        changes("images.deprecate").tidies(),
        changes("images.delete").tidies(),
        reads("globalOperations.get").tidies(),
    ];

    fn age(&self) {
        let deprecated = json!({"state": "DEPRECATED", "deprecated": OLD});
        for (day, deprecated) in [(1, deprecated.clone()), (2, Value::Null), (3, deprecated)] {
            let compose = format!("fedora-cloud-43-2020010{day}");
            let fields = json!({
                "family": "fedora-cloud-43-x86-64", "creationTimestamp": format!("2020-01-0{day}T00:00:00Z"),
                "deprecated": deprecated,
                "labels": {"owner": "cloud-image-uploader", "compose-id": format!("{compose}_0"), "stage": "updates"},
            });
            self.cloud.put_image(&format!("{compose}-0-x86-64"), fields);
        }
    }
}
