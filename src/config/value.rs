//! Values with a meaning: durations, sizes, addresses.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::{Host, Url};

use super::reader::Value;
use crate::base::resource::Resource;

impl Value<'_> {
    /// A span of time with its unit, zero included.
    pub(crate) fn duration(&self) -> Option<Duration> {
        const EXPECTED: &str = "a duration such as \"30m\" or \"5h\"";
        let Some(text) = self.raw().as_str() else {
            return self.wrong_type(EXPECTED);
        };
        match humantime::parse_duration(text) {
            Ok(duration) => Some(duration),
            Err(_) => self.refuse(format!("expected {EXPECTED}, found \"{text}\"")),
        }
    }

    /// A span of time longer than nothing.
    pub(crate) fn nonzero_duration(&self) -> Option<Duration> {
        let duration = self.duration()?;
        if duration.is_zero() {
            return self.refuse("must be longer than zero, such as \"14d\"");
        }
        Some(duration)
    }

    /// A number of bytes with its unit, above zero.
    pub(crate) fn size(&self) -> Option<u64> {
        const EXPECTED: &str = "a size such as \"512MiB\" or \"64 MB\"";
        let Some(text) = self.raw().as_str() else {
            return self.wrong_type(EXPECTED);
        };
        match bytes(text) {
            Some(0) => self.refuse("must be more than zero, such as \"512MiB\""),
            Some(size) => Some(size),
            None => self.refuse(format!("expected {EXPECTED}, found \"{text}\"")),
        }
    }

    /// A path, taken as written.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        self.filled().map(PathBuf::from)
    }

    /// The address of a web service that is only read from.
    pub(crate) fn url(&self) -> Option<Url> {
        let text = self.string()?;
        // The value is not repeated in a message as long as it may hold a password.
        let Ok(url) = Url::parse(&text) else {
            return self.refuse("expected a URL such as \"https://example.org/path\"");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return self.refuse("must not hold a user name or a password");
        }
        if !matches!(url.scheme(), "http" | "https") {
            return self.refuse(format!(
                "expected an https URL, found one that begins with \"{}:\"",
                url.scheme()
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return self.refuse("must not have a query or a fragment");
        }
        Some(url)
    }

    /// The name or address of a host, as URLs have it.
    pub(crate) fn host(&self) -> Option<String> {
        let text = self.string()?;
        match Host::parse(&text) {
            Ok(host) => Some(host.to_string()),
            Err(_) => self.refuse(format!(
                "expected a host such as \"kojipkgs.fedoraproject.org\", found \"{text}\""
            )),
        }
    }

    /// The address of a web service that is only read from, or a copy of what it serves: a path that starts with a dot
    /// or a slash, relative to `folder`.
    pub(crate) fn location(&self, folder: &Path) -> Option<Resource> {
        let text = self.string()?;
        if text.starts_with(['.', '/']) {
            return Some(Resource::Folder(folder.join(text)));
        }
        self.url().map(Resource::Http)
    }

    /// The address of a web service that is sent credentials: plain http stays on this machine.
    pub(crate) fn endpoint(&self) -> Option<Url> {
        let url = self.url()?;
        if url.scheme() == "http" && !url.host().is_some_and(|host| is_loopback(&host)) {
            return self.refuse("must be https; plain http is for loopback addresses only");
        }
        Some(url)
    }
}

/// Whether a host is this machine itself.
pub(crate) fn is_loopback<S: AsRef<str>>(host: &Host<S>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.as_ref().trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Host::Ipv4(address) => IpAddr::from(*address).is_loopback(),
        Host::Ipv6(address) => IpAddr::from(*address).is_loopback(),
    }
}

/// Bytes of `"512MiB"` or `"64 MB"`: a whole number and its unit.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::{bytes, is_loopback};
    use url::Host;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("512MiB", Some(512 << 20)),
            ("64 MB", Some(64_000_000)),
            ("1 GiB", Some(1 << 30)),
            ("3kb", Some(3_000)),
            ("12 B", Some(12)),
            ("0MiB", Some(0)),
            ("512", None),
            ("MiB", None),
            ("1.5GiB", None),
            ("-1MiB", None),
            ("512M", None),
            ("99999999999GiB", None),
            ("", None),
        ] {
            assert_eq!(bytes(text), size, "{text:?}");
        }
    }

    #[test]
    fn loopback() {
        for (host, expected) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("[::1]", true),
            ("api.localhost", true),
            ("localhost.example.org", false),
            ("127.0.0.1.example.org", false),
            ("10.0.0.1", false),
            ("0.0.0.0", false),
        ] {
            let parsed = Host::parse(host).expect("host");
            assert_eq!(is_loopback(&parsed), expected, "{host}");
        }
    }
}
