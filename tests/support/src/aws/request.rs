//! The parameters of a query-protocol call. A handler takes what it knows and then calls [`Parameters::finish`]; what is
//! left over is a parameter that the action does not have.

use std::collections::{BTreeMap, BTreeSet};

use super::refusal::{Refusal, Result};
use axum::http::StatusCode;

/// Parameters not yet taken, by their name inside the structure they belong to.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    left: BTreeMap<String, String>,
    /// The prefix of the names, for messages.
    path: String,
    dry_run: bool,
}

impl Parameters {
    /// The parameters of a form, without those that every call has.
    pub(super) fn new(form: &BTreeMap<String, String>) -> Result<Self> {
        let mut parameters = Self {
            left: form.clone(),
            ..Self::default()
        };
        parameters.left.remove("Action");
        parameters.left.remove("Version");
        parameters.dry_run = parameters.flag("DryRun")?.unwrap_or_default();
        Ok(parameters)
    }

    /// A text, where given.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.left.remove(name)
    }

    /// A text that must be given.
    pub(super) fn required(&mut self, name: &str) -> Result<String> {
        self.text(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            let name = format!("{}{name}", self.path);
            Refusal::new(
                "MissingParameter",
                format!("the request must contain the parameter {name}"),
            )
        })
    }

    /// A text with a limited length.
    pub(super) fn short(&mut self, name: &str, longest: usize) -> Result<Option<String>> {
        let value = self.text(name);
        if value.as_ref().is_some_and(|value| value.chars().count() > longest) {
            return Err(self.invalid(name, "is too long"));
        }
        Ok(value)
    }

    /// One of several words.
    pub(super) fn one_of(&mut self, name: &str, words: &[&str]) -> Result<Option<String>> {
        match self.text(name) {
            Some(value) if !words.contains(&value.as_str()) => {
                Err(self.invalid(name, &format!("({value}) is none of {}", words.join(", "))))
            }
            value => Ok(value),
        }
    }

    /// A truth value.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.text(name).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(self.invalid(name, &format!("({other}) is neither true nor false"))),
        }
    }

    /// A number.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        let number = value.parse();
        number
            .map(Some)
            .map_err(|_| self.invalid(name, &format!("({value}) is no number")))
    }

    /// The texts `NAME.1`, `NAME.2`, …
    pub(super) fn list(&mut self, name: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for index in self.indices(name)? {
            // A structure under this name stays, and is refused in the end.
            found.extend(self.left.remove(&format!("{name}.{index}")));
        }
        Ok(found)
    }

    /// The structures `NAME.1.…`, `NAME.2.…`, …
    pub(super) fn structures(&mut self, name: &str) -> Result<Vec<Self>> {
        let indices = self.indices(name)?;
        Ok(indices
            .into_iter()
            .filter_map(|index| self.structure(&format!("{name}.{index}")))
            .collect())
    }

    /// The structure `NAME.…`, where anything of it is given.
    pub(super) fn structure(&mut self, name: &str) -> Option<Self> {
        let prefix = format!("{name}.");
        let inside = self.left.extract_if(.., |key, _| key.starts_with(&prefix));
        let left: BTreeMap<_, _> = inside
            .map(|(key, value)| (key[prefix.len()..].to_owned(), value))
            .collect();
        (!left.is_empty()).then(|| Self {
            left,
            path: format!("{}{prefix}", self.path),
            dry_run: false,
        })
    }

    /// Refuses parameters that the action did not take. A dry run ends here too, so nothing may have been changed
    /// before.
    pub(super) fn finish(self) -> Result<()> {
        if let Some(name) = self.left.keys().next() {
            let message = format!("the parameter {}{name} is not recognized", self.path);
            return Err(Refusal::new("UnknownParameter", message));
        }
        if self.dry_run {
            let message = "the request would have succeeded, but the flag DryRun is set";
            return Err(Refusal::new("DryRunOperation", message).status(StatusCode::PRECONDITION_FAILED));
        }
        Ok(())
    }

    /// A value that cannot be.
    pub(super) fn invalid(&self, name: &str, what: &str) -> Refusal {
        let message = format!("the value of the parameter {}{name} {what}", self.path);
        Refusal::new("InvalidParameterValue", message)
    }

    fn indices(&self, name: &str) -> Result<BTreeSet<u32>> {
        let prefix = format!("{name}.");
        let mut indices = BTreeSet::new();
        for key in self.left.keys() {
            let Some(rest) = key.strip_prefix(&prefix) else {
                continue;
            };
            let digits = rest.split('.').next().unwrap_or_default();
            match digits.parse() {
                Ok(index) if index > 0 => indices.insert(index),
                _ => {
                    let message = format!("the parameter {}{key} is not recognized", self.path);
                    return Err(Refusal::new("UnknownParameter", message));
                }
            };
        }
        Ok(indices)
    }
}
