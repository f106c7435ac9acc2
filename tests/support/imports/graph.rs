//! [`ImportGraph`]: files and the arrows between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use super::paths::{ModulePath, declared_modules, used_modules};
use super::tokens::{tokens, without_tests};

/// A path that is written in one file and leads to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrow {
    pub(crate) from: String,
    pub(crate) to: String,
    /// The line of `from` on which the path is written.
    pub(crate) line: usize,
    pub(crate) path: String,
}

impl fmt::Display for Arrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} uses {}, by `{}`", self.from, self.line, self.to, self.path)
    }
}

/// The files of a crate, and the first arrow from each file to each other one.
#[derive(Debug)]
pub(crate) struct ImportGraph {
    pub(crate) files: BTreeSet<String>,
    pub(crate) arrows: Vec<Arrow>,
}

impl ImportGraph {
    /// Reads all files of a directory that holds a `lib.rs`.
    pub(crate) fn of_directory(directory: &Path) -> Self {
        fn read(directory: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
                if path.is_dir() {
                    read(&path, &format!("{name}/"), files);
                } else if name.ends_with(".rs") {
                    files.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let mut files = Vec::new();
        read(directory, "", &mut files);
        Self::of_files(files.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }

    /// Takes the names and texts of files, of which `lib.rs` is one.
    ///
    /// # Panics
    ///
    /// If a module is declared whose file is missing.
    pub(crate) fn of_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let texts: BTreeMap<&str, &str> = files.into_iter().collect();
        let mut modules = BTreeMap::new();
        let mut sources = Vec::new();
        // Modules are found from the root, so that the files of those that only tests declare stay out.
        let mut found = vec![(ModulePath::new(), "lib.rs".to_owned())];
        while let Some((module, name)) = found.pop() {
            let text = texts.get(name.as_str()).unwrap_or_else(|| panic!("there is no {name}"));
            let tokens = without_tests(tokens(text));
            for declared in declared_modules(&tokens, &module) {
                let file = if declared.is_inline {
                    name.clone()
                } else {
                    let base = declared.module.join("/");
                    let directory = format!("{base}/mod.rs");
                    let file = if texts.contains_key(directory.as_str()) { directory } else { format!("{base}.rs") };
                    found.push((declared.module.clone(), file.clone()));
                    file
                };
                modules.insert(declared.module, file);
            }
            modules.insert(module.clone(), name.clone());
            sources.push((module, name, tokens));
        }

        let mut arrows: BTreeMap<(String, String), Arrow> = BTreeMap::new();
        for (module, from, tokens) in &sources {
            for used in used_modules(tokens, module, &modules) {
                let to = &modules[&used.module];
                let arrow = Arrow { from: from.clone(), to: to.clone(), line: used.line, path: used.path };
                let first = arrows.entry((from.clone(), to.clone())).or_insert_with(|| arrow.clone());
                if arrow.line < first.line {
                    *first = arrow;
                }
            }
        }
        Self {
            files: sources.into_iter().map(|(_, name, _)| name).collect(),
            arrows: arrows.into_values().filter(|arrow| arrow.from != arrow.to).collect(),
        }
    }
}
