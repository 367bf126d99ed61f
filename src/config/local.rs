//! `[consumer_config.local]`: images as files in a directory. Needs no broker and no account.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Section;
use super::container;
use super::reader::{Table, Value};
use crate::model::target::{self, Rules};

/// Where files go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// `publish_amqp_messages`: send notifications. Default: false.
    pub publish_amqp_messages: bool,
    /// `directory`: made when missing. A relative path starts at the working directory.
    pub directory: PathBuf,
    /// `repos`: subvariant to repository, which names the OCI layout. Default: none, and a layout
    /// is named after its subvariant.
    pub repos: BTreeMap<String, String>,
}

impl Section for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn publish_amqp_messages(&self) -> bool {
        self.publish_amqp_messages
    }

    fn locations(&self) -> Vec<String> {
        vec![self.directory.display().to_string()]
    }

    fn rules(&self) -> Box<dyn Rules> {
        Box::new(target::local::LocalRules {
            repos: self.repos.clone(),
        })
    }
}

impl Local {
    pub(super) fn read(table: &Table<'_>) -> Option<Self> {
        let publish_amqp_messages = table.optional("publish_amqp_messages", false, Value::boolean);
        let directory = table.required("directory", Value::path);
        let repos = table.optional("repos", BTreeMap::new(), folders);
        Some(Self {
            publish_amqp_messages: publish_amqp_messages?,
            directory: directory?,
            repos: repos?,
        })
    }
}

/// Repositories as folders: none may lie within another, since a layout is replaced as a whole.
fn folders(value: &Value<'_>) -> Option<BTreeMap<String, String>> {
    let repos = container::repos(value)?;
    let mut good = true;
    for (inner, value) in value.free_table()?.all() {
        let name = repos.get(inner)?;
        let within = |outer: &&String| {
            name.strip_prefix(outer.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        };
        if let Some((outer, folder)) = repos.iter().find(|(_, folder)| within(folder)) {
            value.note(format!(
                "the layout \"{name}\" of subvariant {inner} would lie within \"{folder}\" of subvariant {outer}"
            ));
            good = false;
        }
    }
    good.then_some(repos)
}
