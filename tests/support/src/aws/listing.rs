//! Filters and pages, which all calls that list things have in common.

use std::collections::BTreeSet;

use super::{
    Tags,
    refusal::{Refusal, Result},
    request::Parameters,
};

/// The parameter `Filter`.
pub(super) struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    /// Reads the filters. `known` are those that the action has beside the ones about tags.
    pub(super) fn read(parameters: &mut Parameters, known: &[&str]) -> Result<Self> {
        Self::named("Filter", parameters, known)
    }

    /// The same where the parameter is called otherwise: the forms of EC2 are not all alike.
    pub(super) fn named(parameter: &str, parameters: &mut Parameters, known: &[&str]) -> Result<Self> {
        let mut filters = Vec::new();
        for mut filter in parameters.structures(parameter)? {
            let name = filter.required("Name")?;
            let values = filter.list("Value")?;
            filter.finish()?;
            if !name.starts_with("tag:") && name != "tag-key" && !known.contains(&name.as_str()) {
                return Err(Refusal::new(
                    "InvalidParameterValue",
                    format!("the filter '{name}' is invalid"),
                ));
            }
            if values.is_empty() {
                let message = format!("the filter '{name}' has no values");
                return Err(Refusal::new("InvalidParameterValue", message));
            }
            filters.push((name, values));
        }
        Ok(Self(filters))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether something passes all filters: each by at least one of its values.
    pub(super) fn pass(&self, tags: &Tags, attribute: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|(name, wanted)| {
            let found = match name.strip_prefix("tag:") {
                Some(key) => tags.get(key).cloned().into_iter().collect(),
                None if name == "tag-key" => tags.keys().cloned().collect(),
                None => attribute(name),
            };
            wanted
                .iter()
                .any(|pattern| found.iter().any(|value| alike(pattern.as_bytes(), value.as_bytes())))
        })
    }
}

/// Whether a value fits a pattern with `*` and `?`.
fn alike(pattern: &[u8], value: &[u8]) -> bool {
    match (pattern.split_first(), value.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            alike(rest, value) || value.split_first().is_some_and(|(_, shorter)| alike(pattern, shorter))
        }
        (Some((b'?', rest)), Some((_, shorter))) => alike(rest, shorter),
        (Some((wanted, rest)), Some((found, shorter))) => wanted == found && alike(rest, shorter),
        _ => false,
    }
}

/// `MaxResults` and `NextToken`.
pub(super) struct Page {
    after: Option<String>,
    size: usize,
}

impl Page {
    /// Reads the parameters. `named` says whether the call asks for things by id, which excludes pages.
    pub(super) fn read(parameters: &mut Parameters, named: bool, limit: Option<usize>) -> Result<Self> {
        let size = parameters.number("MaxResults")?;
        let after = parameters.text("NextToken").filter(|token| !token.is_empty());
        if named && (size.is_some() || after.is_some()) {
            let message = "ids and MaxResults cannot be given in the same request";
            return Err(Refusal::new("InvalidParameterCombination", message));
        }
        if size.is_some_and(|size| !(5..=1000).contains(&size)) {
            return Err(parameters.invalid("MaxResults", "must be from 5 to 1000"));
        }
        let after = match after {
            None => None,
            Some(token) => Some(
                token
                    .strip_prefix("after:")
                    .ok_or_else(|| parameters.invalid("NextToken", "is not valid"))?
                    .to_owned(),
            ),
        };
        let size = size.and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX);
        Ok(Self {
            after,
            size: if named { size } else { size.min(limit.unwrap_or(size)) },
        })
    }

    /// Cuts a list that is in the order of its ids; with the token for the rest, if there is a rest.
    pub(super) fn cut<T>(self, mut items: Vec<T>, id: impl Fn(&T) -> &str) -> (Vec<T>, Option<String>) {
        if let Some(after) = self.after {
            items.retain(|item| id(item) > after.as_str());
        }
        let more = items.len() > self.size;
        items.truncate(self.size);
        let token = items.last().filter(|_| more).map(|last| format!("after:{}", id(last)));
        (items, token)
    }
}

/// The ids asked for must all have been found.
pub(super) fn all_found<'a>(
    wanted: &[String],
    found: impl IntoIterator<Item = &'a str>,
    missing: impl Fn(&str) -> Refusal,
) -> Result<()> {
    let found: BTreeSet<_> = found.into_iter().collect();
    match wanted.iter().find(|id| !found.contains(id.as_str())) {
        Some(id) => Err(missing(id)),
        None => Ok(()),
    }
}
