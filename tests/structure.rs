//! The folders of `src/` import one way, as `src/lib.rs` lists them, and providers do not import each other.
//!
//! The test reads paths that start with `crate::`, `super::`, or `self::`, in `use` lines and elsewhere. It does not see
//! names that come out of a macro or a glob import.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder imports from itself and from those before it.
const FOLDERS: [&str; 11] = [
    "base",
    "model",
    "images",
    "config",
    "messaging",
    "providers",
    "gates",
    "publish",
    "lifecycle",
    "catalog",
    "commands",
];

/// The providers. Their shared parts are beside them, in files of their own.
const PROVIDERS: [&str; 6] = ["aws", "azure", "gcp", "container", "openstack", "local"];

/// The one module that knows every provider.
const MATCH: &str = "providers::connect";

/// Imports that are still to be removed, as module and folder. Each has to occur, so that this list only shrinks.
const KNOWN: [(&str, &str); 3] = [("images::signature", "config"), ("main", "base"), ("main", "config")];

/// A path in a source text, with the line it is on.
type Import = (usize, Vec<String>);

/// The words and signs of a source text with their lines, without comments and literals.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut found, mut line, mut at) = (Vec::new(), 1, 0);
    while at < chars.len() {
        let rest = &chars[at..];
        let starts = |what: &str| rest.iter().copied().take(what.len()).eq(what.chars());
        let length = if starts("//") {
            rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())
        } else if starts("/*") {
            let end = rest.windows(2).position(|pair| pair == ['*', '/']);
            end.map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if starts("\"") {
            string(rest)
        } else if starts("'") {
            character(rest)
        } else if rest[0].is_alphanumeric() || rest[0] == '_' {
            let length = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
            found.push((line, rest[..length].iter().collect()));
            length
        } else if starts("::") {
            found.push((line, "::".to_owned()));
            2
        } else {
            if !rest[0].is_whitespace() {
                found.push((line, rest[0].to_string()));
            }
            1
        };
        line += rest[..length].iter().filter(|c| **c == '\n').count();
        at += length;
    }
    found
}

/// The length of a string literal with its quotation marks.
fn string(text: &[char]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// The length of `r"..."` or `r#"..."#`, with any number of hashes, if the text starts with one.
fn raw_string(text: &[char]) -> Option<usize> {
    let text = if text.first() == Some(&'r') { text } else { return None };
    let hashes = text[1..].iter().take_while(|c| **c == '#').count();
    if text.get(1 + hashes) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let inside = 2 + hashes;
    let length = text[inside..].windows(end.len()).position(|window| window == end)?;
    Some(inside + length + end.len())
}

/// The length of a character literal, or of the quotation mark that starts a lifetime.
fn character(text: &[char]) -> usize {
    if text.get(1) == Some(&'\\') {
        let end = text[3..].iter().position(|c| *c == '\'');
        return end.map_or(text.len(), |end| end + 4);
    }
    if text.get(2) == Some(&'\'') { 3 } else { 1 }
}

/// The paths of a source text, absolute, as seen from its module.
fn imports(module: &[String], text: &str) -> Vec<Import> {
    let tokens = tokens(text);
    let word = |at: usize| tokens.get(at).map_or("", |(_, word)| word.as_str());
    // The module each open brace belongs to, if it is a module's.
    let mut open: Vec<Option<String>> = Vec::new();
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        match word(at) {
            "{" => open.push((at > 1 && word(at - 2) == "mod").then(|| word(at - 1).to_owned())),
            "}" => drop(open.pop()),
            "crate" | "super" | "self" | "cloud_image_uploader"
                if word(at + 1) == "::" && (at == 0 || word(at - 1) != "::") =>
            {
                let mut base: Vec<String> = module.to_vec();
                base.extend(open.iter().flatten().cloned());
                let mut next = at;
                loop {
                    match word(next) {
                        "crate" | "cloud_image_uploader" => base.clear(),
                        "super" => drop(base.pop()),
                        "self" => {}
                        _ => break,
                    }
                    next += 2;
                }
                let mut paths = Vec::new();
                tree(&tokens, &mut next, &base, &mut paths);
                found.extend(paths.into_iter().map(|path| (tokens[at].0, path)));
            }
            _ => {}
        }
    }
    found
}

/// Reads a path, with whatever its braces list, from `at` on.
fn tree(tokens: &[(usize, String)], at: &mut usize, base: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = base.to_vec();
    while let Some((_, word)) = tokens.get(*at) {
        if word == "{" {
            *at += 1;
            while tokens.get(*at).is_some_and(|(_, word)| word != "}") {
                tree(tokens, at, &path, found);
                // An alias, or the comma before the next one.
                while tokens.get(*at).is_some_and(|(_, word)| word != "," && word != "}") {
                    *at += 1;
                }
                if tokens.get(*at).is_some_and(|(_, word)| word == ",") {
                    *at += 1;
                }
            }
            *at += 1;
            return;
        }
        path.push(word.clone());
        *at += 1;
        if tokens.get(*at).is_none_or(|(_, sign)| sign != "::") {
            break;
        }
        *at += 1;
    }
    found.push(path);
}

/// Why a module may not have an import: the folder, or the provider, that it must not know.
fn forbidden(module: &[String], path: &[String]) -> Option<String> {
    let place = |name: &str| FOLDERS.iter().position(|folder| *folder == name);
    let target = place(path.first()?)?;
    let Some(own) = module.first().and_then(|folder| place(folder)) else {
        // The program dispatches to its commands, and knows nothing else.
        return (path[0] != "commands").then(|| path[0].clone());
    };
    if target > own {
        return Some(path[0].clone());
    }
    let provider = |path: &[String]| {
        let name = path.get(1).filter(|name| PROVIDERS.contains(&name.as_str()))?;
        (path[0] == "providers").then(|| name.clone())
    };
    let other = provider(path).filter(|_| own == target && module.join("::") != MATCH)?;
    (provider(module).as_ref() != Some(&other)).then_some(other)
}

/// All source files with their modules. The library's own file, which only lists modules, and the build script are none.
fn sources() -> Vec<(Vec<String>, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().with_extension("");
            let mut module: Vec<String> = name.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if module.last().is_some_and(|part| part == "mod") {
                module.pop();
            }
            let is_rust = path.extension().is_some_and(|kind| kind == "rs");
            if is_rust && !matches!(module.join("::").as_str(), "lib" | "build") {
                found.push((module, path));
            }
        }
    }
    found.sort();
    found
}

/// The forbidden imports of a text, by what they are of.
fn violations(module: &str, text: &str) -> BTreeMap<String, Vec<usize>> {
    let module: Vec<String> = module.split("::").map(str::to_owned).collect();
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (line, path) in imports(&module, text) {
        if let Some(of) = forbidden(&module, &path) {
            found.entry(of).or_default().push(line);
        }
    }
    found
}

#[test]
fn folders_import_one_way() {
    let mut unexpected = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, path) in sources() {
        let module = module.join("::");
        for (of, lines) in violations(&module, &fs::read_to_string(&path).unwrap()) {
            if KNOWN.contains(&(module.as_str(), of.as_str())) {
                seen.insert((module.clone(), of));
            } else {
                unexpected.push(format!("{}:{lines:?}: {module} must not know {of}", path.display()));
            }
        }
    }
    assert_eq!(unexpected, Vec::<String>::new());
    let gone: Vec<_> = KNOWN
        .iter()
        .filter(|(module, of)| !seen.contains(&((*module).to_owned(), (*of).to_owned())))
        .collect();
    assert!(gone.is_empty(), "no longer there, so take them out of KNOWN: {gone:?}");
}

/// Readers take the order from `src/lib.rs`.
#[test]
fn the_library_lists_its_folders_in_this_order() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let listed: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "))
        .map(|rest| rest.trim_end_matches([' ', '{', ';']))
        .collect();
    let order: Vec<_> = FOLDERS.into_iter().filter(|folder| listed.contains(folder)).collect();
    assert_eq!(listed, order);
}

#[test]
fn an_upward_import_is_found() {
    for text in [
        "use crate::publish::work::Work;",
        "use crate::{base::http, publish::{report, work}};",
        "fn of(work: &crate::publish::work::Work) {}",
        "mod tests { use super::super::super::publish; }",
    ] {
        let found = violations("messaging::consumer", text);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["publish"], "{text}");
    }
}

#[test]
fn an_import_of_another_provider_is_found() {
    for text in [
        "use crate::providers::gcp::client;",
        "use super::super::gcp;",
        "use super::super::{contract::Task, gcp::client::Client as Other};",
    ] {
        let found = violations("providers::aws::stage", text);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["gcp"], "{text}");
    }
    let shared = violations("providers::poll", "use super::aws;");
    assert_eq!(shared.keys().collect::<Vec<_>>(), ["aws"]);
}

#[test]
fn downward_imports_comments_and_text_are_no_violations() {
    let text = r##"
        //! [`crate::publish::work`] joins deliveries.
        /* crate::publish */
        use crate::base::{http, retry::Policy as Tries};
        use crate::providers::contract::{Mark, Task};
        use super::{client, error::Error};
        const TEXT: &str = "crate::publish \" crate::publish";
        const RAW: &str = r#"crate::publish" crate::publish"#;
        const SIGNS: (char, char) = ('"', '\'');
        pub(in crate::providers) fn version<'a>(of: &'a str) -> &'a str { crate::VERSION }
        mod tests { use super::super::client; use super::*; }
    "##;
    assert_eq!(violations("providers::aws::stage", text), BTreeMap::new());
}

#[test]
fn the_program_only_dispatches() {
    let text = "use cloud_image_uploader::commands::run;\nuse cloud_image_uploader::base::http;";
    assert_eq!(violations("main", text), BTreeMap::from([("base".to_owned(), vec![2])]));
}
