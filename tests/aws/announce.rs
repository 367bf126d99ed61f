//! From a message on the broker to the announcement: as the previous service sent it, except for the ids.

use std::time::Duration;

use cloud_image_uploader_test_support::amqp::{Admin, Received, Spy};
use cloud_image_uploader_test_support::aws::{Effect, Fault};
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use cloud_image_uploader_test_support::program::Running;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use serde_json::{Value, json};

use crate::world::*;

const QUEUE: &str = "cloud-image-uploader-aws";
const NOTICES: &str = "org.fedoraproject.prod.fedora_image_uploader.#";

fn config(world: &World, rabbit: &Rabbit) -> String {
    let broker = format!(
        "amqp_url = {:?}\npassive_declares = true\ntopic_prefix = \"org.fedoraproject.prod\"\n{}\n[qos]\nprefetch_count = 25\n",
        rabbit::url("amqp", DAEMON, rabbit.plain_port),
        rabbit::consuming(QUEUE),
    );
    world.config_with(&broker, "")
}

/// A real announcement of the previous service, compared field by field.
#[tokio::test(flavor = "multi_thread")]
async fn the_announcement_is_that_of_the_previous_service() {
    let file = "messages/published/aws-Fedora-42-20250312.0-x86_64.datagrepper-raw.json";
    let real: Value = serde_json::from_slice(&std::fs::read(fixtures().join(file)).unwrap()).unwrap();
    let real = &real["raw_messages"][0];
    let regions = real["msg"]["regions"].as_object().unwrap();
    let regions: Vec<&str> = regions.keys().map(String::as_str).collect();
    let world = World::new(&regions, Method::DirectEverywhere).await;
    world.write("Fedora-42-20250312.0", Some("Beta-1.4"));
    let rabbit = Rabbit::start(Options::default()).await.unwrap();
    let admin = rabbit.admin().await.unwrap();
    let mut spy = admin.spy(NOTICES).await.unwrap();
    let config = config(&world, &rabbit);
    let mut daemon = world.program_with(&config, &["consume"]).start().unwrap();
    daemon.wait_for_log("consuming", LONG).await.unwrap();
    let mut message: Value = serde_json::from_slice(&std::fs::read(world.message()).unwrap()).unwrap();
    let files = cloud_image_uploader_test_support::files::Files::start(world.folder.path())
        .await
        .unwrap();
    message["body"]["location"] = json!(files.url("/compose"));
    let client = FedoraMessaging::new().unwrap();
    client.publish(&rabbit, &[message]).await.unwrap();
    let mut notices: Vec<Received> = vec![spy.next(LONG).await.unwrap(), spy.next(LONG).await.unwrap()];
    notices.sort_by(|a, b| a.routing_key.cmp(&b.routing_key));

    let notice = &notices[1];
    assert_eq!(notice.routing_key, real["topic"].as_str().unwrap());
    let mut body = notice.json().unwrap();
    // In configured order, also in the text.
    let text = String::from_utf8(notice.body.clone()).unwrap();
    let positions: Vec<_> = regions
        .iter()
        .map(|region| text.find(&format!("\"{region}\"")).unwrap())
        .collect();
    assert!(positions.is_sorted(), "{text}");
    for (region, id) in body["regions"].as_object_mut().unwrap() {
        let image = &world
            .cloud
            .images(region)
            .into_iter()
            .find(|image| image.id == *id)
            .unwrap();
        assert_eq!(json!(image.name), real["msg"]["image_name"]);
        assert!(image.permissions.public);
        *id = real["msg"]["regions"][region].clone();
    }
    assert_eq!(body, real["msg"]);
    for header in [
        "fedora_messaging_schema",
        "fedora_messaging_schema_package",
        "fedora_messaging_severity",
    ] {
        assert_eq!(notice.headers()[header], real["headers"][header], "{header}");
    }
    let serialized: Vec<Value> = notices.iter().map(|notice| notice.serialized().unwrap()).collect();
    assert_eq!(client.validate(&serialized).await.unwrap().len(), 2);

    // `plan` prints the same bodies.
    let message = world.message();
    let arguments = ["plan", "--file", message.to_str().unwrap(), "--format", "json"];
    let planned = world.program_with(&config, &arguments).run(LONG).await.unwrap();
    let mut planned: Value = serde_json::from_str(&planned.stdout).unwrap();
    for (entry, notice) in planned["publish"].as_array_mut().unwrap().iter_mut().zip(&notices) {
        let body = notice.json().unwrap();
        for (region, id) in entry["body"]["regions"].as_object_mut().unwrap() {
            assert_eq!(*id, Value::Null);
            *id = body["regions"][region].clone();
        }
        assert_eq!(entry["body"], body);
        assert!(notice.routing_key.ends_with(entry["topic"].as_str().unwrap()));
    }
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0));
}

const ALL: [&str; 3] = ["us-east-1", "eu-west-1", "ap-south-1"];

/// A compose on its way to all regions, of which some never finish by themselves.
struct Slow {
    world: World,
    program: Running,
    spy: Spy,
    _admin: Admin,
    _rabbit: Rabbit,
}

impl Slow {
    async fn start(regions: &[&str]) -> Self {
        let mut world = World::small(&ALL, Method::Direct).await;
        world.service = "give_up_after = \"120s\"\nlocation_patience = \"2s\"\n".to_owned();
        let rabbit = Rabbit::start(Options::default()).await.unwrap();
        let admin = rabbit.admin().await.unwrap();
        let spy = admin.spy(NOTICES).await.unwrap();
        for region in regions {
            let slow = Duration::from_secs(3600);
            world.cloud.settings().copy_by_region.insert((*region).into(), slow);
        }
        let message = world.message();
        let arguments = ["reconsume", "--file", message.to_str().unwrap()];
        let program = world.program_with(&config(&world, &rabbit), &arguments);
        Self {
            program: program.start().unwrap(),
            world,
            spy,
            _admin: admin,
            _rabbit: rabbit,
        }
    }

    /// They take no longer than the others.
    fn hurry(&self) {
        self.world.cloud.settings().copy_by_region.clear();
    }

    /// The next announcement, and its regions.
    async fn announced(&mut self) -> (Received, Vec<String>) {
        let notice = self.spy.next(LONG).await.unwrap();
        let body = notice.json().unwrap();
        let regions = body["regions"].as_object().unwrap().keys().cloned().collect();
        (notice, regions)
    }

    async fn end(self, code: i32) {
        let exit = self.program.wait(LONG).await.unwrap();
        assert_eq!(exit.code, Some(code), "{}", exit.stderr);
    }
}

/// The others are announced when the patience is over; the repair is announced with the full list.
#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_region_is_announced_with_the_others() {
    let mut slow = Slow::start(&["ap-south-1"]).await;
    let (first, regions) = slow.announced().await;
    assert_eq!(regions, ["us-east-1", "eu-west-1"]);
    slow.hurry();
    let (second, regions) = slow.announced().await;
    assert_eq!(regions, ALL);
    assert_ne!(first.properties.message_id(), second.properties.message_id());
    slow.end(0).await;
}

/// One region that is ready waits for many that are not as long as for one.
#[tokio::test(flavor = "multi_thread")]
async fn slow_regions_delay_the_announcement_by_the_patience_only() {
    let mut slow = Slow::start(&["eu-west-1", "ap-south-1"]).await;
    assert_eq!(slow.announced().await.1, ["us-east-1"]);
    assert!(slow.world.image("us-east-1", "x86_64").permissions.public);
    slow.hurry();
    while slow.announced().await.1 != ALL {}
    slow.end(0).await;
}

/// A region that is live and cannot be looked at later is announced with the others all the same.
#[tokio::test(flavor = "multi_thread")]
async fn no_later_announcement_lacks_what_is_live() {
    let mut slow = Slow::start(&["ap-south-1"]).await;
    assert_eq!(slow.announced().await.1, ["us-east-1", "eu-west-1"]);
    let forbidden = Effect::Refuse {
        status: 403,
        code: "UnauthorizedOperation".into(),
        message: "You are not authorized to perform this operation.".into(),
    };
    let look = Fault::on("DescribeImages", forbidden).region("eu-west-1");
    slow.world.cloud.fault(look);
    slow.program
        .wait_for_log("in eu-west-1: AWS answered", LONG)
        .await
        .unwrap();
    slow.hurry();
    assert_eq!(slow.announced().await.1, ALL);
    slow.end(1).await;
}
