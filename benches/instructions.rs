//! How many instructions operations of a `HotStore` take, which no noise disturbs: `cargo bench --bench instructions`.
//!
//! Callgrind, a tool of valgrind, counts them, at 10,000 entries with keys of 12 bytes and values of 8. They are compared with
//! those in `instructions.txt` beside this file. With `-- --check` a change of more than 5 % either way fails, until
//! `-- --bless` writes the new numbers down. Counts of another compiler than the one named there are shown, but not judged:
//! they differ by more than that.
//!
//! A hash index has random keys, so counts differ a little from run to run; where much, an operation has no place here.

mod common;

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};

use common::contender::{Contender, HOT};
use common::operations::{OPERATIONS, Operation};
use common::workload::{Shape, Workload};

const ENTRIES: usize = 10_000;
const MOST_CHANGE: f64 = 0.05;

/// The operations that are counted.
fn operations() -> impl Iterator<Item = &'static Operation> {
    // A single snapshot is too short to be steady, and a miss meets as many wrong candidates as chance will have it.
    OPERATIONS.iter().filter(|operation| !["snapshot", "miss"].contains(&operation.name))
}

#[derive(Parser)]
struct Args {
    /// Fail if a count is not what it was, or if valgrind is not there.
    #[arg(long)]
    check: bool,
    /// Write the counts to the file.
    #[arg(long)]
    bless: bool,
    /// Run the operations, for callgrind to count.
    #[arg(long, hide = true)]
    run: bool,
    /// A part of a benchmark's name, as `cargo bench` hands it to all of them. Means nothing here.
    #[arg(hide = true)]
    filter: Option<String>,
    /// What `cargo bench` says.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    if args.run {
        run();
        return Ok(ExitCode::SUCCESS);
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("valgrind is not installed, so no instructions are counted");
        return Ok(if args.check { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let counts = count()?;
    if args.bless {
        let lines = counts.iter().map(|(name, count)| format!("{name} {count:.1}\n"));
        fs::write(&path, format!("{}\n{}", compiler()?, lines.collect::<String>()))?;
        println!("written to {}", path.display());
    }
    let written = fs::read_to_string(&path)?;
    let (compiled_by, expected) = written.split_once('\n').ok_or("the file of counts is empty")?;
    let expected: Vec<(&str, f64)> = expected.lines().map(parse).collect::<Result<_, _>>()?;

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["operation", "instructions", "were", "change"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let mut changed = Vec::new();
    for (name, count) in &counts {
        let before = expected.iter().find(|(expected, _)| expected == name).map(|&(_, count)| count);
        let change = before.map(|before| count / before - 1.0);
        if change.is_none_or(|change| change.abs() > MOST_CHANGE) {
            changed.push(*name);
        }
        let shown = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            (*name).to_owned(),
            format!("{count:.1}"),
            shown(before.map(|before| format!("{before:.1}"))),
            shown(change.map(|change| format!("{:+.1} %", 100.0 * change))),
        ]);
    }
    println!("{table}");

    if compiler()? != compiled_by {
        println!("not judged: these are of {}, those in the file of {compiled_by}", compiler()?);
        return Ok(ExitCode::SUCCESS);
    }
    if !changed.is_empty() {
        println!(
            "changed by more than {:.0} %: {}. If that is as it should be, `-- --bless` writes the new counts down",
            100.0 * MOST_CHANGE,
            changed.join(", ")
        );
    }
    Ok(if args.check && !changed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs every operation once, and prints how many times.
fn run() {
    let work = Workload::new(ENTRIES, Shape::USUAL);
    let mut contender = Contender::new(HOT);
    for operation in operations() {
        let took = (operation.run)(&work, &mut contender, 0);
        println!("{} {}", operation.name, took.operations);
    }
}

/// The instructions of every operation, each.
fn count() -> Result<Vec<(&'static str, f64)>, Box<dyn Error>> {
    // By its whole name: dumps are not made for patterns.
    const MEASURED: &str = "instructions::common::operations::measured";
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .args([format!("--toggle-collect={MEASURED}"), format!("--dump-after={MEASURED}")])
        .arg(env::current_exe()?)
        .arg("--run")
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let times = String::from_utf8(output.stdout)?;
    let counts = operations().zip(times.lines()).enumerate().map(|(place, (operation, times))| {
        let (name, times) = parse(times)?;
        assert_eq!(name, operation.name);
        // A dump a call, numbered from 1.
        let dump = fs::read_to_string(format!("{}.{}", out.display(), place + 1))?;
        let total = dump.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or("a dump without a total")?;
        Ok((operation.name, total.parse::<f64>()? / times))
    });
    counts.collect()
}

/// A name and a number.
fn parse(line: &str) -> Result<(&str, f64), Box<dyn Error>> {
    let (name, number) = line.split_once(' ').ok_or("a line without a number")?;
    Ok((name, number.parse()?))
}

/// The compiler's name and version, and the kind of machine.
fn compiler() -> Result<String, Box<dyn Error>> {
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV").output()?;
    let output = String::from_utf8(output.stdout)?;
    let line = |start| output.lines().find_map(|line| line.strip_prefix(start)).unwrap_or("unknown");
    Ok(format!("rustc {}, {}", line("release: "), line("host: ")))
}
