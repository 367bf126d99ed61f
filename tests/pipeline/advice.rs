//! An operator's likeliest mistakes with the broker and in the file: each text says what, where, why, and what to do.

use cloud_image_uploader_test_support::advice::Advice;
use cloud_image_uploader_test_support::certs::Authority;
use cloud_image_uploader_test_support::program::Exit;
use cloud_image_uploader_test_support::rabbit::DAEMON;

use crate::world::*;

async fn run(config: &str, command: &[&str]) -> Exit {
    World::program(config).args(command).run(LONG).await.unwrap()
}

#[tokio::test]
async fn mistakes_are_reported_with_their_remedy() {
    let mut advice = Advice::default();
    let mut world = World::new().await;
    let folder = world.folder.path().to_owned();
    let good = world.config(&World::broker(world.rabbit.plain_port));
    let secured = format!("amqp_url = {:?}\n", world.rabbit.tls_url(DAEMON));
    let certified = format!("{secured}{}", world.rabbit.tls_table(DAEMON, &folder).unwrap());

    let typing = good
        .replace("prefetch_count", "prefetch_cuont")
        .replace("directory = ", "folder = ");
    advice.add("unknown keys", &run(&typing, &["check", "--offline"]).await);
    let keyless: String = certified
        .lines()
        .filter(|line| !line.starts_with("keyfile"))
        .collect::<Vec<_>>()
        .join("\n");
    let exit = run(&world.config(&keyless), &["check", "--offline"]).await;
    advice.add("a certificate without its key", &exit);
    let absent = certified.replace(&format!("{DAEMON}.key"), "absent.key");
    let exit = run(&world.config(&absent), &["check", "--offline"]).await;
    advice.add("a key that is not there", &exit);

    let absent = good.replace(QUEUE, "cloud-image-uploader-absent");
    advice.add("a queue that is not there: check", &run(&absent, &["check"]).await);
    advice.add("a queue that is not there: consume", &run(&absent, &["consume"]).await);
    let created = absent.replace("passive_declares = true", "passive_declares = false");
    advice.add("a queue that may not be created", &run(&created, &["consume"]).await);
    let unbound = good.replace("exchange = \"amq.topic\"", "exchange = \"amq.topics\"");
    advice.add("a queue that cannot be bound", &run(&unbound, &["consume"]).await);
    let wrong = good.replace("test-password", "guess-me");
    advice.add("a wrong password", &run(&wrong, &["consume"]).await);
    let strangers = world.config(&certified.replace("ca.crt", "stranger.crt"));
    std::fs::write(folder.join("stranger.crt"), Authority::new().unwrap().pem()).unwrap();
    advice.add(
        "a broker whose authority is not trusted",
        &run(&strangers, &["consume"]).await,
    );

    let message = folder.join("message.json");
    std::fs::write(&message, world.message().to_string()).unwrap();
    let forbidden = good.replace("org.fedoraproject.prod\"", "org.fedoraproject.dev\"");
    let only = ["--only", "*x86_64*"];
    let exit = run(
        &forbidden,
        &[&["reconsume", "--file", message.to_str().unwrap()], &only[..]].concat(),
    )
    .await;
    advice.add("a topic that may not be published", &exit);

    world.rabbit.stop().await.unwrap();
    advice.add("a broker that is not there", &run(&good, &["check"]).await);
    world.rabbit.let_read(false).unwrap();
    world.rabbit.start_again().await.unwrap();
    advice.add("a queue that may not be read", &run(&good, &["consume"]).await);

    insta::with_settings!({
        snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!("advice-broker", advice.document());
    });
}
