//! Compares `HotStore` with other stores: `cargo run --release -- --help` in this directory lists the commands.

#[path = "../../common/mod.rs"]
mod common;
mod contenders;
mod operators;
mod plot;
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
    /// Measures every operation of every contender, and prints a table.
    Table(compare::Args),
    /// Measures whole operators, in events per second.
    Operators(operators::Args),
    /// Makes the tables and plots of `benches/report`. Results are kept there, and are not measured again.
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
