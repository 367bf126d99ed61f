//! `[consumer_config.container]`: archives as multi-architecture tags in registries.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::{Host, Url};

use super::Section;
use super::amqp::check_pem;
use super::environment::Environment;
use super::problem::Problem;
use super::reader::{Table, Value};
use super::value::is_loopback;
use crate::base::secret::Secret;
use crate::model::target::{self, Rules};

/// Which repositories are filled, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// `publish_amqp_messages`: send notifications. Default: true.
    pub publish_amqp_messages: bool,
    /// `repos`: subvariant to repository. Subvariants that are not here are not published.
    pub repos: BTreeMap<String, String>,
    /// `registries`: every repository goes to each of them, in the order of the file.
    pub registries: Vec<Registry>,
    /// `keep_missing_architecture`: how long a tag keeps its previous entry for an architecture that
    /// newer composes lack. Default: 14 days.
    pub keep_missing_architecture: Duration,
}

/// A registry, or a part of one: its url may have a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// `url` exactly as configured: `host[:port][/path]`, maybe with a scheme. Notifications and
    /// options name the registry by it.
    pub url: String,
    /// Scheme, host, and port: where the API is, under `/v2/`.
    pub base: Url,
    /// The prefix of every repository's name, without slashes around it; often empty.
    pub path: String,
    /// `credential_prefix`: the variables `<prefix>USER`, `<prefix>PASSWORD`, `<prefix>CERT_DIR`.
    /// Default: none, the registry is used without an account.
    pub credential_prefix: Option<String>,
    /// `ca_cert`: PEM file with the authorities to trust beside the platform's. Default: none.
    pub ca_cert: Option<PathBuf>,
    /// `tls_verify`: check the registry's certificate. Default: true.
    pub tls_verify: bool,
    /// `insecure`: plain http; for loopback hosts only. Default: false.
    pub insecure: bool,
}

/// Credentials for a registry, and the authorities to trust for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// User and password.
    pub user: Option<(String, Secret)>,
    /// PEM files: certificate, then key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// PEM file of authorities: `ca_cert`, else `ca.crt` of the certificate directory.
    pub ca: Option<PathBuf>,
}

impl Section for Container {
    fn name(&self) -> &'static str {
        "container"
    }

    fn publish_amqp_messages(&self) -> bool {
        self.publish_amqp_messages
    }

    fn locations(&self) -> Vec<String> {
        self.registries.iter().map(|registry| registry.url.clone()).collect()
    }

    fn rules(&self) -> Box<dyn Rules> {
        Box::new(target::container::RepositoryRules {
            repos: self.repos.clone(),
        })
    }

    fn check(&self, env: &Environment, file: &Path) -> Vec<Problem> {
        self.check_environment(env, file)
    }
}

impl Container {
    pub(super) fn read(table: &Table<'_>) -> Option<Self> {
        const TWO_WEEKS: Duration = Duration::from_secs(14 * 24 * 60 * 60);
        let publish_amqp_messages = table.optional("publish_amqp_messages", true, Value::boolean);
        let repositories = table.required("repos", |value| {
            let map = repos(value)?;
            if map.is_empty() {
                return value.refuse("must name at least one subvariant");
            }
            Some(map)
        });
        let registries = table.required("registries", registries);
        let keep = table.optional("keep_missing_architecture", TWO_WEEKS, Value::duration);
        Some(Self {
            publish_amqp_messages: publish_amqp_messages?,
            repos: repositories?,
            registries: registries?,
            keep_missing_architecture: keep?,
        })
    }

    pub(super) fn check_environment(&self, env: &Environment, file: &Path) -> Vec<Problem> {
        let registries = self.registries.iter().enumerate();
        registries
            .filter_map(|(index, registry)| {
                let mut problem = registry.credentials(env).err()?;
                problem.file = file.to_owned();
                problem.key = format!("consumer_config.container.registries[{index}]");
                Some(problem)
            })
            .collect()
    }
}

impl Registry {
    /// The full name of a repository at this registry's API: its path, then the name.
    pub fn repository(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}/{name}", self.path)
        }
    }

    /// The credentials that the environment holds for this registry.
    ///
    /// # Errors
    ///
    /// The first thing that is missing or does not fit, by the variable's name.
    pub fn credentials(&self, env: &Environment) -> Result<RegistryCredentials, Problem> {
        self.find_credentials(env)
            .map_err(|text| Problem::outside(Path::new(""), format!("registry {}", self.url), text))
    }

    fn find_credentials(&self, env: &Environment) -> Result<RegistryCredentials, String> {
        let mut found = RegistryCredentials::default();
        if let Some(prefix) = &self.credential_prefix {
            let [user, password, directory] = ["USER", "PASSWORD", "CERT_DIR"].map(|name| format!("{prefix}{name}"));
            found.user = match (env.get(&user), env.get(&password)) {
                (Some(user), Some(password)) => Some((user.to_owned(), Secret::new(password))),
                (Some(_), None) => return Err(format!("{user} is set but {password} is not")),
                (None, Some(_)) => return Err(format!("{password} is set but {user} is not")),
                (None, None) => None,
            };
            if let Some(path) = env.get(&directory) {
                let (certificate, ca) =
                    read_directory(Path::new(path)).map_err(|text| format!("{directory}: {text}"))?;
                found.client_certificate = certificate;
                found.ca = ca;
            } else if found.user.is_none() {
                return Err(format!("neither {user} and {password} nor {directory} is set"));
            }
        }
        if let Some(path) = &self.ca_cert {
            check_pem(path, "CERTIFICATE").map_err(|text| format!("ca_cert: {text}"))?;
            found.ca = Some(path.clone());
        }
        Ok(found)
    }
}

type CertificateFiles = (Option<(PathBuf, PathBuf)>, Option<PathBuf>);

/// A directory as container tools use it: one `*.cert` with its `*.key`, and maybe `ca.crt`.
fn read_directory(directory: &Path) -> Result<CertificateFiles, String> {
    let name = directory.display();
    let cannot = |error| format!("cannot read {name}: {error}");
    let mut certificates = Vec::new();
    let mut keys = Vec::new();
    for entry in fs::read_dir(directory).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("cert") => certificates.push(path),
            Some("key") => keys.push(path),
            _ => {}
        }
    }
    let ca = Some(directory.join("ca.crt")).filter(|path| path.exists());
    if let Some(ca) = &ca {
        check_pem(ca, "CERTIFICATE")?;
    }
    match (certificates.as_slice(), keys.as_slice()) {
        ([], []) if ca.is_some() => Ok((None, ca)),
        ([], []) => Err(format!("{name} holds no *.cert, no *.key, and no ca.crt")),
        ([certificate], [key]) => {
            check_pem(certificate, "CERTIFICATE")?;
            check_pem(key, "PRIVATE KEY")?;
            Ok((Some((certificate.clone(), key.clone())), ca))
        }
        ([_], []) => Err(format!("{name} holds a *.cert but no *.key")),
        ([], [_]) => Err(format!("{name} holds a *.key but no *.cert")),
        _ => Err(format!("{name} holds more than one *.cert or *.key")),
    }
}

/// Subvariant to repository; no repository twice, since one would overwrite the other's tags.
pub(super) fn repos(value: &Value<'_>) -> Option<BTreeMap<String, String>> {
    let mut repos: BTreeMap<String, String> = BTreeMap::new();
    let mut good = true;
    for (subvariant, value) in value.free_table()?.all() {
        let expected = "a repository name such as \"fedora-minimal\"";
        let Some(repository) = value.matching(is_repository, expected) else {
            good = false;
            continue;
        };
        if let Some((other, _)) = repos.iter().find(|(_, name)| **name == repository) {
            value.note(format!(
                "subvariants {other} and {subvariant} are both mapped to repository \"{repository}\""
            ));
            good = false;
        }
        repos.insert(subvariant.to_owned(), repository);
    }
    good.then_some(repos)
}

/// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests>
fn is_repository(name: &str) -> bool {
    name.len() <= 255 && name.split('/').all(is_component)
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__`, or hyphens.
fn is_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators: Vec<_> = text.split(plain).filter(|run| !run.is_empty()).collect();
    let joined = |run: &&str| matches!(*run, "." | "_" | "__") || run.chars().all(|c| c == '-');
    text.starts_with(plain) && text.ends_with(plain) && separators.iter().all(joined)
}

fn registries(value: &Value<'_>) -> Option<Vec<Registry>> {
    let mut registries: Vec<Registry> = Vec::new();
    let mut good = true;
    for item in value.items()? {
        let Some(registry) = item.table(registry) else {
            good = false;
            continue;
        };
        let same = |other: &&Registry| other.base == registry.base && other.path == registry.path;
        if let Some(other) = registries.iter().find(same) {
            item.note(format!(
                "the same registry twice: \"{}\" and \"{}\"",
                other.url, registry.url
            ));
            good = false;
        }
        registries.push(registry);
    }
    if good && registries.is_empty() {
        return value.refuse("must not be empty");
    }
    good.then_some(registries)
}

fn registry(table: &Table<'_>) -> Option<Registry> {
    let insecure = table.optional("insecure", false, Value::boolean);
    let url = table.required("url", |value| registry_url(value, insecure?));
    let credential_prefix = table.optional("credential_prefix", None, |value| {
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let fits = |text: &str| !text.is_empty() && text.chars().all(letters);
        let expected = "the beginning of a variable's name, such as \"QUAY_IO_\"";
        value.matching(fits, expected).map(Some)
    });
    let ca_cert = table.optional("ca_cert", None, |value| value.path().map(Some));
    let tls_verify = table.optional("tls_verify", true, Value::boolean);
    let (url, base, path) = url?;
    Some(Registry {
        url,
        base,
        path,
        credential_prefix: credential_prefix?,
        ca_cert: ca_cert?,
        tls_verify: tls_verify?,
        insecure: insecure?,
    })
}

/// The url as written, the address of the API, and the path before repositories.
fn registry_url(value: &Value<'_>, insecure: bool) -> Option<(String, Url, String)> {
    const EXPECTED: &str = "expected host[:port][/path], such as \"quay.io/fedora\"";
    let text = value.string()?;
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text.as_str()),
    };
    // The value is not repeated in a message as long as it may hold a password.
    if rest.contains('@') {
        return value.refuse("must not hold a user name or a password");
    }
    match (scheme, insecure) {
        (None | Some("https"), false) | (None | Some("http"), true) => {}
        (Some("http"), false) => {
            return value.refuse("plain http needs insecure = true and a loopback host");
        }
        (Some("https"), true) => {
            return value.refuse("is https, but insecure = true asks for http");
        }
        _ => return value.refuse(EXPECTED),
    }
    let scheme = if insecure { "http" } else { "https" };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let base = Url::parse(&format!("{scheme}://{authority}/")).ok();
    let Some(base) = base.filter(|base| !authority.is_empty() && base.path() == "/") else {
        return value.refuse(EXPECTED);
    };
    if base.query().is_some() || base.fragment().is_some() {
        return value.refuse(EXPECTED);
    }
    let loopback = base.host().is_some_and(|host: Host<&str>| is_loopback(&host));
    if insecure && !loopback {
        return value.refuse("insecure = true is for loopback hosts only");
    }
    let path = path.trim_end_matches('/');
    if !path.is_empty() && !is_repository(path) {
        return value.refuse(format!("\"{path}\" cannot be the beginning of a repository name"));
    }
    let path = path.to_owned();
    Some((text, base, path))
}

#[cfg(test)]
mod tests {
    use super::is_repository;

    #[test]
    fn repository_names() {
        for good in ["fedora", "fedora-minimal", "a/b/c", "a__b", "a--b", "a.b_c", "0"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a b", "a___b", "a..b", "a._b", "-a", "a-", "a:b", "ä",
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
        assert!(!is_repository(&"a".repeat(256)));
    }
}
