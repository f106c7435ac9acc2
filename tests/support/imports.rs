//! The import graph of a crate's source files.
//!
//! An arrow leads from the file a path is written in to the file of the longest prefix of the path that is a module.
//! Paths in `use` declarations, expressions, types and bodies of macros count, and so do re-exports. So a name that is
//! taken from a facade is an arrow to the facade, and `super::Name` is one from a child to its parent. `mod name;` is
//! none. Comments and code for tests or documentation only do not count.

mod cycles;
mod graph;
mod paths;
mod tokens;

pub(crate) use graph::ImportGraph;
