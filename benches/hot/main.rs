//! The stores beside the glued maps, all through `Box<dyn StateStore>`: `cargo bench --bench hot -- 10000 1000000`.
//!
//! Keys are of 12 bytes, 100 of them to a prefix of 8, and come in shuffled order; values are of 8 bytes. Every row runs
//! its contenders in turn, several rounds of it, and shows the median, so that a busy machine disturbs all of them alike.
//! All are checked to give the same answers before anything is timed, and again at the end. Keys to be looked up lie
//! next to each other in one buffer or are computed, so that what is measured is the store and not a miss of the asker.
//!
//! A ratio says how many times as fast (or as small) as the glued maps a store is. The target beside it is what a
//! prototype of `HotStore` reached at ten thousand, a million or ten million entries, whichever is nearest.

mod footprint;
mod glued;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod pauses;
mod rows;
mod workload;

use std::env;
use std::hint::black_box;
use std::io::{self, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use opstate::{HotStore, StateStore};

use footprint::{Counting, resident_bytes};
use glued::GluedMaps;
use rows::{ROWS, Row, Targets};
use workload::{Shape, Workload, check_equal};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// A way to keep state, with the store that is being measured.
struct Contender {
    name: &'static str,
    make: fn() -> Box<dyn StateStore>,
    store: Box<dyn StateStore>,
    /// Whether the others are compared with it.
    is_base: bool,
}

const CONTENDERS: &[(&str, fn() -> Box<dyn StateStore>)] =
    &[("glued maps", || Box::new(GluedMaps::default())), ("HotStore", || Box::new(HotStore::new()))];

#[derive(Parser)]
struct Args {
    /// Numbers of entries, in hundreds.
    #[arg(default_values_t = [10_000, 1_000_000])]
    sizes: Vec<usize>,
    /// Ten million entries, too: ten minutes and 4 GiB.
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    shape: Shape,
    /// Only the rows whose names contain this (and the one that fills the stores).
    #[arg(long, default_value = "")]
    rows: String,
    /// Rounds of every row [default: 3 to 41, until they have taken some seconds].
    #[arg(long)]
    rounds: Option<usize>,
    /// Every contender in a process of its own, all of them in turn, three times: with what one leaves in the C library's
    /// heap, the others have nothing to do.
    #[arg(long)]
    apart: bool,
    /// Run the rows for the contender of this place in the list and print medians.
    #[arg(long, hide = true)]
    alone: Option<usize>,
    /// Only how long the slowest calls of a HotStore take.
    #[arg(long)]
    pauses: bool,
    /// Fill the store of this place in the list with so many entries and print the memory it takes.
    #[arg(long, num_args = 2, hide = true)]
    footprint: Option<Vec<usize>>,
    /// What `cargo bench` says.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let mut args = Args::parse();
    if let Some(of) = args.footprint {
        let (allocated, resident) = footprint_of(CONTENDERS[of[0]].1, of[1], &args.shape);
        println!("{allocated} {}", resident.unwrap_or(0));
        return;
    }
    if args.full {
        args.sizes.push(10_000_000);
    }
    for &size in &args.sizes {
        let entries = size.next_multiple_of(100);
        if args.pauses {
            #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
            println!("\n{} entries\n{}", grouped(entries as f64), pauses::report(entries, &args.shape));
            continue;
        }
        if let Some(place) = args.alone {
            measure(entries, &mut [contender(place)], &args, |row, medians| println!("{}\t{}", row.name, medians[0]));
            return;
        }
        println!("\n{} entries\n{}", grouped(entries as f64), compare(entries, &args));
    }
}

fn contender(place: usize) -> Contender {
    let (name, make) = CONTENDERS[place];
    Contender { name, make, store: make(), is_base: place == 0 }
}

/// Runs every row for every contender, and the rows of memory.
fn compare(entries: usize, args: &Args) -> Table {
    let mut contenders: Vec<Contender> = (0..CONTENDERS.len()).map(contender).collect();
    let mut table = head(&contenders);
    let add = |row: &Row, medians: &[f64]| {
        add_row(&mut table, row.name, medians, row.targets.map(|targets| target(targets, entries)));
    };
    if args.apart {
        measure_apart(entries, args, add)
    } else {
        measure(entries, &mut contenders, args, add)
    }
    drop(contenders);
    add_footprints(&mut table, entries, args);
    progress("");
    table
}

/// Runs every row in processes that have but one contender each, and hands out the medians of their medians.
fn measure_apart(entries: usize, args: &Args, mut add: impl FnMut(&Row, &[f64])) {
    let program = env::current_exe().expect("the program that runs has a path");
    let Shape { key_len, value_len, zipf } = args.shape;
    let options = format!("--key-bytes {key_len} --value-bytes {value_len}{}", if zipf { " --zipf" } else { "" });
    let rounds = args.rounds.map(|rounds| format!("--rounds={rounds}"));
    let mut times: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); CONTENDERS.len()]; ROWS.len()];
    for _ in 0..3 {
        for (place, _) in CONTENDERS.iter().enumerate() {
            let mut command = Command::new(&program);
            command.args([&entries.to_string(), "--alone", &place.to_string(), "--rows", &args.rows]);
            let output = command.args(options.split(' ')).args(&rounds).output().expect("this program runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let Some((name, time)) = line.split_once('\t') else { continue };
                let row = ROWS.iter().position(|row| row.name == name).expect("a row of this list");
                times[row][place].push(time.parse().expect("a number of nanoseconds"));
            }
        }
    }
    for (row, times) in ROWS.iter().zip(times).filter(|(_, times)| !times[0].is_empty()) {
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        add(row, &medians);
    }
}

/// Runs every row for these contenders in turn, and hands out the medians.
fn measure(entries: usize, contenders: &mut [Contender], args: &Args, mut add: impl FnMut(&Row, &[f64])) {
    let work = Workload::new(entries, args.shape);
    for (place, row) in ROWS.iter().enumerate() {
        // The first row fills the stores.
        if place > 0 && !row.name.contains(&args.rows) {
            continue;
        }
        progress(row.name);
        let mut times = vec![Vec::new(); contenders.len()];
        let start = Instant::now();
        let is_enough = |round| match args.rounds {
            Some(rounds) => round >= rounds.max(1),
            None => round >= 41 || (round >= 3 && start.elapsed() > Duration::from_secs(2)),
        };
        for round in (0..).take_while(|&round| !is_enough(round)) {
            for (times, contender) in times.iter_mut().zip(&mut *contenders) {
                settle_allocator(entries);
                times.push((row.run)(&work, contender, round));
            }
        }
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        add(row, &medians);
        if place == 0 {
            check_equal(&work, contenders);
        }
    }
    check_equal(&work, contenders);
}

fn add_footprints(table: &mut Table, entries: usize, args: &Args) {
    for (value_len, targets) in [(args.shape.value_len, [2.0, 2.9, 3.0]), (100, [1.8; 3])] {
        if !"bytes".contains(&args.rows) || (value_len == 100 && args.shape.value_len != 8) {
            continue;
        }
        progress("bytes");
        let both: Vec<(f64, f64)> =
            (0..CONTENDERS.len()).map(|place| elsewhere(place, entries, Shape { value_len, ..args.shape })).collect();
        let (allocated, resident): (Vec<f64>, Vec<f64>) = both.into_iter().unzip();
        add_row(table, &format!("allocated bytes an entry, value {value_len}"), &allocated, None);
        let name = format!("resident bytes an entry, value {value_len}");
        add_row(table, &name, &resident, Some(target(targets, entries)));
    }
}

/// Makes the allocator do now what it put off when the last contender freed its many small blocks, so that the next one
/// does not pay for it: the C library joins small free blocks at the next large request, and sorts ten thousand of them at
/// each request after that.
fn settle_allocator(entries: usize) {
    for _ in 0..500.max(entries / 200) {
        black_box(Vec::<u8>::with_capacity(100 << 10));
    }
}

fn head(contenders: &[Contender]) -> Table {
    let mut head = vec!["ns per operation or entry".to_owned()];
    for contender in contenders {
        head.push(contender.name.to_owned());
        if !contender.is_base {
            head.push("ratio".to_owned());
        }
    }
    head.push("target".to_owned());

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn add_row(table: &mut Table, name: &str, numbers: &[f64], target: Option<f64>) {
    let base = numbers[0];
    let mut cells = vec![name.to_owned(), grouped(base)];
    for &number in &numbers[1..] {
        cells.extend([grouped(number), ratio(base / number)]);
    }
    cells.push(target.map_or_else(|| "-".to_owned(), ratio));
    table.add_row(cells);
}

fn target(targets: Targets, entries: usize) -> f64 {
    match entries {
        ..100_000 => targets[0],
        100_000..3_000_000 => targets[1],
        _ => targets[2],
    }
}

fn ratio(ratio: f64) -> String {
    if ratio < 100.0 { format!("{ratio:.2}x") } else { format!("{}x", grouped(ratio)) }
}

/// A number with its thousands set apart, and with a decimal if it is small.
fn grouped(number: f64) -> String {
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

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Says on the terminal what is being measured.
fn progress(name: &str) {
    eprint!("\r{name:<60}\r");
    let _ = io::stderr().flush();
}

/// The bytes an entry takes, allocated and resident, in a process of its own: in this one the memory of earlier stores
/// is used again, and nobody could tell.
fn elsewhere(place: usize, entries: usize, shape: Shape) -> (f64, f64) {
    let program = env::current_exe().expect("the program that runs has a path");
    let [place, size, key_len, value_len] = [place, entries, shape.key_len, shape.value_len].map(|it| it.to_string());
    let args = ["--footprint", &place, &size, "--key-bytes", &key_len, "--value-bytes", &value_len];
    let output = Command::new(program).args(args).output().expect("this program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = String::from_utf8_lossy(&output.stdout);
    let mut numbers = output.split_whitespace().map(|number| number.parse::<f64>().expect("a number of bytes"));
    let mut next = || numbers.next().expect("two numbers") / entries as f64;
    (next(), next())
}

fn footprint_of(make: fn() -> Box<dyn StateStore>, entries: usize, shape: &Shape) -> (usize, Option<usize>) {
    let order = workload::shuffled(entries);
    ALLOCATOR.turn_on();
    let (allocated, resident) = (ALLOCATOR.bytes(), resident_bytes());
    let mut store = make();
    let mut value = vec![0; shape.value_len];
    for entry in order {
        value[..4].copy_from_slice(&entry.to_le_bytes());
        store.put(&workload::key(shape, entry), &value).expect("the entry is short");
    }
    let taken = (
        ALLOCATOR.bytes().wrapping_sub(allocated),
        resident_bytes().zip(resident).map(|(now, before)| now.saturating_sub(before)),
    );
    assert_eq!(store.len(), entries);
    taken
}
