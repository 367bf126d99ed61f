//! Multipart uploads of S3: which there are, what was put, and whether a completion is right.
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html>

use std::collections::BTreeMap;

use axum::http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use quick_xml::{Reader, events::Event};

use super::{
    images::moment,
    refusal::{Refusal, Result},
    xml::Xml,
};

/// All parts but the last have this many bytes or more.
const SMALLEST: usize = 5 * 1024 * 1024;

/// The checksums of S3: the header's last part, and the element.
pub(super) const CHECKSUMS: [(&str, &str); 5] = [
    ("crc32", "ChecksumCRC32"),
    ("crc32c", "ChecksumCRC32C"),
    ("crc64nvme", "ChecksumCRC64NVME"),
    ("sha1", "ChecksumSHA1"),
    ("sha256", "ChecksumSHA256"),
];

/// Uploads that are neither completed nor aborted, by their id.
#[derive(Default)]
pub(super) struct Uploads(BTreeMap<String, Upload>);

/// One upload.
pub(super) struct Upload {
    pub(super) bucket: String,
    pub(super) key: String,
    started: Timestamp,
    /// The checksum that every part must have, such as `sha256`.
    algorithm: Option<String>,
    parts: BTreeMap<u32, Part>,
}

struct Part {
    size: usize,
    tag: String,
    changed: Timestamp,
    checksums: BTreeMap<&'static str, String>,
}

impl Uploads {
    pub(super) fn begin(&mut self, id: &str, bucket: &str, key: &str, headers: &HeaderMap) {
        let upload = Upload {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            started: Timestamp::now(),
            algorithm: text(headers, "x-amz-checksum-algorithm").map(str::to_ascii_lowercase),
            parts: BTreeMap::new(),
        };
        self.0.insert(id.to_owned(), upload);
    }

    pub(super) fn get(&mut self, id: &str, bucket: &str, key: &str) -> Result<&mut Upload> {
        let upload = self.0.get_mut(id);
        upload
            .filter(|upload| upload.bucket == bucket && upload.key == key)
            .ok_or_else(|| {
                Refusal::new("NoSuchUpload", format!("the upload {id} does not exist")).status(StatusCode::NOT_FOUND)
            })
    }

    pub(super) fn end(&mut self, id: &str) -> Option<Upload> {
        self.0.remove(id)
    }

    /// One whose end failed.
    pub(super) fn restore(&mut self, id: &str, upload: Upload) {
        self.0.insert(id.to_owned(), upload);
    }

    /// Those of a bucket, by key and age.
    pub(super) fn of_bucket(&self, bucket: &str) -> Vec<(&str, &Upload)> {
        let all = self.0.iter().map(|(id, upload)| (id.as_str(), upload));
        let mut found: Vec<_> = all.filter(|(_, upload)| upload.bucket == bucket).collect();
        found.sort_by_key(|(_, upload)| (&upload.key, upload.started));
        found
    }

    /// The answer to ListMultipartUploads.
    pub(super) fn list(&self, bucket: &str, prefix: &str) -> String {
        let mut listed = Xml::default();
        listed
            .text("Bucket", bucket)
            .text("Prefix", prefix)
            .text("KeyMarker", "")
            .text("UploadIdMarker", "")
            .text("MaxUploads", 1000)
            .text("IsTruncated", false);
        for (id, upload) in self.of_bucket(bucket) {
            if upload.key.starts_with(prefix) {
                listed.element("Upload", |item| {
                    item.text("Key", &upload.key)
                        .text("UploadId", id)
                        .text("StorageClass", "STANDARD")
                        .text("Initiated", moment(upload.started));
                });
            }
        }
        listed.into_s3("ListMultipartUploadsResult")
    }
}

impl Upload {
    /// A part must carry the checksum that was announced, itself or behind its bytes.
    pub(super) fn check_part(&self, headers: &HeaderMap) -> Result<()> {
        let Some(algorithm) = &self.algorithm else {
            return Ok(());
        };
        let name = format!("x-amz-checksum-{algorithm}");
        if headers.contains_key(&name) || text(headers, "x-amz-trailer") == Some(name.as_str()) {
            return Ok(());
        }
        let message = format!("the upload was created with a {algorithm} checksum, and the part has none");
        Err(Refusal::new("InvalidRequest", message))
    }

    pub(super) fn put(&mut self, number: u32, size: usize, tag: &str, headers: &HeaderMap) {
        let announced = text(headers, "x-amz-decoded-content-length").and_then(|text| text.parse().ok());
        let checksums = CHECKSUMS.iter().filter_map(|(name, _)| {
            let value = text(headers, &format!("x-amz-checksum-{name}"))?;
            Some((*name, value.to_owned()))
        });
        let part = Part {
            size: announced.unwrap_or(size),
            tag: tag.trim_matches('"').to_owned(),
            changed: Timestamp::now(),
            checksums: checksums.collect(),
        };
        self.parts.insert(number, part);
    }

    /// The answer to ListParts.
    pub(super) fn list(&self, id: &str, after: u32, most: usize) -> String {
        let mut listed = Xml::default();
        let mut rest = self.parts.range(after + 1..);
        let page: Vec<_> = rest.by_ref().take(most).collect();
        let last = page.last().map_or(after, |(number, _)| **number);
        listed
            .text("Bucket", &self.bucket)
            .text("Key", &self.key)
            .text("UploadId", id)
            .text("PartNumberMarker", after)
            .text("NextPartNumberMarker", last)
            .text("MaxParts", most)
            .text("IsTruncated", rest.next().is_some());
        for (number, part) in page {
            listed.element("Part", |item| {
                item.text("PartNumber", number)
                    .text("LastModified", moment(part.changed))
                    .text("ETag", format!("\"{}\"", part.tag))
                    .text("Size", part.size);
                for (name, element) in CHECKSUMS {
                    item.optional(element, part.checksums.get(name));
                }
            });
        }
        listed.into_s3("ListPartsResult")
    }

    /// The parts named must be those that were put, in order, with their checksums where the upload has such.
    pub(super) fn check_completion(&self, body: &[u8]) -> Result<()> {
        let named = parts(body)?;
        let number = |fields: &BTreeMap<String, String>| -> u32 {
            fields
                .get("PartNumber")
                .and_then(|text| text.parse().ok())
                .unwrap_or_default()
        };
        if !named.is_sorted_by(|one, other| number(one) < number(other)) {
            return Err(Refusal::new("InvalidPartOrder", "the parts are not in ascending order"));
        }
        for (index, fields) in named.iter().enumerate() {
            let field = |name: &str| fields.get(name).map(String::as_str);
            let number = number(fields);
            let absent = || {
                let message = format!("the part {number} was not put, or its ETag or checksum is another");
                Refusal::new("InvalidPart", message)
            };
            let part = self.parts.get(&number).ok_or_else(absent)?;
            if field("ETag").map(|tag| tag.trim_matches('"')) != Some(part.tag.as_str()) {
                return Err(absent());
            }
            for (name, element) in CHECKSUMS {
                let known = part.checksums.get(name).map(String::as_str);
                if field(element).is_some() && known.is_some() && field(element) != known {
                    return Err(absent());
                }
                if field(element).is_none() && self.algorithm.as_deref() == Some(name) {
                    let message =
                        format!("the upload was created with {name}: each part must be named with its checksum");
                    return Err(Refusal::new("InvalidRequest", message));
                }
            }
            if part.size < SMALLEST && index + 1 < named.len() {
                let message = format!("the part {number} has {} bytes, less than {SMALLEST}", part.size);
                return Err(Refusal::new("EntityTooSmall", message));
            }
        }
        Ok(())
    }
}

/// The elements of each `Part` in the body of a completion.
fn parts(body: &[u8]) -> Result<Vec<BTreeMap<String, String>>> {
    let malformed = || Refusal::new("MalformedXML", "the XML is not well-formed");
    let body = std::str::from_utf8(body).map_err(|_| malformed())?;
    let mut reader = Reader::from_str(body);
    let mut parts: Vec<BTreeMap<String, String>> = Vec::new();
    let mut element = String::new();
    loop {
        match reader.read_event().map_err(|_| malformed())? {
            Event::Start(start) => {
                element = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                if element == "Part" {
                    parts.push(BTreeMap::new());
                }
            }
            Event::Text(text) => {
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                if let Some(part) = parts.last_mut() {
                    part.entry(element.clone()).or_default().push_str(&text);
                }
            }
            // Quotes around an ETag come as entities; they are trimmed anyway.
            Event::Eof => return Ok(parts),
            _ => {}
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
