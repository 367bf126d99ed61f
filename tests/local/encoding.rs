//! Servers that compress what they were not asked to, or label a compressed file as compressed in transit.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use cloud_image_uploader_test_support::archive::{Row, gzip, noise};
use cloud_image_uploader_test_support::gcp::tarball;
use cloud_image_uploader_test_support::http_server::HttpServer;

use crate::{COMPOSE, Desk, assert_complete, compose, disk_row};

/// A server of a folder: metadata comes as `pack` makes it and is labelled so; a file that is compressed already is
/// labelled and comes as it is.
async fn serve(folder: PathBuf, label: &'static str, pack: fn(Vec<u8>) -> Vec<u8>) -> HttpServer {
    let answer = move |request: Request| {
        let path = request.uri().path().trim_start_matches('/');
        let bytes = fs::read(folder.join(path)).ok();
        let labelled = path.contains("metadata/") || path.ends_with(".gz");
        let body = bytes.map(|bytes| if path.contains("metadata/") { pack(bytes) } else { bytes });
        let mut response = Response::new(Body::empty());
        match body {
            Some(body) => *response.body_mut() = body.into(),
            None => *response.status_mut() = StatusCode::NOT_FOUND,
        }
        if labelled {
            response
                .headers_mut()
                .insert("content-encoding", label.parse().unwrap());
        }
        std::future::ready(response)
    };
    HttpServer::start(Router::new().fallback(answer)).await.unwrap()
}

#[tokio::test]
async fn metadata_that_comes_compressed_is_read_and_a_compressed_file_stays_one() {
    let pack: [(&str, fn(Vec<u8>) -> Vec<u8>); 5] = [
        ("gzip", |bytes| gzip(&bytes)),
        ("X-GZIP", |bytes| gzip(&bytes)),
        ("identity", |bytes| bytes),
        ("identity, gzip", |bytes| {
            [gzip(&bytes[..100]), gzip(&bytes[100..])].concat()
        }),
        // Nothing was compressed.
        ("gzip", |bytes| bytes),
    ];
    for (label, pack) in pack {
        let desk = Desk::new();
        let stored = tarball::of(&noise(1, 100_000));
        let row = Row::new(
            "tar-gz",
            "tar.gz",
            "Cloud_Base",
            "x86_64",
            "Disk.tar.gz",
            stored.clone(),
        );
        compose().image(row).write(&desk.compose()).unwrap();
        let server = serve(desk.compose(), label, pack).await;
        let exit = desk.run(&["reconsume", "--compose", &server.url()]).await;
        assert_eq!(exit.code, Some(0), "{label}: {}", exit.stderr);
        assert_complete(&desk);
        let mut disk = Vec::new();
        flate2::read::GzDecoder::new(&stored[..])
            .read_to_end(&mut disk)
            .unwrap();
        assert!(desk.files()[&format!("{COMPOSE}/x86_64/Disk.tar")] == disk, "{label}");
    }
}

#[tokio::test]
async fn metadata_that_does_not_decode_is_refused_at_once() {
    let table: [(&str, fn(Vec<u8>) -> Vec<u8>, &str); 4] = [
        (
            "gzip",
            |bytes| gzip(&bytes)[..200].to_vec(),
            "decode the answer as gzip",
        ),
        (
            "br",
            |bytes| bytes,
            "the answer is encoded as br, and only gzip is supported",
        ),
        (
            "gzip, gzip",
            |bytes| gzip(&gzip(&bytes)),
            "the answer is encoded as gzip, gzip",
        ),
        // A gibibyte in a megabyte.
        ("gzip", |_| gzip(&vec![b' '; 1 << 30]), "longer than 33554432 bytes"),
    ];
    for (label, pack, said) in table {
        let desk = Desk::new();
        compose().image(disk_row("x86_64")).write(&desk.compose()).unwrap();
        let server = serve(desk.compose(), label, pack).await;
        let exit = desk.run(&["plan", "--compose", &server.url()]).await;
        assert_eq!(exit.code, Some(1), "{said}: {}", exit.stderr);
        assert!(exit.stderr.contains(said), "{said}: {}", exit.stderr);
        assert!(exit.peak_memory < 256 << 20, "{} bytes", exit.peak_memory);
    }
}
