//! HotStore beside the glued maps, both through `Box<dyn StateStore>`: `cargo bench --bench hot -- 10000 1000000`.
//!
//! Keys are of 12 bytes, 100 of them to a prefix of 8, and come in shuffled order; values are of 8 bytes (`-- --help` tells
//! how to choose otherwise). Other stores are compared in `versus`, a crate of its own beside this file.

mod common;

use clap::Parser;

use common::compare::{self, Args};
use common::contender::{GLUED, HOT};

fn main() {
    compare::main(&[GLUED, HOT], Args::parse());
}
