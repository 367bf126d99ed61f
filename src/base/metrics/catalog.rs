//! Every metric: its name, its labels, and what it means.
//!
//! The names follow <https://prometheus.io/docs/practices/naming/>. Labels take few values, whatever composes bring:
//! what is different in each compose (paths, versions, ids) is for the log.

use ::metrics::{Counter, Gauge, Histogram};

/// Prometheus' type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts what it is given by size.
    Histogram,
}

/// A label, beside the provider that every metric has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// All it can be; empty where that depends on the configuration or on what composes have.
    pub values: &'static [&'static str],
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Prometheus' type of the metric.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [Label],
    /// The metric's meaning, as Prometheus and the documentation show it.
    pub help: &'static str,
}

impl Metric {
    /// The label's values come in the order of the labels.
    fn labels(&self, values: &[&str]) -> Vec<::metrics::Label> {
        debug_assert_eq!(self.labels.len(), values.len(), "{}", self.name);
        let labels = self.labels.iter().zip(values);
        labels
            .map(|(label, value)| {
                debug_assert!(
                    label.values.is_empty() || label.values.contains(value),
                    "{}: {value}",
                    self.name
                );
                ::metrics::Label::new(label.name, (*value).to_owned())
            })
            .collect()
    }

    pub(super) fn counter(&self, values: &[&str]) -> Counter {
        ::metrics::counter!(self.name, self.labels(values))
    }

    pub(super) fn gauge(&self, values: &[&str]) -> Gauge {
        ::metrics::gauge!(self.name, self.labels(values))
    }

    pub(super) fn histogram(&self, values: &[&str]) -> Histogram {
        ::metrics::histogram!(self.name, self.labels(values))
    }

    /// Announces the metric, at 0 if its labels are known: so a rule can tell a process without events from no process.
    pub(super) fn begin(&self) {
        match self.kind {
            Kind::Counter => ::metrics::describe_counter!(self.name, self.help),
            Kind::Gauge => ::metrics::describe_gauge!(self.name, self.help),
            Kind::Histogram => ::metrics::describe_histogram!(self.name, self.help),
        }
        let known: Vec<&[&str]> = match self.labels {
            [] => vec![&[]],
            [label] => label.values.chunks(1).collect(),
            _ => Vec::new(),
        };
        for values in known {
            match self.kind {
                Kind::Counter => self.counter(values).increment(0),
                Kind::Gauge => self.gauge(values).set(0.0),
                Kind::Histogram => {}
            }
        }
    }
}

/// Makes a constant of each metric, and the list of them all.
macro_rules! catalog {
    ($($constant:ident: $kind:ident $name:literal ($($label:literal $([$($value:literal)*])?),*) $help:literal;)*) => {
        $(
            pub(super) const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$(Label { name: $label, values: &[$($($value),*)?] }),*],
                help: $help,
            };
        )*

        /// All of them, in the order of the documentation.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

catalog! {
    CONSUMING: Gauge "uploader_consuming" ()
        "1 while the broker hands out messages to this process, else 0";
    TROUBLE: Gauge "uploader_trouble" ()
        "Things that an operator has to mend; /ready says which";
    QUEUE_READY: Gauge "uploader_queue_messages_ready" ("queue")
        "Messages that wait in a queue, as of the last half minute of consuming";
    QUEUE_CONSUMERS: Gauge "uploader_queue_consumers" ("queue")
        "Consumers of a queue, likewise";
    DELIVERIES: Gauge "uploader_deliveries_in_hand" ()
        "Deliveries that wait for their compose to be published, neither acknowledged nor rejected";
    MESSAGES: Counter "uploader_messages_total" ("event" ["received" "processed" "dropped" "rejected"])
        "Deliveries by what became of them: dropped is rejected for good, rejected is back in the queue";
    IGNORED: Counter "uploader_ignored_messages_total" ()
        "Deliveries that concern nobody";
    INVALID: Counter "uploader_invalid_messages_total" ()
        "Deliveries that are no message one could work on";
    NOTIFICATIONS: Counter "uploader_notifications_total" ()
        "Messages published and confirmed";
    COMPOSES: Gauge "uploader_composes_in_progress" ()
        "Composes being worked on";
    OLDEST_COMPOSE: Gauge "uploader_oldest_unfinished_compose_timestamp_seconds" ()
        "When the oldest compose being worked on was announced; 0 while there is none";
    STEPS: Gauge "uploader_deliverables_in_progress" ("step" ["verify" "stage" "release" "announce" "wait"])
        "Images and repositories being published, by step; wait is before another try";
    DELIVERABLES: Counter "uploader_deliverables_total" ("outcome" ["published" "unchanged" "superseded" "failed"])
        "Images and repositories by outcome; those that are live in some locations only are published";
    FAILURES: Counter "uploader_failures_total" ("kind" ["transient" "deliverable" "everything"])
        "Failures for good, by what can be done: tried for too long, wrong with this image, an operator has to mend something";
    RETRIES: Counter "uploader_retries_total" ("call")
        "Tries after a passing failure, by call";
    PUBLISH_DURATION: Histogram "uploader_publish_duration_seconds" ("image", "location")
        "From the announcement of a compose until an image of it was live in a location";
    LAST_SUCCESS: Gauge "uploader_last_success_timestamp_seconds" ("release")
        "When a compose of a release was last found or made complete in every location";
    RETIRED: Counter "uploader_retired_total" ()
        "Images removed by the retention policy";
    IMAGES: Gauge "uploader_images_in_progress" ("state" ["waiting" "reading"])
        "Images that are read, and those that wait until fewer are";
    IMAGE_SIZE: Gauge "uploader_image_size_bytes" ("image")
        "Bytes that the images being read have, as stored";
    IMAGE_READ: Gauge "uploader_image_read_bytes" ("image")
        "Bytes of them that were read";
    IMAGE_DECODED: Gauge "uploader_image_decoded_bytes" ("image")
        "Bytes that came out of them decompressed, holes included";
    DOWNLOADED: Counter "uploader_downloaded_bytes_total" ()
        "Bytes of images read from composes";
    DECODED: Counter "uploader_decoded_bytes_total" ()
        "Bytes of images decompressed, holes included";
    UPLOADED: Counter "uploader_uploaded_bytes_total" ()
        "Bytes of images sent to the provider";
    CREDENTIAL_EXPIRY: Gauge "uploader_credential_expiry_timestamp_seconds" ("credential")
        "When a client certificate in use expires";
}
