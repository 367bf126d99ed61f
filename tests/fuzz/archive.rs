use std::collections::HashSet;
use std::io::Cursor;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cloud_image_uploader::base::failure::Failure;
use cloud_image_uploader::images::oci::{Blob, Body, Manifest, Pieces, Store, Stores, read};
use cloud_image_uploader_test_support::archive::{DockerArchive, OciArchive, layer};
use futures_util::StreamExt;
use tokio::sync::oneshot;

use crate::{Random, attempts};

/// Counts what it is given.
#[derive(Default)]
pub struct Scales {
    blobs: Mutex<HashSet<Blob>>,
    bytes: AtomicU64,
}

impl Scales {
    /// Whether all of it arrived.
    async fn weigh(&self, mut pieces: Pieces) -> bool {
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(bytes) => self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed),
                Err(_) => return false,
            };
        }
        true
    }
}

#[async_trait]
impl Store for Scales {
    async fn has(&self, blob: &Blob) -> Result<bool, Failure> {
        Ok(self.blobs.lock().unwrap().contains(blob))
    }

    async fn put(&self, blob: &Blob, body: Body) -> Result<(), Failure> {
        let whole = match body {
            Body::Held(bytes) => bytes.len() as u64 == blob.size,
            Body::Passing(pieces) => self.weigh(pieces).await,
        };
        if whole {
            self.blobs.lock().unwrap().insert(blob.clone());
        }
        Ok(())
    }

    async fn put_unknown(&self, body: Pieces, name: oneshot::Receiver<Blob>) -> Result<(), Failure> {
        if self.weigh(body).await
            && let Ok(blob) = name.await
        {
            self.blobs.lock().unwrap().insert(blob);
        }
        Ok(())
    }
}

/// Makes the checksums of all headers right, or hardly anything behind them would ever be reached.
pub fn mend(archive: &mut [u8]) {
    for header in archive
        .chunks_exact_mut(512)
        .filter(|block| block[257..262] == *b"ustar")
    {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn spoilt(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = random.of(corpus).clone();
    if random.below(20) > 0 {
        random.spoil(&mut archive, 512);
    }
    if random.below(3) > 0 {
        mend(&mut archive);
    }
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn archives() {
    let corpus = [
        OciArchive::new("amd64")
            .layer(layer("one", 3000))
            .layer(layer("two", 9000))
            .build(),
        DockerArchive::new("amd64")
            .layer(layer("one", 3000))
            .layer(layer("two", 9000))
            .build(),
    ];
    let (accepted, _) = attempts("container archives", async |random| {
        let archive = spoilt(random, &corpus);
        let scales = Arc::new(Scales::default());
        let store: Arc<dyn Store> = scales.clone();
        let mut stores = Stores::new([("scales".to_owned(), store)]);
        let length = archive.len() as u64;
        let read = read("image", "x86_64", Cursor::new(archive), &mut stores);
        let image = tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
        let given = scales.bytes.load(Ordering::Relaxed);
        assert!(given <= 2 * length + 4096, "{given} bytes of {length}");
        match image {
            Ok(Some(image)) => {
                let there = scales.blobs.lock().unwrap();
                let manifest: Manifest = serde_json::from_slice(&image.manifest).unwrap();
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    assert!(there.contains(&blob.blob()), "{blob:?} was not stored");
                }
                true
            }
            Ok(None) => panic!("the scales take everything"),
            Err(_) => false,
        }
    })
    .await;
    assert!(accepted > 0, "not even a sound archive was accepted");
}
