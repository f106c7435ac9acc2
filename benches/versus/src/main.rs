//! HotStore beside what users might take instead. `cargo run --release -- --help` in this directory.

#[path = "../../common/mod.rs"]
mod common;
mod contenders;

use clap::{Parser, Subcommand};

use common::compare;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every operation of every contender, as a table.
    Table(compare::Args),
}

fn main() {
    match Args::parse().command {
        Command::Table(args) => compare::main(contenders::ALL, args),
    }
}
