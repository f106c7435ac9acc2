//! HotStore beside what users might take instead. `cargo run --release -- --help` in this directory.

#[path = "../../common/mod.rs"]
mod common;
mod contenders;
mod operators;
mod report;

use std::error::Error;

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
    /// Operators end to end: events per second.
    Operators(operators::Args),
    /// The tables and plots of `benches/report`. What was measured is kept there, and not measured again.
    Report(report::Args),
}

fn main() -> Result<(), Box<dyn Error>> {
    match Args::parse().command {
        Command::Table(args) => compare::main(contenders::ALL, args),
        Command::Operators(args) => operators::main(&args)?,
        Command::Report(args) => report::main(&args)?,
    }
    Ok(())
}
