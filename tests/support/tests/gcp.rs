//! Google's own client finds in the fake what Google's reference promises.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use anyhow::Result;
use cloud_image_uploader_test_support::gcp::{BUCKET, Cloud, Emulator, Fault, PROJECT};
use serde_json::{Value, json};

const DRIVE: &str = include_str!("../src/gcp/drive.py");

fn sample() -> Result<Vec<u8>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/sample/compose/Cloud/x86_64/images");
    Ok(fs::read(fixtures.join("Fedora-Cloud-Base-GCE-43-1.7.x86_64.tar.gz"))?)
}

fn source(object: &str) -> String {
    format!("https://storage.googleapis.com/{BUCKET}/{object}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vendor_s_client_is_content() -> Result<()> {
    let cloud = Cloud::start().await?;
    cloud.put_object("good.tar.gz", sample()?, &[]).await?;
    cloud.put_object("bad.tar.gz", b"no archive".to_vec(), &[]).await?;
    cloud.set_delay(Duration::from_millis(300));
    cloud.take_permission("compute.images.delete");
    let host = cloud.compute_url();
    let (good, bad) = (source("good.tar.gz"), source("bad.tar.gz"));
    let arguments = [host.trim_start_matches("http://"), PROJECT, &good, &bad];
    cloud.python("drive.py", DRIVE, &arguments).await?;
    assert!(cloud.count("token") > 0, "its token came from the endpoint");
    // It is the vendor's client, so its calls are right; a call that is not would be reported.
    cloud.validate_calls().await?;
    let described = cloud.describe(&["f"]).await?;
    assert_eq!(described["families"]["f"], "first");
    let heads = ["second", "first", "second", "first"].map(|name| Some(name.to_owned()));
    assert_eq!(cloud.heads("f"), heads);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_the_description_forbids_are_told() -> Result<()> {
    let cloud = Cloud::start().await?;
    let http = reqwest::Client::new();
    for (body, expected) in [
        (json!({"name": "a", "archtecture": "X86_64"}), "archtecture"),
        (json!({"name": "a", "architecture": "AARCH64"}), "AARCH64"),
        (json!({"name": "a", "labels": ["x"]}), "labels"),
    ] {
        let url = format!(
            "{}/compute/v1/projects/{PROJECT}/global/images?requestid=1",
            cloud.compute_url()
        );
        let answer = http.post(url).json(&body).send().await?;
        assert_eq!(answer.status(), 401, "it has no token either");
        let error = format!("{:#}", cloud.validate_calls().await.unwrap_err());
        assert!(
            error.contains(expected) && error.contains("unknown parameter requestid"),
            "{error}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_happen_as_often_as_they_should() -> Result<()> {
    let cloud = Cloud::start().await?;
    let http = reqwest::Client::new();
    let token = token(&cloud).await?;
    let get = async || {
        let url = format!("{}/compute/v1/projects/{PROJECT}/global/images", cloud.compute_url());
        http.get(url).bearer_auth(&token).send().await
    };
    cloud.fault("images.list", Fault::unavailable(), 2);
    cloud.fault("images.list", Fault::throttled(), 1);
    cloud.fault("images.list", Fault::LostAnswer, 1);
    assert_eq!(get().await?.status(), 503);
    assert_eq!(get().await?.status(), 503);
    assert_eq!(
        get().await?.json::<Value>().await?["error"]["errors"][0]["reason"],
        "rateLimitExceeded"
    );
    let broken = async { get().await?.bytes().await };
    assert!(broken.await.is_err(), "the connection breaks");
    assert!(cloud.faults_met());
    assert_eq!(get().await?.status(), 200);
    cloud.wait_for_call("images.list", 2).await?;
    Ok(())
}

/// Both emulators take an upload in pieces; each of them can do what the other cannot.
#[tokio::test(flavor = "multi_thread")]
async fn buckets_take_uploads_in_pieces() -> Result<()> {
    for emulator in [Emulator::FakeGcsServer, Emulator::GcpStorageEmulator] {
        let cloud = Cloud::with(emulator).await?;
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let token = token(&cloud).await?;
        let begin = async || {
            let url = format!("{}/upload/storage/v1/b/{BUCKET}/o", cloud.storage_url());
            let url = format!("{url}?uploadType=resumable&name=x&ifGenerationMatch=0");
            let body = json!({"name": "x", "metadata": {"a": "b"}});
            http.post(url).bearer_auth(&token).json(&body).send().await
        };
        let session = begin().await?.headers()["location"].to_str()?.to_owned();
        let other = begin().await?.headers()["location"].to_str()?.to_owned();
        assert!(session.starts_with(&cloud.storage_url()), "{session}");
        let put = async |range: &str, bytes: Vec<u8>| {
            let put = http.put(&session).bearer_auth(&token).header("content-range", range);
            put.body(bytes).send().await
        };
        let piece = 256 << 10;
        assert_eq!(put("bytes 0-99/*", vec![1; 100]).await?.status(), 400, "no multiple");
        assert_eq!(put("bytes 0-262143/*", vec![1; piece]).await?.status(), 308);
        let object: Value = put("bytes 262144-262243/262244", vec![2; 100]).await?.json().await?;
        assert_eq!(
            (&object["size"], &object["metadata"]["a"]),
            (&json!("262244"), &json!("b")),
            "{object}"
        );
        assert_eq!(cloud.objects().await?, ["x"]);
        assert_eq!(begin().await?.status(), 412, "nothing is overwritten");
        let late = http
            .put(&other)
            .bearer_auth(&token)
            .header("content-range", "bytes 0-9/10");
        assert_eq!(late.body(vec![3; 10]).send().await?.status(), 412);
        let refused = http
            .get(format!("{}/storage/v1/b/{BUCKET}/o/x", cloud.storage_url()))
            .send()
            .await?;
        assert_eq!(refused.status(), 401);
        cloud.validate_calls().await?;
    }
    Ok(())
}

/// Of the workload identity, whose exchange is one call.
async fn token(cloud: &Cloud) -> Result<String> {
    let config: Value = serde_json::from_slice(&fs::read(cloud.workload_identity()?)?)?;
    let file = config["credential_source"]["file"].as_str().unwrap_or_default();
    let form: HashMap<&str, String> = HashMap::from([
        (
            "grant_type",
            "urn:ietf:params:oauth:grant-type:token-exchange".to_owned(),
        ),
        (
            "requested_token_type",
            "urn:ietf:params:oauth:token-type:access_token".to_owned(),
        ),
        (
            "subject_token_type",
            config["subject_token_type"].as_str().unwrap_or_default().to_owned(),
        ),
        ("audience", config["audience"].as_str().unwrap_or_default().to_owned()),
        ("scope", "https://www.googleapis.com/auth/cloud-platform".to_owned()),
        ("subject_token", fs::read_to_string(file)?),
    ]);
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish();
    let url = config["token_url"].as_str().unwrap_or_default();
    let answer: Value = reqwest::Client::new()
        .post(url)
        .body(body)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    Ok(answer["access_token"].as_str().unwrap_or_default().to_owned())
}
