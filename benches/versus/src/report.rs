//! The report in `benches/report`: tables and plots of measured results.
//!
//! The work is divided into *units* of one size each. The results of a finished unit are appended to `results.tsv`, and a
//! unit with results is not measured again. So the report can be stopped at any time, and the next run continues it. Each
//! run makes tables and plots of all results.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::common::compare::{self, Better, Rows, add_row, footprint, grouped, head};
use crate::common::contender::{Contender, GLUED, HOT, IN_MEMORY, Kind};
use crate::common::operations::OPERATIONS;
use crate::common::workload::{Shape, Workload, key};
use crate::contenders::ALL;
use crate::operators;
use crate::plot::{Series, Texts, plot};

#[derive(clap::Parser)]
pub(crate) struct Args {
    /// Begin no further unit after this many minutes.
    #[arg(long, default_value_t = 9.0)]
    minutes: f64,
    /// Also measure ten million entries, with the contenders that are fast enough. Takes half an hour and 6 GiB.
    #[arg(long)]
    full: bool,
    /// Forget what was measured before.
    #[arg(long)]
    fresh: bool,
    /// Numbers of entries to measure instead of the usual ones. The results go to a directory of their own.
    #[arg(long)]
    sizes: Vec<usize>,
}

/// One measured number, with its unit of work, its name and its contender.
struct Measured {
    unit: String,
    what: String,
    contender: String,
    value: f64,
}

/// A unit of work.
enum Unit {
    /// Operations whose names contain this.
    Operations(usize, &'static str),
    Memory(usize),
    Delta(usize),
    Operators,
}

impl Unit {
    fn key(&self) -> String {
        match self {
            Self::Operations(entries, containing) => format!("operations {entries} {containing}"),
            Self::Memory(entries) => format!("memory {entries}"),
            Self::Delta(entries) => format!("delta {entries}"),
            Self::Operators => "operators".to_owned(),
        }
    }

    fn measure(&self) -> Vec<Measured> {
        let mut results = Vec::new();
        let mut add = |what: &str, contender: &str, value: f64| {
            let (unit, what, contender) = (self.key(), what.to_owned(), contender.to_owned());
            results.push(Measured { unit, what, contender, value });
        };
        match *self {
            Self::Operations(entries, containing) => {
                let kinds = kinds_for(entries);
                let mut contenders: Vec<Contender> = kinds.iter().map(|&kind| Contender::new(kind)).collect();
                let rows = Rows { containing, rounds: None, patience: Duration::from_millis(400) };
                compare::measure(&Workload::new(entries, Shape::USUAL), &mut contenders, rows, |operation, medians| {
                    for (kind, median) in kinds.iter().zip(medians) {
                        median.iter().for_each(|&median| add(operation.name, kind.name, median));
                    }
                });
            }
            Self::Memory(entries) => {
                for kind in kinds_for(entries) {
                    for value_len in [8, 100] {
                        let (allocated, resident) = footprint(kind, entries, Shape { value_len, ..Shape::USUAL });
                        let named = [("allocated", allocated), ("resident", resident)];
                        for (name, bytes) in named.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))) {
                            add(&format!("{name} {value_len}"), kind.name, bytes);
                        }
                    }
                }
            }
            Self::Delta(entries) => deltas(entries, add),
            Self::Operators => {
                let args = operators::Args { events: 500_000, checkpoint_every: 50_000, with: Vec::new() };
                operators::measure(&args, |workload, numbers| {
                    for (kind, number) in ALL.iter().zip(numbers) {
                        number.iter().for_each(|&number| add(workload, kind.name, number));
                    }
                })
                .expect("nothing can fail in memory");
            }
        }
        results
    }
}

/// The contenders that are fast enough for so many entries.
fn kinds_for(entries: usize) -> Vec<Kind> {
    let patient = [GLUED.name, HOT.name, IN_MEMORY.name, "imbl", "hashbrown"];
    ALL.iter().filter(|kind| entries <= 1_000_000 || patient.contains(&kind.name)).copied().collect()
}

/// Milliseconds for a checkpoint of so many entries, as more of them changed: as a delta, and whole.
fn deltas(entries: usize, mut add: impl FnMut(&str, &str, f64)) {
    let shape = Shape::USUAL;
    for kind in [HOT, IN_MEMORY, GLUED] {
        let mut store = (kind.make)();
        let put = |store: &mut dyn opstate::StateStore, entry: usize, tag: usize| {
            store.put(&key(&shape, entry as u32), &(tag << 32 | entry).to_le_bytes()).expect("the entry is short");
        };
        (0..entries).for_each(|entry| put(&mut *store, entry, 0));
        for (place, share) in [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0].into_iter().enumerate() {
            let changed = ((entries as f64 * share) as usize).max(1);
            let (mut by_delta, mut whole) = (Vec::new(), Vec::new());
            for round in 0..3 {
                let earlier = store.snapshot();
                // A chain of checkpoints knows one end of each delta.
                earlier.fingerprint();
                // An odd step, so that they are spread over all entries.
                (0..changed).for_each(|at| put(&mut *store, at * 7919 % entries, 1 + 3 * place + round));
                let start = Instant::now();
                let later = store.snapshot();
                black_box(later.delta_since(&earlier).to_bytes());
                by_delta.push(start.elapsed().as_secs_f64() * 1e3);
                let start = Instant::now();
                black_box(store.snapshot().to_bytes());
                whole.push(start.elapsed().as_secs_f64() * 1e3);
            }
            for (name, times) in [("delta", by_delta), ("whole", whole)] {
                add(&format!("{name} {share}"), kind.name, compare::median(times).expect("three rounds"));
            }
        }
    }
}

pub(crate) fn main(args: &Args) -> Result<(), Box<dyn Error>> {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("a crate within another one")?;
    let directory =
        if args.sizes.is_empty() { benches.join("report") } else { std::env::temp_dir().join("opstate-report") };
    fs::create_dir_all(&directory)?;
    let kept = directory.join("results.tsv");
    if args.fresh && kept.exists() {
        fs::remove_file(&kept)?;
    }

    let mut sizes = args.sizes.clone();
    if sizes.is_empty() {
        sizes = vec![1_000, 10_000, 100_000, 1_000_000];
        sizes.extend(args.full.then_some(10_000_000));
    }
    let largest = sizes.iter().copied().max().unwrap_or(0).min(1_000_000);
    let mut units = Vec::new();
    for &entries in &sizes {
        // All operations at two sizes; what is drawn at all of them.
        let all = entries == largest || entries == 10_000;
        units.extend(if all {
            vec![Unit::Operations(entries, "")]
        } else {
            ["get", "snapshot"].map(|it| Unit::Operations(entries, it)).into()
        });
        units.push(Unit::Memory(entries));
    }
    units.push(Unit::Delta(largest));
    units.push(Unit::Operators);

    let start = Instant::now();
    let done: BTreeSet<String> = read(&kept)?.into_iter().map(|measured| measured.unit).collect();
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {msg}")?;
    let bar = ProgressBar::new(units.len() as u64).with_style(style);
    for unit in &units {
        bar.set_message(unit.key());
        bar.tick();
        if !done.contains(&unit.key()) {
            if start.elapsed().as_secs_f64() > args.minutes * 60.0 {
                bar.suspend(|| println!("stopped after {} minutes; run it again to go on", args.minutes));
                break;
            }
            keep(&kept, &unit.measure())?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let results = read(&kept)?;
    write(&directory, &results, largest)?;
    println!("the report is in {}", directory.display());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Measured>, Box<dyn Error>> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(Vec::new()) };
    let parse = |line: &str| {
        let mut parts = line.split('\t').map(str::to_owned);
        let mut next = || parts.next().ok_or_else(|| format!("{}: a line with too few parts: {line}", path.display()));
        let (unit, what, contender, value) = (next()?, next()?, next()?, next()?);
        Ok(Measured { unit, what, contender, value: value.parse()? })
    };
    text.lines().map(parse).collect()
}

fn keep(path: &Path, results: &[Measured]) -> io::Result<()> {
    let mut lines = String::new();
    for Measured { unit, what, contender, value } in results {
        writeln!(lines, "{unit}\t{what}\t{contender}\t{value}").expect("a string takes everything");
    }
    // In one write, so that a unit is there or not.
    OpenOptions::new().create(true).append(true).open(path)?.write_all(lines.as_bytes())
}

/// Writes tables and plots.
fn write(directory: &Path, results: &[Measured], largest: usize) -> Result<(), Box<dyn Error>> {
    let find = |unit: &str, what: &str, contender: &str| {
        let is_it = |it: &&Measured| it.unit.starts_with(unit) && it.what == what && it.contender == contender;
        results.iter().find(is_it).map(|measured| measured.value)
    };
    let mut text = format!(
        "# HotStore beside what else there is\n\n\
         {}\n\n\
         Every store through the same `Box<dyn StateStore>`, keys of 12 bytes in random order, values of 8 bytes, medians of\n\
         interleaved rounds in one process after all gave the same answers. A dash: it cannot do that. Made by\n\
         `cargo run --release --manifest-path benches/versus/Cargo.toml -- report`.\n\n\
         `glued maps` are an `AHashMap` beside a `BTreeSet`; `hashbrown` is a hash map alone, without any order; `redb` keeps\n\
         its pages in memory, `fjall` its files in a temporary directory, and both do much that is not asked for here. A\n\
         snapshot is the cheapest view of one instant that a store offers.\n",
        conditions()
    );
    for entries in [10_000, largest] {
        let unit = format!("operations {entries} ");
        let mut table = head(ALL, "ns per operation or entry", Better::Less);
        for operation in OPERATIONS {
            let numbers: Vec<_> = ALL.iter().map(|kind| find(&unit, operation.name, kind.name)).collect();
            add_row(&mut table, ALL, operation.title, &numbers, Better::Less);
        }
        for what in ["allocated 8", "resident 8", "allocated 100", "resident 100"] {
            let unit = format!("memory {entries}");
            let numbers: Vec<_> = ALL.iter().map(|kind| find(&unit, what, kind.name)).collect();
            let (kind, value_len) = what.split_once(' ').ok_or("two words")?;
            add_row(&mut table, ALL, &format!("{kind} bytes an entry, value {value_len}"), &numbers, Better::Less);
        }
        write!(text, "\n## {} entries\n\n{table}\n", grouped(entries as f64))?;
    }

    let mut table = head(ALL, "thousand events a second", Better::More);
    for workload in results.iter().filter(|it| it.unit == "operators" && it.contender == HOT.name) {
        let of = |kind: &Kind| Some(find("operators", &workload.what, kind.name)? / 1e3);
        add_row(&mut table, ALL, &workload.what, &ALL.iter().map(of).collect::<Vec<_>>(), Better::More);
    }
    write!(
        text,
        "\n## Operators\n\n\
         Whole operators with a checkpoint every 50,000 events, which another thread serializes. Here more is better. fjall\n\
         is not in time: its scans pass over what was deleted and not compacted yet.\n\n{table}\n"
    )?;

    let over_sizes = |prefix: &str, what: &str| -> Vec<Series> {
        let points_of = |kind: &Kind| {
            let of_it =
                results.iter().filter(|it| it.unit.starts_with(prefix) && it.what == what && it.contender == kind.name);
            let point = |it: &Measured| Some((it.unit.split(' ').nth(1)?.parse().ok()?, it.value));
            let mut points: Vec<(f64, f64)> = of_it.filter_map(point).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let series = ALL.iter().map(|kind| Series { name: kind.name.to_owned(), points: points_of(kind) });
        series.filter(|series| !series.points.is_empty()).collect()
    };
    let over_shares = || -> Vec<Series> {
        let mut all = Vec::new();
        for kind in [HOT, IN_MEMORY, GLUED] {
            for (name, title) in [("delta ", "delta"), ("whole ", "full image")] {
                let of_it = results.iter().filter(|it| it.unit.starts_with("delta") && it.contender == kind.name);
                let point = |it: &Measured| Some((100.0 * it.what.strip_prefix(name)?.parse::<f64>().ok()?, it.value));
                all.push(Series { name: format!("{}, {title}", kind.name), points: of_it.filter_map(point).collect() });
            }
        }
        all
    };
    let lookups = Texts { caption: "Lookup of a random key", x: "entries", y: "ns" };
    let snapshots = Texts { caption: "Taking a snapshot: how long the writer stands still", x: "entries", y: "ns" };
    let memory =
        Texts { caption: "Resident memory, keys of 12 bytes and values of 8", x: "entries", y: "bytes an entry" };
    let caption = format!("Checkpoint of {} entries, by what changed since the last one", grouped(largest as f64));
    let deltas = Texts { caption: &caption, x: "changed entries, %", y: "ms" };
    writeln!(text, "\n## Plots\n")?;
    let budget = Some((500.0, "500 ns, the budget"));
    for (name, texts, series, limit) in [
        ("lookup", lookups, over_sizes("operations", "get"), budget),
        ("snapshot", snapshots, over_sizes("operations", "snapshot"), None),
        ("memory", memory, over_sizes("memory", "resident 8"), None),
        ("delta", deltas, over_shares(), None),
    ] {
        let path: PathBuf = directory.join(format!("{name}.svg"));
        plot(&path, &texts, &series, limit)?;
        writeln!(text, "![{}]({name}.svg)\n", texts.caption)?;
    }
    fs::write(directory.join("README.md"), text)?;
    Ok(())
}

/// The machine, the compiler and the date.
fn conditions() -> String {
    let says = |program: &str, arg: &str| {
        let output = Command::new(program).arg(arg).output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("unknown {program}"))
    };
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "Machine: {}, {cores} cores (a virtual machine may share them), {} of memory. Compiler: {}. Date: {}.",
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal"),
        says("rustc", "-V"),
        says("date", "+%F"),
    )
}
