//! The text that an operator reads about a mistake, without the parts that differ from run to run: a document to
//! compare with.

use uuid::Uuid;

use crate::program::Exit;

/// Shorter runs of hexadecimal digits are words or numbers.
const SHORTEST_ID: usize = 12;
/// Digits and dashes of a UUID.
const UUID: usize = 36;
/// Characters of a temporary folder's name after its prefix.
const RANDOM: usize = 6;

/// Mistakes, each with what the program said.
#[derive(Debug, Default)]
pub struct Advice(String);

impl Advice {
    /// Adds what was said: the findings of `check` that are bad, the errors of the log, and the exit code.
    pub fn add(&mut self, mistake: &str, exit: &Exit) {
        let findings = exit.stdout.lines().filter(|line| line.starts_with("failed: "));
        // Worlds without a broker leave its address as it is by default, and it is not what they are about.
        let findings = findings.filter(|line| !line.starts_with("failed: broker localhost:5672"));
        let errors = exit.stderr.lines().filter_map(|line| match line.split_once(" ERROR ") {
            Some((_, error)) => Some(error),
            // Before there is a log.
            None if line.starts_with("20") || line.trim().is_empty() => None,
            None => Some(line),
        });
        let said: Vec<_> = findings.chain(errors).map(steady).collect();
        let code = exit.code.map_or_else(|| "none".to_owned(), |code| code.to_string());
        self.0 += &format!("# {mistake}\n\n{}\n\nexit code {code}\n\n", said.join("\n"));
    }

    /// All of it.
    pub fn document(&self) -> &str {
        self.0.trim_end()
    }
}

/// The text with ports, identifiers, and folders made equal.
fn steady(text: &str) -> String {
    let folder = folder();
    let text = text.replace(repository(), "REPOSITORY");
    let mut steady = String::new();
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let is_start = !steady.ends_with(|c: char| c.is_ascii_alphanumeric());
        let hex = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        let is_end = |at: usize| !rest[at..].starts_with(|c: char| c.is_ascii_alphanumeric());
        let port = ["127.0.0.1:", "localhost:"]
            .into_iter()
            .find_map(|host| Some((host, rest.strip_prefix(host)?)))
            .filter(|(_, port)| port.starts_with(|c: char| c.is_ascii_digit()));
        if let Some((host, port)) = port {
            steady.push_str(host);
            rest = port.trim_start_matches(|c: char| c.is_ascii_digit());
            steady.push_str("PORT");
        } else if let Some(after) = rest.strip_prefix(&folder).and_then(|random| random.get(RANDOM..)) {
            steady.push_str("FOLDER");
            rest = after;
        } else if is_start && rest.get(..UUID).is_some_and(|text| Uuid::try_parse(text).is_ok()) {
            steady.push_str("ID");
            rest = &rest[UUID..];
        } else if is_start && hex >= SHORTEST_ID && is_end(hex) {
            steady.push_str("ID");
            rest = &rest[hex..];
        } else {
            steady.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    steady
}

/// How the paths of temporary folders begin.
fn folder() -> String {
    std::env::temp_dir().join(".tmp").display().to_string()
}

/// Where this repository is.
fn repository() -> &'static str {
    env!("CARGO_MANIFEST_DIR").trim_end_matches("/tests/support")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_is_made_equal() {
        let path = format!("read {}A1b2C3/config.toml", folder());
        for (text, expected) in [
            (
                "connect to localhost:40123: refused",
                "connect to localhost:PORT: refused",
            ),
            (path.as_str(), "read FOLDER/config.toml"),
            (
                concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
                "REPOSITORY/tests/support/Cargo.toml",
            ),
            (
                "client 0f6b7a0e-6d8e-4d37-a8f2-9d1d3a5c7e42, blob vhds-0123456789abcdef0123456789abcdef",
                "client ID, blob vhds-ID",
            ),
            (
                "ami-0123456789abcdef0 of Fedora-43-20251023.0",
                "ami-ID of Fedora-43-20251023.0",
            ),
            ("AADSTS7000222 and 125523088429x", "AADSTS7000222 and 125523088429x"),
        ] {
            assert_eq!(steady(text), expected);
        }
    }
}
