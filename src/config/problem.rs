//! The problems of a configuration, in words that let an operator fix them.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

/// One fault of a configuration file, or of the environment that the file relies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named by the caller.
    pub file: PathBuf,
    /// Line in the file, from 1. `None` if the fault is outside the file.
    pub line: Option<usize>,
    /// Column in the line in characters, from 1. `None` together with `line`.
    pub column: Option<usize>,
    /// Path of the key, such as `consumer_config.aws.base_region`. Empty for the whole file.
    pub key: String,
    /// The fault, and the value that was expected. Never contains a secret.
    pub text: String,
}

impl Problem {
    /// A fault that has no place in the file: a variable that is not set, a file that is missing.
    pub(crate) fn outside(file: &Path, key: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            column: None,
            key: key.into(),
            text: text.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Every fault found, in the order of the file. Prints one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts by place; faults outside the file come first.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self(problems)
    }

    /// The faults, ordered by line.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for Problems {}
