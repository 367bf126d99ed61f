//! The file server's good behaviour, and each of its faults.

use std::{fs, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use cloud_image_uploader_test_support::files::{Fault, Files};
use reqwest::{
    Client, Response,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER},
};
use tempfile::TempDir;

const PATH: &str = "/compose/image.raw";

/// Bytes that differ from place to place.
fn image() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 251) as u8).collect()
}

async fn server() -> Result<(TempDir, Files)> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("compose"))?;
    fs::write(folder.path().join("compose/image.raw"), image())?;
    let files = Files::start(folder.path()).await?;
    Ok((folder, files))
}

async fn get(files: &Files, range: Option<&str>) -> Result<Response> {
    let mut request = Client::new().get(files.url(PATH));
    if let Some(range) = range {
        request = request.header(RANGE, range);
    }
    Ok(request.send().await?)
}

#[tokio::test]
async fn whole_and_part() -> Result<()> {
    let (_folder, files) = server().await?;
    let whole = get(&files, None).await?;
    assert_eq!(whole.status(), 200);
    let (tag, date) = (whole.headers()[ETAG].clone(), whole.headers()[LAST_MODIFIED].clone());
    assert!(date.to_str()?.ends_with(" GMT"), "{date:?}");
    assert_eq!(whole.bytes().await?, image());

    let part = get(&files, Some("bytes=1000-")).await?;
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()[CONTENT_RANGE], "bytes 1000-299999/300000");
    assert_eq!(part.bytes().await?, image()[1000..]);
    assert_eq!(get(&files, Some("bytes=5-9")).await?.bytes().await?, image()[5..10]);
    assert_eq!(get(&files, Some("bytes=-7")).await?.bytes().await?, image()[299_993..]);
    assert_eq!(get(&files, Some("bytes=300000-")).await?.status(), 416);

    for (condition, status) in [(tag, 206), (date, 206), ("\"other\"".parse()?, 200)] {
        let conditional = Client::new()
            .get(files.url(PATH))
            .header(RANGE, "bytes=1-")
            .header(IF_RANGE, condition);
        assert_eq!(conditional.send().await?.status(), status);
    }
    for absent in ["/compose/none", "/compose", "/compose/%2e%2e/x"] {
        assert_eq!(reqwest::get(files.url(absent)).await?.status(), 404, "{absent}");
    }
    let head = Client::new().head(files.url(PATH)).send().await?;
    assert_eq!(head.headers()[CONTENT_LENGTH], "300000");
    let requests = files.requests_for(PATH);
    assert_eq!(requests.len(), 9);
    assert_eq!(requests[1].range.as_deref(), Some("bytes=1000-"));
    assert_eq!((requests[8].method.as_str(), requests[8].status), ("HEAD", 200));
    Ok(())
}

#[tokio::test]
async fn faults_come_in_order_and_end() -> Result<()> {
    let (_folder, files) = server().await?;
    files.fault(PATH, Fault::Cut { after: 100_000 }, 1);
    files.fault(
        PATH,
        Fault::Status {
            code: 503,
            retry_after: Some("1".into()),
        },
        2,
    );
    files.fault(PATH, Fault::Flip { offset: 150_000 }, 1);
    files.fault(PATH, Fault::NoRange, 1);
    files.fault(PATH, Fault::Replaced(Bytes::from_static(b"other")), 1);

    let mut cut = get(&files, None).await?;
    assert_eq!(cut.content_length(), Some(300_000));
    let mut seen = Vec::new();
    let end = loop {
        match cut.chunk().await {
            Ok(Some(chunk)) => seen.extend_from_slice(&chunk),
            end => break end,
        }
    };
    assert!(end.is_err(), "an answer cut short ended well");
    assert_eq!(seen, image()[..100_000]);

    for _ in 0..2 {
        let refused = get(&files, None).await?;
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()[RETRY_AFTER], "1");
    }
    let flipped = get(&files, Some("bytes=100000-")).await?.bytes().await?;
    let good = image();
    let wrong: Vec<_> = (0..200_000).filter(|&n| flipped[n] != good[100_000 + n]).collect();
    assert_eq!(wrong, [50_000]);
    let whole = get(&files, Some("bytes=100000-")).await?;
    assert_eq!((whole.status().as_u16(), whole.content_length()), (200, Some(300_000)));
    assert!(!files.faults_met());
    let other = get(&files, None).await?;
    assert_eq!(other.headers()[ETAG], "\"replaced\"");
    assert_eq!(other.bytes().await?, "other");
    assert!(files.faults_met());
    assert_eq!(get(&files, None).await?.bytes().await?, image());
    Ok(())
}

#[tokio::test]
async fn stalled_answer_never_ends() -> Result<()> {
    let (_folder, files) = server().await?;
    files.fault(PATH, Fault::Stall { after: 10 }, 1);
    let mut stalled = get(&files, None).await?;
    assert_eq!(stalled.chunk().await?.as_deref(), Some(&image()[..10]));
    let more = tokio::time::timeout(Duration::from_millis(300), stalled.chunk()).await;
    assert!(more.is_err(), "{more:?}");
    Ok(())
}
