//! The calls of [page blobs](https://learn.microsoft.com/rest/api/storageservices/operations-on-page-blobs) that one writer
//! needs. Leases are granted to everybody.

use std::collections::BTreeMap;

use super::{Answer, Head};

#[derive(Default)]
pub(super) struct PageBlobs(BTreeMap<String, Blob>);

struct Blob {
    size: String,
    metadata: Vec<(String, String)>,
}

impl PageBlobs {
    pub(super) fn answer(&mut self, head: &Head) -> Answer {
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let part = query.split('&').find_map(|pair| pair.strip_prefix("comp="));
        match (head.method.as_str(), part) {
            ("HEAD", None) => self.show(path),
            ("PUT", None) => {
                let size = head.header("x-ms-blob-content-length").to_owned();
                let metadata = metadata(head);
                self.0.insert(path.to_owned(), Blob { size, metadata });
                Answer::of(201)
            }
            ("PUT", Some("page")) => Answer::of(201),
            ("PUT", Some("metadata")) => {
                if let Some(blob) = self.0.get_mut(path) {
                    blob.metadata = metadata(head);
                }
                Answer::of(200)
            }
            ("PUT", Some("lease")) if head.header("x-ms-lease-action") == "acquire" => {
                Answer::of(201).header("x-ms-lease-id", head.header("x-ms-proposed-lease-id"))
            }
            ("PUT", Some("lease")) => Answer::of(200).header("x-ms-lease-id", head.header("x-ms-lease-id")),
            ("DELETE", None) => {
                self.0.remove(path);
                Answer::of(202)
            }
            _ => Answer::of(400),
        }
    }

    fn show(&self, path: &str) -> Answer {
        let Some(blob) = self.0.get(path) else {
            return Answer::of(404).header("x-ms-error-code", "BlobNotFound");
        };
        let answer = Answer::of(200)
            .header("content-length", &blob.size)
            .header("x-ms-blob-type", "PageBlob")
            .header("x-ms-lease-status", "unlocked")
            .header("x-ms-lease-state", "available");
        let metadata = blob.metadata.iter();
        metadata.fold(answer, |answer, (name, value)| answer.header(name, value))
    }
}

fn metadata(head: &Head) -> Vec<(String, String)> {
    let headers = head.headers.iter();
    headers
        .filter(|(name, _)| name.starts_with("x-ms-meta-"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
