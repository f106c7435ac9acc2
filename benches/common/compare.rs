//! Stores side by side: the same operations in turn, on the same entries, as a table.
//!
//! Every row runs its contenders in turn, several rounds of it, and shows the median, so that a busy machine disturbs all
//! of them alike. All are checked to give the same answers before anything is timed, and again at the end. Keys to be looked
//! up lie next to each other in one buffer or are computed, so that what is measured is the store and not a miss of the asker.

use std::env;
use std::hint::black_box;
use std::io::{self, IsTerminal, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::contender::{Contender, HOT, Kind};
use super::footprint::{self, resident_bytes};
use super::operations::{OPERATIONS, Operation};
use super::workload::{self, Shape, Workload, check_equal};

#[derive(Parser)]
pub(crate) struct Args {
    /// Numbers of entries, in hundreds.
    #[arg(default_values_t = [10_000, 1_000_000])]
    sizes: Vec<usize>,
    /// Ten million entries, too: ten minutes and 4 GiB.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    shape: Shape,
    /// Only the operations whose names contain this (and the one that fills the stores).
    #[arg(long, default_value = "")]
    rows: String,
    /// Only the contenders whose names contain one of these.
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Rounds of every row [default: 3 to 41, until they have taken some seconds].
    #[arg(long)]
    rounds: Option<usize>,
    /// Every contender in a process of its own, all of them in turn, three times: with what one leaves in the C library's
    /// heap, the others have nothing to do.
    #[arg(long)]
    apart: bool,
    /// Run the rows for the contender of this name and print medians.
    #[arg(long, hide = true)]
    alone: Option<String>,
    /// Only how long the slowest calls of a HotStore take.
    #[arg(long)]
    pauses: bool,
    /// Fill the store of this name and print the memory it takes.
    #[arg(long, hide = true)]
    footprint: Option<String>,
    /// What `cargo bench` says.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The program: prints a table for each size. What others are compared with comes first in `kinds`.
pub(crate) fn main(kinds: &[Kind], mut args: Args) {
    let named = |name: &String| *kinds.iter().find(|kind| kind.name == *name).expect("one of the contenders");
    if args.full {
        args.sizes.push(10_000_000);
    }
    args.sizes.iter_mut().for_each(|size| *size = size.next_multiple_of(workload::SIBLINGS as usize));
    if let Some(name) = &args.footprint {
        let (allocated, resident) = footprint_of(named(name), args.sizes[0], &args.shape);
        println!("{allocated} {}", resident.unwrap_or(0));
        return;
    }
    if let Some(name) = &args.alone {
        let work = Workload::new(args.sizes[0], args.shape);
        let rows = Rows { containing: &args.rows, rounds: args.rounds, patience: PATIENCE };
        measure(&work, &mut [Contender::new(named(name))], rows, |operation, medians| {
            println!("{}\t{}", operation.name, medians[0].unwrap_or(f64::NAN));
        });
        return;
    }
    let is_chosen = |kind: &&Kind| args.with.is_empty() || args.with.iter().any(|with| kind.name.contains(with));
    let there_are = kinds.iter().map(|kind| kind.name).collect();
    let kinds: Vec<Kind> = kinds.iter().filter(is_chosen).copied().collect();
    if kinds.is_empty() {
        refuse(&format!("no contender's name contains {}", args.with.join(" or ")), there_are);
    }
    if !args.pauses && !"bytes".contains(&args.rows) && !OPERATIONS.iter().any(|it| it.name.contains(&args.rows)) {
        let names = OPERATIONS.iter().map(|it| it.name).chain(["bytes"]).collect();
        refuse(&format!("no operation's name contains {}", args.rows), names);
    }
    for &entries in &args.sizes {
        if args.pauses {
            #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
            println!("\n{} entries\n{}", grouped(entries as f64), super::pauses::report(entries, &args.shape));
            continue;
        }
        println!("\n{} entries\n{}", grouped(entries as f64), table(entries, &kinds, &args));
    }
}

/// Ends the program because of an option that names nothing.
fn refuse(what: &str, there_are: Vec<&str>) -> ! {
    let message = format!("{what}; there are {}", there_are.join(", "));
    Args::command().error(ErrorKind::InvalidValue, message).exit()
}

/// Runs every row for every contender, and the rows of memory.
fn table(entries: usize, kinds: &[Kind], args: &Args) -> Table {
    let mut table = head(kinds, "ns per operation or entry", Better::Less);
    let mut add = |operation: &Operation, medians: &[Option<f64>]| {
        add_row(&mut table, kinds, operation.title, medians, Better::Less)
    };
    if args.apart {
        measure_apart(entries, kinds, args, add);
    } else {
        let mut contenders: Vec<Contender> = kinds.iter().map(|&kind| Contender::new(kind)).collect();
        let work = Workload::new(entries, args.shape);
        let rows = Rows { containing: &args.rows, rounds: args.rounds, patience: PATIENCE };
        measure(&work, &mut contenders, rows, &mut add);
    }
    if "bytes".contains(&args.rows) {
        let value_lens = [args.shape.value_len, 100];
        for value_len in &value_lens[..if args.shape.value_len == 8 { 2 } else { 1 }] {
            let shape = Shape { value_len: *value_len, ..args.shape };
            let (allocated, resident): (Vec<_>, Vec<_>) = kinds
                .iter()
                .map(|&kind| {
                    progress("bytes");
                    footprint(kind, entries, shape)
                })
                .unzip();
            add_row(
                &mut table,
                kinds,
                &format!("allocated bytes an entry, value {value_len}"),
                &allocated,
                Better::Less,
            );
            add_row(&mut table, kinds, &format!("resident bytes an entry, value {value_len}"), &resident, Better::Less);
        }
    }
    progress("");
    table
}

/// Which operations, and how often.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) containing: &'a str,
    pub(crate) rounds: Option<usize>,
    /// Where the number of rounds is not given: no more of them after this time.
    pub(crate) patience: Duration,
}

/// What a row may take once it has had three rounds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the operations for these contenders in turn, and hands out the medians in nanoseconds, `None` for a contender that
/// cannot do it.
pub(crate) fn measure(
    work: &Workload,
    contenders: &mut [Contender],
    rows: Rows<'_>,
    mut add: impl FnMut(&Operation, &[Option<f64>]),
) {
    for (place, operation) in OPERATIONS.iter().enumerate() {
        // The first one fills the stores.
        if place > 0 && !operation.name.contains(rows.containing) {
            continue;
        }
        progress(operation.title);
        let mut times = vec![Vec::new(); contenders.len()];
        let start = Instant::now();
        let is_enough = |round| match rows.rounds {
            Some(rounds) => round >= rounds.max(1),
            None => round >= 41 || (round >= 3 && start.elapsed() > rows.patience),
        };
        for round in (0..).take_while(|&round| !is_enough(round)) {
            for (times, contender) in times.iter_mut().zip(&mut *contenders) {
                if operation.needs.are_met(contender.kind.can) {
                    settle_allocator(work.entries);
                    times.push((operation.run)(work, contender, round).ns());
                }
            }
        }
        let medians: Vec<Option<f64>> = times.into_iter().map(median).collect();
        add(operation, &medians);
        if place == 0 {
            check_equal(work, &contenders.iter().collect::<Vec<_>>());
        }
    }
    // One that left operations out has other values by now.
    let can_all = |contender: &&Contender| contender.kind.can.scan && contender.kind.can.snapshot;
    check_equal(work, &contenders.iter().filter(can_all).collect::<Vec<_>>());
}

/// Runs the operations in processes that have but one contender each, and hands out the medians of their medians.
fn measure_apart(entries: usize, kinds: &[Kind], args: &Args, mut add: impl FnMut(&Operation, &[Option<f64>])) {
    let mut times: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); kinds.len()]; OPERATIONS.len()];
    for _ in 0..3 {
        for (place, kind) in kinds.iter().enumerate() {
            let mut options = args.shape.options();
            options.extend(["--alone".into(), kind.name.into(), "--rows".into(), args.rows.clone()]);
            options.extend(args.rounds.map(|rounds| format!("--rounds={rounds}")));
            for line in run_elsewhere(entries, &options).lines() {
                let Some((name, time)) = line.split_once('\t') else { continue };
                let row = OPERATIONS.iter().position(|row| row.name == name).expect("one of the operations");
                let time: f64 = time.parse().expect("a number of nanoseconds");
                times[row][place].extend((!time.is_nan()).then_some(time));
            }
        }
    }
    for (operation, times) in OPERATIONS.iter().zip(times) {
        let medians: Vec<Option<f64>> = times.into_iter().map(median).collect();
        if medians.iter().any(Option::is_some) {
            add(operation, &medians);
        }
    }
}

/// What this program prints for a contender of its own, in another process.
fn run_elsewhere(entries: usize, options: &[String]) -> String {
    let program = env::current_exe().expect("the program that runs has a path");
    // A program with several commands has one for this.
    let command = env::args().nth(1).filter(|first| first.starts_with(char::is_alphabetic)).map(|_| "table");
    let output = Command::new(program).args(command).arg(entries.to_string()).args(options).output();
    let output = output.expect("this program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The bytes an entry takes, allocated and resident, in a process of its own: in this one the memory of earlier stores
/// is used again, and nobody could tell.
pub(crate) fn footprint(kind: Kind, entries: usize, shape: Shape) -> (Option<f64>, Option<f64>) {
    let mut options = shape.options();
    options.extend(["--footprint".into(), kind.name.into()]);
    let output = run_elsewhere(entries, &options);
    let mut numbers = output.split_whitespace().map(|number| number.parse::<f64>().expect("a number of bytes"));
    let mut next = || numbers.next().map(|bytes| bytes / entries as f64);
    (next(), next())
}

fn footprint_of(kind: Kind, entries: usize, shape: &Shape) -> (usize, Option<usize>) {
    let order = workload::shuffled(entries);
    footprint::start_counting();
    let (allocated, resident) = (footprint::allocated_bytes(), resident_bytes());
    let mut store = (kind.make)();
    let mut value = vec![0; shape.value_len];
    for entry in order {
        value[..4].copy_from_slice(&entry.to_le_bytes());
        store.put(&workload::key(shape, entry), &value).expect("the entry is short");
    }
    let taken = (
        footprint::allocated_bytes().wrapping_sub(allocated),
        resident_bytes().zip(resident).map(|(now, before)| now.saturating_sub(before)),
    );
    assert_eq!(store.len(), entries);
    taken
}

/// Makes the allocator do now what it put off when the last contender freed its many small blocks, so that the next one
/// does not pay for it: the C library joins small free blocks at the next large request, and sorts ten thousand of them at
/// each request after that.
fn settle_allocator(entries: usize) {
    for _ in 0..500.max(entries / 200) {
        black_box(Vec::<u8>::with_capacity(100 << 10));
    }
}

/// Which of two numbers is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

/// A table with a column for each contender, and one for how many times as good `HotStore` is as the first of them.
pub(crate) fn head(kinds: &[Kind], what: &str, better: Better) -> Table {
    let mut head = vec![what.to_owned()];
    head.extend(kinds.iter().map(|kind| kind.name.to_owned()));
    let (first, hot) = (kinds[0].name, HOT.name);
    head.push(if better == Better::Less { format!("{first} / {hot}") } else { format!("{hot} / {first}") });
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

pub(crate) fn add_row(table: &mut Table, kinds: &[Kind], name: &str, numbers: &[Option<f64>], better: Better) {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![name.to_owned()];
    cells.extend(numbers.iter().map(|number| or_none(number.map(grouped))));
    let hot = kinds.iter().position(|kind| kind.name == HOT.name).and_then(|place| numbers[place]);
    let quotient = |(base, hot): (f64, f64)| if better == Better::Less { base / hot } else { hot / base };
    cells.push(or_none(numbers[0].zip(hot).map(quotient).map(ratio)));
    table.add_row(cells);
}

fn ratio(ratio: f64) -> String {
    if ratio < 100.0 { format!("{ratio:.2}") } else { grouped(ratio) }
}

/// A number with its thousands set apart, and with a decimal if it is small.
pub(crate) fn grouped(number: f64) -> String {
    if number < 100.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(crate) fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// Says on the terminal what is being measured.
pub(crate) fn progress(name: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r{name:<60}\r");
        let _ = io::stderr().flush();
    }
}
