//! Images found by name, by family, and in lists.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::PROJECT;
use super::images::Project;
use super::rules::{Refused, absent, field_of, filter, invalid};

impl Project {
    /// An image by name or number.
    pub(super) fn get(&self, key: &str) -> Result<&Value, Refused> {
        let by_id = || self.images.values().find(|image| image["id"] == key);
        let found = self.images.get(key).or_else(by_id);
        found.ok_or_else(|| absent(&format!("projects/{PROJECT}/global/images/{key}")))
    }

    /// The newest of a family that is not deprecated.
    pub(super) fn head_of(&self, family: &str) -> Result<&Value, Refused> {
        let usable = |image: &&Value| {
            let state = image["deprecated"]["state"].as_str();
            image["family"] == family && image["status"] == "READY" && matches!(state, None | Some("ACTIVE"))
        };
        let created = |image: &&Value| {
            image["creationTimestamp"]
                .as_str()
                .and_then(|at| at.parse::<Timestamp>().ok())
        };
        let newest = self.images.values().filter(usable).max_by_key(created);
        newest.ok_or_else(|| absent(&format!("projects/{PROJECT}/global/images/family/{family}")))
    }

    pub(super) fn list(&self, query: &HashMap<String, String>) -> Result<Value, Refused> {
        let asked = query.get("maxResults").map_or(Ok(500), |text| text.parse::<usize>());
        let asked = asked.map_err(|_| invalid("maxResults"))?;
        if !(1..=500).contains(&asked) {
            return Err(invalid("maxResults must be from 1 to 500"));
        }
        let size = self.page.map_or(asked, |page| page.min(asked));
        let filter = query.get("filter").map(|text| filter(text)).transpose()?;
        let after = query.get("pageToken").cloned().unwrap_or_default();
        let fits = |image: &&Value| {
            filter
                .as_ref()
                .is_none_or(|(field, value)| field_of(image, field) == *value)
        };
        let mut rest = self
            .images
            .iter()
            .filter(|(name, _)| **name > after)
            .map(|(_, image)| image)
            .filter(fits);
        let items: Vec<_> = rest.by_ref().take(size).cloned().collect();
        let mut answer = json!({"kind": "compute#imageList", "id": format!("projects/{PROJECT}/global/images")});
        if rest.next().is_some()
            && let Some(last) = items.last()
        {
            answer["nextPageToken"] = last["name"].clone();
        }
        if !items.is_empty() {
            answer["items"] = json!(items);
        }
        if self.partial {
            answer["warning"] = json!({"code": "UNREACHABLE", "message": "some images cannot be reached"});
        }
        Ok(answer)
    }

    /// Records the families whose head changed.
    pub(super) fn note_heads(&mut self) {
        let of_images = self.images.values().filter_map(|image| image["family"].as_str());
        let families: BTreeSet<_> = of_images.map(str::to_owned).chain(self.heads.keys().cloned()).collect();
        for family in families {
            let head = self
                .head_of(&family)
                .ok()
                .and_then(|image| image["name"].as_str())
                .map(str::to_owned);
            let known = self.heads.entry(family).or_default();
            if *known.last().unwrap_or(&None) != head {
                known.push(head);
            }
        }
    }

    pub(super) fn name_of(&self, key: &str) -> Result<String, Refused> {
        Ok(self.get(key)?["name"].as_str().unwrap_or_default().to_owned())
    }
}
