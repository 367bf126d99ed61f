//! The header by which a registry asks for credentials
//! ([RFC 9110, 11.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1)), as registries and proxies really send it.
//!
//! Accepted beyond the grammar: unquoted values of any characters, blanks around `=`, missing commas, a quoted value
//! without its end, and an unquoted scope with several actions.

use std::iter::Peekable;
use std::str::Chars;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Actions of a scope, which an unquoted list divides by commas.
const ACTIONS: [&str; 4] = ["pull", "push", "delete", "*"];

/// One way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `bearer`, `basic`, in lower case.
    pub(super) scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn new(scheme: &str) -> Self {
        Self {
            scheme: scheme.to_ascii_lowercase(),
            parameters: Vec::new(),
        }
    }

    /// A parameter that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// All challenges of an answer, in order, from one header or several.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).into_iter();
    values
        .flat_map(|value| parse(&String::from_utf8_lossy(value.as_bytes())))
        .collect()
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = Reader(header.chars().peekable());
    // Whether a scheme, and nothing else, stands right before: only there can a token68 follow.
    let mut after_scheme = false;
    loop {
        after_scheme &= !rest.skip_separators();
        let token = rest.token();
        if token.is_empty() {
            if rest.0.next().is_none() {
                return challenges;
            }
            continue;
        }
        rest.skip_blanks();
        let is_parameter = rest.0.peek() == Some(&'=');
        let mut latest = challenges.last_mut().filter(|_| !is_parameter && !after_scheme);
        if latest
            .as_mut()
            .is_some_and(|challenge| challenge.continues_scope(&token))
        {
            continue;
        }
        match challenges.last_mut() {
            Some(challenge) if is_parameter => {
                let name = token.to_ascii_lowercase();
                let value = rest.value();
                challenge.parameters.push((name, value));
                after_scheme = false;
            }
            Some(_) if after_scheme && rest.is_at_end_of_token68() => {
                rest.until_separator();
                after_scheme = false;
            }
            Some(_) | None => {
                challenges.push(Challenge::new(&token));
                after_scheme = true;
            }
        }
    }
}

impl Challenge {
    /// Takes a further action of an unquoted scope: `scope=repository:fedora:pull,push`.
    fn continues_scope(&mut self, token: &str) -> bool {
        let Some((name, value)) = self.parameters.last_mut() else {
            return false;
        };
        let continues = name == "scope" && ACTIONS.contains(&token);
        if continues {
            value.push(',');
            value.push_str(token);
        }
        continues
    }
}

struct Reader<'a>(Peekable<Chars<'a>>);

impl Reader<'_> {
    fn skip_blanks(&mut self) -> bool {
        let mut skipped = false;
        while self.0.next_if(|c| matches!(c, ' ' | '\t')).is_some() {
            skipped = true;
        }
        skipped
    }

    /// Skips blanks and commas; whether there was a comma.
    fn skip_separators(&mut self) -> bool {
        let mut comma = false;
        while let Some(c) = self.0.next_if(|c| matches!(c, ' ' | '\t' | ',')) {
            comma |= c == ',';
        }
        comma
    }

    fn token(&mut self) -> String {
        let is_token = |c: &char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(*c);
        std::iter::from_fn(|| self.0.next_if(is_token)).collect()
    }

    fn until_separator(&mut self) -> String {
        std::iter::from_fn(|| self.0.next_if(|c| !matches!(c, ' ' | '\t' | ','))).collect()
    }

    /// Reports whether the token just read belongs to a token68: further characters of it follow, a comma, or nothing.
    fn is_at_end_of_token68(&mut self) -> bool {
        self.0.peek().is_none_or(|c| matches!(c, ',' | '/'))
    }

    /// The value behind `=`, quoted or not. A token68 ends with as many `=` as it likes, and has no value.
    fn value(&mut self) -> String {
        while self.0.next_if_eq(&'=').is_some() {}
        self.skip_blanks();
        if self.0.next_if_eq(&'"').is_none() {
            return self.until_separator();
        }
        let mut value = String::new();
        while let Some(c) = self.0.next() {
            match c {
                '"' => break,
                '\\' => value.extend(self.0.next()),
                c => value.push(c),
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schemes with their parameters, without those that are empty.
    fn shown(header: &str) -> String {
        let shown = |challenge: &Challenge| {
            let values = challenge.parameters.iter().filter(|(_, value)| !value.is_empty());
            let values = values.map(|(name, value)| format!(" {name}=<{value}>"));
            format!("{}{}", challenge.scheme, values.collect::<String>())
        };
        parse(header).iter().map(shown).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn challenges_are_read_as_they_occur() {
        let usual = "bearer realm=<https://a.example/t> service=<s> scope=<repository:a/b:pull,push>";
        for (header, expected) in [
            (
                r#"Bearer realm="https://a.example/t",service="s",scope="repository:a/b:pull,push""#,
                usual,
            ),
            (
                r#"BEARER Realm = "https://a.example/t" , SERVICE ="s", scope= "repository:a/b:pull,push""#,
                usual,
            ),
            (
                "Bearer realm=https://a.example/t,service=s,scope=repository:a/b:pull,push",
                usual,
            ),
            (
                r#"Bearer realm="https://a.example/t" service="s" scope="repository:a/b:pull,push""#,
                usual,
            ),
            (
                r#", Bearer realm="https://a.example/t",,service="s",scope="repository:a/b:pull,push"#,
                usual,
            ),
            (r#"Basic realm="a \"b\", c""#, r#"basic realm=<a "b", c>"#),
            ("Basic", "basic"),
            ("Negotiate, NTLM, Basic realm=x", "negotiate; ntlm; basic realm=<x>"),
            (
                r#"Basic realm="r", Bearer realm="t""#,
                "basic realm=<r>; bearer realm=<t>",
            ),
            (
                r#"Negotiate YIIabc/d+e==, Bearer realm="t""#,
                "negotiate; bearer realm=<t>",
            ),
            (r#"Negotiate YIIabc==, Bearer realm="t""#, "negotiate; bearer realm=<t>"),
            (r#"Negotiate YIIabc, Bearer realm="t""#, "negotiate; bearer realm=<t>"),
            (
                r#"AWS4 a=1, b="2", Bearer realm="t", error="invalid_token""#,
                "aws4 a=<1> b=<2>; bearer realm=<t> error=<invalid_token>",
            ),
            (r#"Bearer realm="t", service="#, "bearer realm=<t>"),
            ("", ""),
            ("=", ""),
            ("\"", ""),
        ] {
            assert_eq!(shown(header), expected, "{header}");
        }
    }

    #[test]
    fn nothing_that_a_header_can_hold_is_read_for_ever() {
        let parts = [
            "Bearer", " ", ",", "=", "\"", "\\", "realm", "x/y", "==", "\t", "ü", "scope=a", "pull",
        ];
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut header = String::new();
            for _ in 0..8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                header += parts[usize::try_from(state >> 33).unwrap() % parts.len()];
            }
            assert!(parse(&header).len() <= 8, "{header}");
        }
    }
}
