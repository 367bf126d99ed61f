//! XML as the query protocols answer it: elements inside elements, no attributes but the name space of the root.

use std::fmt::Display;

use uuid::Uuid;

/// Elements, written one after the other.
#[derive(Default)]
pub(super) struct Xml(String);

impl Xml {
    /// One element with text.
    pub(super) fn text(&mut self, name: &str, value: impl Display) -> &mut Self {
        let value = escape(&value.to_string());
        self.0.push_str(&format!("<{name}>{value}</{name}>"));
        self
    }

    /// The same where there is a value.
    pub(super) fn optional(&mut self, name: &str, value: Option<impl Display>) -> &mut Self {
        if let Some(value) = value {
            self.text(name, value);
        }
        self
    }

    /// One element around others.
    pub(super) fn element(&mut self, name: &str, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.push_str(&format!("<{name}>"));
        inside(self);
        self.0.push_str(&format!("</{name}>"));
        self
    }

    /// One element around an `item` for each of `items`.
    pub(super) fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut inside: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.element(name, |list| {
            for item in items {
                list.element("item", |one| inside(one, item));
            }
        })
    }

    /// The tags of something.
    pub(super) fn tags(&mut self, tags: &super::Tags) -> &mut Self {
        self.list("tagSet", tags, |item, (key, value)| {
            item.text("key", key).text("value", value);
        })
    }

    /// The answer of EC2 to `action`.
    pub(super) fn into_ec2(self, action: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{}</requestId>{}\
             </{action}Response>",
            Uuid::new_v4(),
            self.0
        )
    }

    /// The answer of another service of the query protocol.
    pub(super) fn into_query(self, action: &str, name_space: &str) -> String {
        format!(
            "<{action}Response xmlns=\"{name_space}\"><{action}Result>{}</{action}Result>\
             <ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata></{action}Response>",
            self.0,
            Uuid::new_v4()
        )
    }

    /// The answer of S3, whose root is named for the result.
    pub(super) fn into_s3(self, root: &str) -> String {
        format!(
            "<{root} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{}</{root}>",
            self.0
        )
    }
}

/// Text that can stand between tags.
pub(super) fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}
