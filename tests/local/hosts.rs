//! Composes on hosts that were not agreed upon, and files that send readers there.

use std::fs;

use cloud_image_uploader_test_support::files::{Fault, Files};

use crate::{Desk, assert_complete, assert_no_leftovers, compose, disk_row};

/// Composes may be on 127.0.0.1, and nowhere else.
fn restricted() -> Desk {
    let desk = Desk::new();
    let text = fs::read_to_string(desk.conf()).unwrap();
    let key = "[consumer_config]\nallowed_compose_hosts = [\"127.0.0.1\"]\n";
    fs::write(desk.conf(), text.replace("[consumer_config]\n", key)).unwrap();
    compose().write(&desk.compose()).unwrap();
    desk
}

/// The same server by another name.
fn elsewhere(files: &Files, path: &str) -> String {
    files.url(path).replace("127.0.0.1", "localhost")
}

#[tokio::test]
async fn another_host_is_not_even_asked() {
    let desk = restricted();
    let files = Files::start(desk.folder.path()).await.unwrap();
    let url = elsewhere(&files, "/compose");
    let message = desk.folder.path().join("message.json");
    fs::write(&message, compose().message(&url).to_string()).unwrap();
    for verb in ["plan", "reconsume"] {
        for place in [["--compose", &url], ["--file", message.to_str().unwrap()]] {
            let exit = desk.run(&[verb, place[0], place[1]]).await;
            assert_eq!(exit.code, Some(1), "{verb} {place:?}: {}", exit.stderr);
            let said = "read from localhost: it is not one of allowed_compose_hosts";
            assert!(exit.stderr.contains(said), "{verb} {place:?}: {}", exit.stderr);
        }
    }
    assert_eq!(files.requests(), []);
    let exit = desk.run(&["reconsume", "--compose", &files.url("/compose")]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
}

#[tokio::test]
async fn a_redirect_to_another_host_is_not_followed() {
    let image = format!("/compose/{}", disk_row("x86_64").path());
    for (path, said) in [
        ("/compose/metadata/images.json", "read the compose's metadata"),
        (&image, "Disk.x86_64.raw: read"),
    ] {
        let desk = restricted();
        let files = Files::start(desk.folder.path()).await.unwrap();
        files.fault(path, Fault::Redirect(elsewhere(&files, path)), 1);
        let exit = desk.run(&["reconsume", "--compose", &files.url("/compose")]).await;
        assert_eq!(exit.code, Some(1), "{path}: {}", exit.stderr);
        for said in [said, "read from localhost: it is not one of allowed_compose_hosts"] {
            assert!(exit.stderr.contains(said), "{path}: {}", exit.stderr);
        }
        assert_eq!(files.requests_for(path).len(), 1, "{path}");
        assert_no_leftovers(&desk);
    }
}

/// Redirects on the same host, or without a restriction: a compose's statements about itself are checked all the same.
#[tokio::test]
async fn other_redirects_are_followed() {
    for desk in [restricted(), Desk::new()] {
        compose().write(&desk.compose()).unwrap();
        let files = Files::start(desk.folder.path()).await.unwrap();
        let unrestricted = !fs::read_to_string(desk.conf())
            .unwrap()
            .contains("allowed_compose_hosts");
        for path in [
            "/compose/metadata/images.json",
            &format!("/compose/{}", disk_row("x86_64").path()),
        ] {
            let url = if unrestricted {
                elsewhere(&files, path)
            } else {
                files.url(path)
            };
            files.fault(path, Fault::Redirect(url), 1);
        }
        let exit = desk.run(&["reconsume", "--compose", &files.url("/compose")]).await;
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        assert_complete(&desk);
        assert!(files.faults_met());
    }
}
