//! The source files of the crate lie in layers, and their imports form no cycle.
//!
//! ```sh
//! cargo test --test main layers
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::imports::ImportGraph;

/// The layers from the ground up, each with the modules it consists of. A file may use files of its own layer and of
/// those before it. A module stands for its children, too.
const LAYERS: &[(&str, &[&str])] = &[
    ("ground", &["error", "fingerprint", "aligned", "bounds", "limits", "typed", "key_group", "handles"]),
    ("reading", &["comparison", "scan", "source"]),
    ("bytes", &["image"]),
    ("values", &["snapshot"]),
    ("contract", &["store", "ext"]),
    ("stores", &["memory", "hot"]),
    ("kit", &["conformance"]),
    ("root", &["lib", "fuzzing"]),
];

/// Returns every violation: cycles, arrows to a later layer, and modules and files that the table does not match.
fn violations(graph: &ImportGraph, layers: &[(&str, &[&str])]) -> Vec<String> {
    let mut violations = Vec::new();
    for cycle in graph.cycles() {
        let way: Vec<_> = cycle.shortest.iter().map(|arrow| format!("\n    {arrow}")).collect();
        let files: Vec<_> = cycle.files.iter().copied().collect();
        violations.push(format!("{} files use each other: {}{}", files.len(), files.join(", "), way.concat()));
    }

    let module_of = |file: &str| file.split(['/', '.']).next().unwrap_or_default().to_owned();
    let layer_of = |file: &str| layers.iter().position(|(_, modules)| modules.contains(&module_of(file).as_str()));
    for arrow in &graph.arrows {
        if let (Some(from), Some(to)) = (layer_of(&arrow.from), layer_of(&arrow.to)) {
            if from < to {
                let (from, to) = (layers[from].0, layers[to].0);
                violations.push(format!("the layer `{from}` uses the later layer `{to}`:\n    {arrow}"));
            }
        }
    }
    for file in graph.files.iter().filter(|file| layer_of(file).is_none()) {
        violations.push(format!("{file} is in no layer of the table"));
    }
    let present: BTreeSet<_> = graph.files.iter().map(|file| module_of(file)).collect();
    for module in layers.iter().flat_map(|(_, modules)| *modules).filter(|&&module| !present.contains(module)) {
        violations.push(format!("the table lists the module `{module}`, which has no file"));
    }
    violations
}

#[test]
fn every_file_uses_only_files_of_its_own_layer_or_an_earlier_one_and_there_is_no_cycle() {
    let graph = ImportGraph::of_directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let violations = violations(&graph, LAYERS);
    assert!(violations.is_empty(), "{}\n", violations.join("\n"));
}

/// Returns the shortest cycles of made-up files, as the files on each way around.
fn cycles(files: &[(&str, &str)]) -> Vec<String> {
    let graph = ImportGraph::of_files(files.iter().copied());
    let ways = graph.cycles().into_iter().map(|cycle| {
        let way: Vec<_> = cycle.shortest.iter().map(|arrow| format!("{}:{}", arrow.from, arrow.line)).collect();
        way.join(" ")
    });
    ways.collect()
}

#[test]
fn a_child_that_uses_what_its_parent_defines_is_a_cycle() {
    let parent = "mod child;\n\npub use child::Child;\npub(crate) struct Parent;";
    for import in ["use super::Parent;", "use super::{Parent as Other};", "fn f(parent: &super::Parent) {}"] {
        let child = format!("//! A child.\npub struct Child;\n{import}");
        let files = [("lib.rs", "mod parent;"), ("parent.rs", parent), ("parent/child.rs", &child)];
        assert_eq!(cycles(&files), ["parent.rs:3 parent/child.rs:3"], "{import}");
    }
    let child = "pub struct Child;\nmod inline {\n    use super::super::Parent;\n    use super::Child;\n}";
    let files = [("lib.rs", "mod parent;"), ("parent.rs", parent), ("parent/child.rs", child)];
    assert_eq!(cycles(&files), ["parent.rs:3 parent/child.rs:3"]);
}

#[test]
fn a_name_from_a_facade_is_a_cycle_where_the_facade_uses_the_file() {
    let lib = "mod error;\nmod store;\npub use error::StateError;\npub use store::Store;";
    for (import, expected) in [
        ("use crate::StateError;", &["lib.rs:4 store.rs:1"][..]),
        ("use crate::{error, StateError};", &["lib.rs:4 store.rs:1"]),
        ("use crate::error::StateError;", &[]),
        ("use crate::{error::StateError, error};", &[]),
        ("fn f() -> Result<(), crate::StateError> {}", &["lib.rs:4 store.rs:1"]),
        ("fn f() -> Result<(), crate::error::StateError> {}", &[]),
        ("use crate::*;", &["lib.rs:4 store.rs:1"]),
        ("use crate as root;", &["lib.rs:4 store.rs:1"]),
        ("use opstate::StateError;", &["lib.rs:4 store.rs:1"]),
        ("use ::opstate::StateError;", &[]),
        ("pub(crate) use crate::StateError as Failure;", &["lib.rs:4 store.rs:1"]),
    ] {
        let files = [("lib.rs", lib), ("error.rs", "pub struct StateError;"), ("store.rs", import)];
        assert_eq!(cycles(&files), expected, "{import}");
    }
}

#[test]
fn paths_in_code_count_as_imports_do() {
    for code in [
        "fn f() { crate::b::g() }",
        "fn f() { let x = <crate::b::B as Default>::default(); }",
        "type A = Vec<crate::b::B>;",
        "impl crate::b::Trait for A {}",
        "macro_rules! m { () => { $crate::b::g() } }",
        "fn f() { println!(\"{}\", crate::b::g()) }",
        "use crate::inner; fn f() { inner::super_path() } use super::b::B;",
        "use super::{b}; fn f() { b::g() }",
        "fn f() { self::super::b::g() }",
        "#[derive(crate::b::Derive)] struct A;",
        "fn f<'a>(x: &'a str) -> char { '\\'' } /* // */ fn g() -> crate::b::B {}",
        "const A: &str = r#\"\"\"#; const B: crate::b::B = b'\"';",
        "#[cfg(not(test))] use crate::b::B;",
        "#[cfg(any(test, unix))] use crate::b::B;",
        "#[cfg(test)] use std::{f, g}; fn f() { crate::b::g() }",
        "#[cfg(test)] fn f(x: A) -> B { 1 } fn g() { crate::b::g() }",
        "#[cfg(test)] const X: A = A { x: [1; 2] }; fn g() { crate::b::g() }",
        "struct A { #[cfg(test)] x: u8, b: crate::b::B }",
    ] {
        let files = [
            ("lib.rs", "mod a; mod b; mod inner;"),
            ("a.rs", code),
            ("b.rs", "use crate::a::A;"),
            ("inner.rs", "pub fn super_path() {}"),
        ];
        assert_eq!(cycles(&files), ["a.rs:1 b.rs:1"], "{code}");
    }
}

#[test]
fn a_path_through_an_imported_module_leads_to_the_file_it_names() {
    for code in [
        "use crate::b; fn f() { b::child::g() }",
        "fn f() { c::child::g() } use super::b as c;",
        "mod inline { use crate::b::{self, B}; fn f(b: b::child::B) {} }",
    ] {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", code),
            ("b.rs", "pub mod child;"),
            ("b/child.rs", "use crate::a::A;"),
        ];
        assert_eq!(cycles(&files), ["a.rs:1 b/child.rs:1"], "{code}");
    }
}

#[test]
fn neither_comments_nor_strings_nor_code_for_tests_or_documentation_count() {
    for code in [
        "// crate::b::g()",
        "/* a /* nested */ crate::b::g() */",
        "/// [`B`](crate::b::B)\nfn f() {}",
        "const A: &str = \"\\\" crate::b::g()\";",
        "const A: &str = r##\"\"# crate::b::g()\"##;",
        "#[cfg(test)] use crate::b::{B, g};",
        "#[cfg(all(test, unix))] fn f() { crate::b::g() }",
        "#[cfg(any(doc, test))] #[allow(dead_code)] pub(crate) fn f() -> crate::b::B { crate::b::g() }",
        "#[cfg(test)] mod tests { use crate::b::B; fn f() { crate::b::g() } }",
        "#[cfg(test)] mod tests;",
        "#[cfg(doc)]\nuse crate::b::B;",
        "struct A { #[cfg(test)] b: crate::b::B }",
        "fn f() { #[cfg(test)] crate::b::g(); }",
        "#![cfg(test)] use crate::b::B;",
        "pub(in crate::b) fn f() {}",
        "mod b { pub fn g() {} } fn f() { b::g() }",
        "use std::b::B; use ::b::B; fn f() { b::g() }",
        "fn f(b: u8) -> impl Fn() + use<> { a.b::<u8>() }",
    ] {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", code),
            ("b.rs", "use crate::a::A;"),
            ("a/tests.rs", "use crate::b;"),
        ];
        assert!(cycles(&files).is_empty(), "{code}: {:?}", cycles(&files));
    }
}

#[test]
fn of_cycles_the_shortest_is_reported_and_each_set_of_files_once() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e; mod f;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "\nuse crate::c::C;\nuse crate::a::A;"),
        ("c.rs", "use crate::a::A;"),
        ("d.rs", "use crate::{e, a};"),
        ("e.rs", "use crate::f::F;"),
        ("f.rs", "use crate::d::D;"),
    ];
    assert_eq!(cycles(&files), ["a.rs:1 b.rs:3", "d.rs:1 e.rs:1 f.rs:1"]);
}

#[test]
fn arrows_to_a_later_layer_and_gaps_of_the_table_are_found() {
    let files = [
        ("lib.rs", "mod a; mod b; mod new;"),
        ("a.rs", "\n\nuse crate::b::child::B;"),
        ("b.rs", "mod child;"),
        ("b/child.rs", ""),
        ("new.rs", ""),
    ];
    let graph = ImportGraph::of_files(files);
    let found = violations(&graph, &[("first", &["a", "gone"]), ("second", &["b"]), ("root", &["lib"])]);
    assert_eq!(
        found,
        [
            "the layer `first` uses the later layer `second`:\n    a.rs:3 uses b/child.rs, by `crate::b::child::B`",
            "new.rs is in no layer of the table",
            "the table lists the module `gone`, which has no file",
        ]
    );
}
