//! The modules that a file declares, and those that its paths lead to.

use std::collections::BTreeMap;

use super::tokens::{Kind, Token, end_of_group};

/// A module's names from the root of the crate down: empty for `lib.rs`.
pub(super) type ModulePath = Vec<String>;

/// A module that a file declares.
pub(super) struct Declared {
    pub(super) module: ModulePath,
    /// `true` for `mod name { ... }`, which is in the file itself.
    pub(super) is_inline: bool,
}

/// A path, and the module its longest prefix names.
pub(super) struct Used {
    pub(super) module: ModulePath,
    pub(super) line: usize,
    pub(super) path: String,
}

type Modules = BTreeMap<ModulePath, String>;

/// Returns the modules that the file of `module` declares, those within its inline modules included.
pub(super) fn declared_modules(tokens: &[Token], module: &ModulePath) -> Vec<Declared> {
    let mut declared = Vec::new();
    walk(tokens, module, &mut |at, module| {
        if tokens[at].name() == Some("mod") {
            if let (Some(name), Some(next)) = (tokens.get(at + 1).and_then(Token::name), tokens.get(at + 2)) {
                let module = [module, &[name.to_owned()]].concat();
                declared.push(Declared { module, is_inline: next.is('{') });
            }
        }
        at + 1
    });
    declared
}

/// Returns the modules that paths in the file of `module` lead to.
pub(super) fn used_modules(tokens: &[Token], module: &ModulePath, modules: &Modules) -> Vec<Used> {
    let mut used = Vec::new();
    let mut scope = Scope { modules, imported: BTreeMap::new() };
    let mut found = |scope: &Scope<'_>, within: &[String], path: &[String], line| {
        if let Some((module, _)) = scope.module_of(within, path) {
            used.push(Used { module, line, path: path.join("::") });
        }
    };
    // Imports first, because a name may be used above its import.
    walk(tokens, module, &mut |at, within| {
        let is_use = tokens[at].name() == Some("use") && !tokens.get(at + 1).is_some_and(|next| next.is('<'));
        if !is_use {
            return at + 1;
        }
        let mut leaves = Vec::new();
        let end = use_tree(tokens, at + 1, &[], &mut leaves);
        for Leaf { path, alias, line } in leaves {
            found(&scope, within, &path, line);
            if let Some((module, true)) = scope.module_of(within, &path) {
                scope.imported.insert(alias, module);
            }
        }
        end
    });
    walk(tokens, module, &mut |at, within| {
        if let Some(end) = end_of_passed_over(tokens, at) {
            return end;
        }
        let (path, end) = path_at(tokens, at);
        let is_start = at == 0
            || !(tokens[at - 1].kind == Kind::Separator
                || tokens[at - 1].is('$') && path.first() != Some(&"crate".into()));
        if path.len() > 1 && is_start {
            found(&scope, within, &path, tokens[at].line);
        }
        end.max(at + 1)
    });
    used
}

/// Returns the end of a `use`, or of a visibility, whose path is no arrow.
fn end_of_passed_over(tokens: &[Token], at: usize) -> Option<usize> {
    match tokens[at].name()? {
        "use" if !tokens.get(at + 1)?.is('<') => Some(use_tree(tokens, at + 1, &[], &mut Vec::new())),
        "pub" if tokens.get(at + 1)?.is('(') && tokens.get(at + 2)?.name() == Some("in") => {
            Some(end_of_group(tokens, at + 1))
        }
        _ => None,
    }
}

/// Calls `visit` with positions of the tokens and the module each is in. It returns the position to go on from.
fn walk(tokens: &[Token], module: &ModulePath, visit: &mut dyn FnMut(usize, &[String]) -> usize) {
    let mut within = module.clone();
    let mut ends = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if ends.last() == Some(&at) {
            ends.pop();
            within.pop();
        }
        let next = visit(at, &within);
        if tokens[at].name() == Some("mod") && tokens.get(at + 2).is_some_and(|token| token.is('{')) {
            within.push(tokens[at + 1].name().unwrap_or_default().to_owned());
            ends.push(end_of_group(tokens, at + 2) - 1);
        }
        at = next;
    }
}

/// Returns the names of the path that starts at `at`, and its end. Without a name there, the path is empty.
fn path_at(tokens: &[Token], at: usize) -> (Vec<String>, usize) {
    let (mut path, mut end) = (Vec::new(), at);
    while let Some(name) = tokens.get(end).and_then(Token::name) {
        path.push(name.to_owned());
        end += 1;
        let goes_on = tokens.get(end).is_some_and(|token| token.kind == Kind::Separator)
            && tokens.get(end + 1).is_some_and(|token| token.name().is_some());
        if !goes_on {
            break;
        }
        end += 1;
    }
    (path, end)
}

/// One name that a `use` imports.
struct Leaf {
    path: Vec<String>,
    alias: String,
    line: usize,
}

/// Collects what a tree of a `use` imports, and returns its end.
fn use_tree(tokens: &[Token], start: usize, prefix: &[String], leaves: &mut Vec<Leaf>) -> usize {
    let Some(first) = tokens.get(start) else { return start };
    let line = first.line;
    // `::name` is another crate, which the empty name stands for.
    let is_extern = first.kind == Kind::Separator && prefix.is_empty();
    let (names, mut at) = path_at(tokens, start + usize::from(is_extern));
    let root = if is_extern { vec![String::new()] } else { Vec::new() };
    let mut path = [prefix, &root, &names].concat();
    if tokens.get(at).is_some_and(|token| token.kind == Kind::Separator) {
        at += 1;
    }
    if tokens.get(at).is_some_and(|token| token.is('{')) {
        let end = end_of_group(tokens, at);
        at += 1;
        while at + 1 < end {
            at = use_tree(tokens, at, &path, leaves) + 1;
        }
        return end;
    }
    if tokens.get(at).is_some_and(|token| token.is('*')) {
        at += 1;
    } else if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
        path.pop();
    }
    let mut alias = path.last().cloned().unwrap_or_default();
    if tokens.get(at).and_then(Token::name) == Some("as") {
        alias = tokens[at + 1].name().unwrap_or_default().to_owned();
        at += 2;
    }
    leaves.push(Leaf { path, alias, line });
    at
}

/// Meanings that the first name of a path can have in a file.
struct Scope<'a> {
    modules: &'a Modules,
    /// Modules that the file imports, by the name they have there.
    imported: BTreeMap<String, ModulePath>,
}

impl Scope<'_> {
    /// Returns the module that the longest prefix of `path` names, and whether that is the whole path. `None` if the
    /// path starts in another crate or with a name that is no module.
    fn module_of(&self, within: &[String], path: &[String]) -> Option<(ModulePath, bool)> {
        const OWN_NAME: &str = env!("CARGO_PKG_NAME");
        let (first, mut rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" | OWN_NAME => ModulePath::new(),
            "self" => within.to_vec(),
            "super" => within[..within.len().checked_sub(1)?].to_vec(),
            name => {
                let child = [within, &[name.to_owned()]].concat();
                if self.modules.contains_key(&child) { child } else { self.imported.get(name)?.clone() }
            }
        };
        while let Some((name, after)) = rest.split_first() {
            if name == "super" {
                module.pop();
            } else {
                module.push(name.clone());
                if !self.modules.contains_key(&module) {
                    module.pop();
                    break;
                }
            }
            rest = after;
        }
        Some((module, rest.is_empty()))
    }
}
