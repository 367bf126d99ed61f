//! Walks a parsed TOML file and notes every problem with its place, instead of ending at the first.
//!
//! A reading function returns `Option`: `None` means that the problem is noted already, so callers
//! read all keys first and put the values together afterwards.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Problems};

/// One file and the problems found in it so far.
pub(crate) struct Document<'a> {
    file: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
}

/// Parses `text` and hands its root to `read`. `Ok` only if nothing was found wrong.
pub(crate) fn read<T>(file: &Path, text: &str, read: impl FnOnce(&Table<'_>) -> Option<T>) -> Result<T, Problems> {
    let document = Document {
        file,
        text,
        problems: RefCell::default(),
    };
    let value = match DeTable::parse(text) {
        Ok(root) => {
            let root = Table {
                document: &document,
                key: String::new(),
                at: None,
                entries: root.get_ref(),
                asked: RefCell::default(),
            };
            let value = read(&root);
            root.refuse_unknown();
            value
        }
        Err(error) => {
            // The error's own Display quotes the line, and a line may hold a password.
            let at = error.span().map(|span| span.start);
            document.note("", at, format!("not valid TOML: {}", error.message()));
            None
        }
    };
    let problems = document.problems.into_inner();
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(Problems::new(problems)),
    }
}

impl Document<'_> {
    fn note(&self, key: &str, at: Option<usize>, text: impl Into<String>) {
        let mut problem = Problem::outside(self.file, key, text);
        if let Some((line, column)) = at.and_then(|at| self.place(at)) {
            problem.line = Some(line);
            problem.column = Some(column);
        }
        self.problems.borrow_mut().push(problem);
    }

    fn place(&self, at: usize) -> Option<(usize, usize)> {
        let before = self.text.get(..at.min(self.text.len()))?;
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Some((line, before[start..].chars().count() + 1))
    }
}

/// A table of the file. It remembers which keys were asked for; the others are unknown.
pub(crate) struct Table<'a> {
    document: &'a Document<'a>,
    key: String,
    at: Option<usize>,
    entries: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    /// The value of `key`, if given.
    pub(crate) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        self.asked.borrow_mut().push(key);
        let mut found = self
            .entries
            .iter()
            .filter(|(name, _)| self.same(name.get_ref(), key))
            .map(|(name, value)| self.value(name.get_ref(), name.span().start, value.get_ref()));
        let first = found.next();
        for other in found {
            other.note("given twice, in different spellings");
        }
        first
    }

    /// The value of `key` as `read` understands it, or `default` if the key is not given.
    pub(crate) fn optional<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        self.get(key).map_or(Some(default), |value| read(&value))
    }

    /// The value of `key` as `read` understands it. A missing key is a problem of this table.
    pub(crate) fn required<T>(&self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        match self.get(key) {
            Some(value) => read(&value),
            None => {
                let key = join(&self.key, key);
                self.document.note(&key, self.at, "missing, but required");
                None
            }
        }
    }

    /// All values of a table whose keys are free to choose, with their names, in file order.
    pub(crate) fn all(&self) -> Vec<(&'a str, Value<'a>)> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .map(|(name, value)| {
                let at = name.span().start;
                let name: &'a str = name.get_ref();
                (name, self.value(name, at, value.get_ref()))
            })
            .collect();
        all.sort_by_key(|(_, value)| value.at);
        all
    }

    /// Whether the table holds nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Notes a problem of the table as a whole.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.document.note(&self.key, self.at, text);
    }

    /// Notes every unknown key, with the nearest known one.
    pub(crate) fn refuse_unknown(&self) {
        let asked = self.asked.borrow();
        for (name, value) in self.all() {
            if asked.iter().any(|key| self.same(name, key)) {
                continue;
            }
            value.note(match nearest(name, &asked) {
                Some(key) => format!("unknown key; did you mean \"{key}\"?"),
                None => format!("unknown key; known here: {}", asked.join(", ")),
            });
        }
    }

    /// Top-level keys may be written in any case, as fedora-messaging lower-cases them.
    fn same(&self, name: &str, key: &str) -> bool {
        name == key || (self.key.is_empty() && name.to_lowercase() == key)
    }

    fn value(&self, name: &str, at: usize, value: &'a DeValue<'a>) -> Value<'a> {
        Value {
            document: self.document,
            key: join(&self.key, name),
            at,
            value,
        }
    }
}

/// A value of the file, with the path of its key and its place.
pub(crate) struct Value<'a> {
    document: &'a Document<'a>,
    key: String,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// The path of the key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The line of the file, from 1.
    pub(crate) fn line(&self) -> usize {
        self.document.place(self.at).map_or(0, |(line, _)| line)
    }

    /// TOML's name for this kind of value.
    pub(crate) fn raw(&self) -> &'a DeValue<'a> {
        self.value
    }

    /// Notes a problem of this value.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.document.note(&self.key, Some(self.at), text);
    }

    /// Notes a problem and gives the `None` that says so.
    pub(crate) fn refuse<T>(&self, text: impl Into<String>) -> Option<T> {
        self.note(text);
        None
    }

    /// Notes that the value has the wrong type.
    pub(crate) fn wrong_type<T>(&self, expected: impl Display) -> Option<T> {
        let found = match self.value.type_str() {
            kind @ ("integer" | "array") => format!("an {kind}"),
            kind => format!("a {kind}"),
        };
        self.refuse(format!("expected {expected}, found {found}"))
    }

    /// A string, which may be empty.
    pub(crate) fn string(&self) -> Option<String> {
        match self.value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => self.wrong_type("a string"),
        }
    }

    /// A string with something in it.
    pub(crate) fn filled(&self) -> Option<String> {
        let text = self.string()?;
        if text.trim().is_empty() {
            return self.refuse("must not be empty");
        }
        Some(text)
    }

    /// A string that `fits`; `expected` says in words what that means.
    pub(crate) fn matching(&self, fits: impl Fn(&str) -> bool, expected: &str) -> Option<String> {
        let text = self.string()?;
        if !fits(&text) {
            return self.refuse(format!("expected {expected}, found \"{text}\""));
        }
        Some(text)
    }

    /// One of a few words.
    pub(crate) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let names = names.join(", ");
        let Some(text) = self.value.as_str() else {
            return self.wrong_type(format!("one of {names}"));
        };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Some(*choice),
            None => self.refuse(format!("expected one of {names}, found \"{text}\"")),
        }
    }

    /// True or false.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match self.value.as_bool() {
            Some(value) => Some(value),
            None => self.wrong_type("true or false"),
        }
    }

    /// A whole number in `range`.
    pub(crate) fn integer<T: TryFrom<i64>>(&self, range: RangeInclusive<i64>) -> Option<T> {
        let Some(integer) = self.value.as_integer() else {
            return self.wrong_type("an integer");
        };
        let value = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match value.filter(|value| range.contains(value)).map(T::try_from) {
            Some(Ok(value)) => Some(value),
            _ if *range.end() == i64::MAX => self.refuse(format!("must be at least {}", range.start())),
            _ => self.refuse(format!("must be between {} and {}", range.start(), range.end())),
        }
    }

    /// The items of an array, each with its own place.
    pub(crate) fn items(&self) -> Option<Vec<Value<'a>>> {
        let Some(array) = self.value.as_array() else {
            return self.wrong_type("an array");
        };
        let items = array.iter().enumerate().map(|(index, item)| Value {
            document: self.document,
            key: format!("{}[{index}]", self.key),
            at: item.span().start,
            value: item.get_ref(),
        });
        Some(items.collect())
    }

    /// The items of an array as `read` understands them; `None` if any of them is wrong.
    pub(crate) fn list<T>(&self, read: impl Fn(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        let items: Vec<_> = self.items()?.iter().map(read).collect();
        items.into_iter().collect()
    }

    /// A list with at least one item.
    pub(crate) fn some<T>(&self, read: impl Fn(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        let list = self.list(read)?;
        if list.is_empty() {
            return self.refuse("must not be empty");
        }
        Some(list)
    }

    /// A table that `read` understands completely: keys it does not ask for are refused.
    pub(crate) fn table<T>(&self, read: impl FnOnce(&Table<'a>) -> Option<T>) -> Option<T> {
        let table = self.free_table()?;
        let value = read(&table);
        table.refuse_unknown();
        value
    }

    /// A table with keys of the operator's choice.
    pub(crate) fn free_table(&self) -> Option<Table<'a>> {
        match self.value.as_table() {
            Some(entries) => Some(Table {
                document: self.document,
                key: self.key.clone(),
                at: Some(self.at),
                entries,
                asked: RefCell::default(),
            }),
            None => self.wrong_type("a table"),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    let name = if plain { name.to_owned() } else { format!("{name:?}") };
    if path.is_empty() {
        name
    } else {
        format!("{path}.{name}")
    }
}

/// The known key that `name` was most likely meant to be: up to a third of its letters differ.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let name = name.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|key| (strsim::damerau_levenshtein(&name, key), *key))
        .filter(|(distance, key)| *distance <= (key.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, key)| key)
}
