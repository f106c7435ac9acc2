//! A small stream processor on `opstate`, complete with checkpoints and recovery.
//!
//! It replays 20,000 real departures, aggregates them per route and day and per airport on any number of workers, and
//! takes incremental checkpoints off the event loop. It can be killed at any moment and resumed, with another number of
//! workers if you like; the results are the same to the last byte:
//!
//! ```text
//! cargo run --release --example flights
//! cargo run --release --example flights -- --workers 2 --crash-after 12345
//! cargo run --release --example flights -- --workers 3 --resume
//! ```
//!
//! ```text
//!                              ┌─> worker: operators, a store each ─┐
//!   source ──> reactor ─ exchange ─> worker                          ├─ snapshots ─> writer ─> chain ─> directory
//!                              └─> worker                          ─┘
//!        time, barriers   by origin                            at a barrier   full image or deltas
//! ```
//!
//! Where to look: `operators.rs` for how operators use their stores, `reactor.rs` and `worker.rs` for barriers and
//! snapshots, `shards.rs` for how state moves to another number of workers, `checkpoint.rs` for how snapshots get into a
//! file and back, `chain.rs` for when that is an image and when a delta.

mod calendar;
mod chain;
mod checkpoint;
mod directory;
mod disk;
mod events;
mod exchange;
mod faults;
mod operators;
mod progress;
mod reactor;
mod report;
mod shards;
#[cfg(test)]
mod simulation;
mod worker;
mod writer;

use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum, value_parser};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use opstate::{HotStore, InMemoryStore, StateStore};

use crate::chain::{ChainWriter, load_newest};
use crate::checkpoint::Job;
use crate::directory::Directory;
use crate::disk::RealDisk;
use crate::events::Source;
use crate::faults::{Faults, Moment};
use crate::operators::Operators;
use crate::reactor::{Reactor, Schedule};
use crate::report::{Report, counted, write_results};
use crate::shards::{KEY_GROUPS, Shards};
use crate::writer::Writer;

pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const INPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights-20k.csv");

const CHECKPOINT_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/flights-checkpoints");

/// Aggregate flight departures as a stream, with checkpoints and recovery.
#[derive(Parser)]
struct Args {
    /// CSV file of departures, sorted by schedule
    #[arg(long, value_name = "FILE", default_value = INPUT)]
    input: PathBuf,

    /// The kind of store that holds the operators' state: `HotStore` or `InMemoryStore`
    #[arg(long, value_enum, default_value_t = StoreKind::Hot)]
    store: StoreKind,

    /// Threads that share the work, each with the state of some origins; --resume may change their number
    #[arg(long, value_name = "THREADS", default_value_t = 1,
        value_parser = value_parser!(u32).range(1..=i64::from(KEY_GROUPS)))]
    workers: u32,

    /// How long a day's window stays open for events that come late
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    allowed_lateness: u32,

    /// Events from one barrier to the next
    #[arg(long, value_name = "EVENTS", default_value_t = 1000, value_parser = value_parser!(u64).range(1..))]
    barrier_every: u64,

    /// Barriers from one checkpoint to the next
    #[arg(long, value_name = "BARRIERS", default_value_t = 2, value_parser = value_parser!(u64).range(1..))]
    checkpoint_every: u64,

    /// Write every so many-th checkpoint in full, and of the others only what has changed; 1 writes all in full
    #[arg(long, value_name = "CHECKPOINTS", default_value_t = 4, value_parser = value_parser!(u64).range(1..))]
    compact_every: u64,

    /// Where checkpoints are written; without --resume, those already there are removed
    #[arg(long, value_name = "DIR", default_value = CHECKPOINT_DIR)]
    checkpoint_dir: PathBuf,

    /// Skip a checkpoint that is due while the one before it is still being written, instead of waiting
    #[arg(long)]
    skip_when_busy: bool,

    /// Continue from the newest checkpoint that is intact
    #[arg(long)]
    resume: bool,

    /// Kill this process after so many events of this run; those before the checkpoint of --resume do not count
    #[arg(long, value_name = "EVENTS", value_parser = value_parser!(u64).range(1..))]
    crash_after: Option<u64>,

    /// Kill this process in a checkpoint, by its number in this run and a step of writing it: half-written, written,
    /// renamed, durable or removing; for example 3:renamed
    #[arg(long, value_name = "NUMBER:STEP")]
    crash_in: Option<Moment>,

    /// Say on stderr of every checkpoint when it is on disk
    #[arg(long)]
    log_checkpoints: bool,

    /// Let a checkpoint fail in the same way, as on a full disk; the job goes on
    #[arg(long, value_name = "NUMBER:STEP")]
    fail_in: Option<Moment>,

    /// Write the results to this file, as CSV
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,

    /// List only routes with at least so many flights
    #[arg(long, value_name = "FLIGHTS", default_value_t = 20)]
    min_flights: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum StoreKind {
    Hot,
    Memory,
}

impl StoreKind {
    /// The only place that knows which stores there are; operators see `dyn StateStore`.
    fn new_store(self) -> Box<dyn StateStore> {
        match self {
            Self::Hot => Box::new(HotStore::new()),
            Self::Memory => Box::new(InMemoryStore::new()),
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let source = Source::read(&args.input)?;
    let job = Job { input_hash: source.hash, allowed_lateness_min: args.allowed_lateness };
    let shards = Shards::over(args.workers)?;
    let mut reactor = Reactor::new(shards, || Operators::new(|| args.store.new_store()));

    let directory = Directory::open(args.checkpoint_dir.clone(), Box::new(RealDisk))?;
    if !args.resume {
        directory.clear()?;
    } else if let Some((path, checkpoint)) = load_newest(&directory, job, &mut |problem| eprintln!("{problem}"))? {
        reactor.restore(checkpoint)?;
        eprintln!("resumed at event {} from {}", HumanCount(reactor.progress.position), path.display());
    } else {
        eprintln!("there is no checkpoint to resume from; starting at the first event");
    }
    let chain = ChainWriter::new(directory, args.compact_every)?;
    let faults = Faults { crash_in: args.crash_in, fail_in: args.fail_in };
    let (mut writer, snapshots) = Writer::start(chain, job, shards, faults, args.log_checkpoints)?;

    let schedule = Schedule {
        allowed_lateness_min: args.allowed_lateness,
        barrier_every: args.barrier_every,
        checkpoint_every: args.checkpoint_every,
        skip_when_busy: args.skip_when_busy,
        crash_after: args.crash_after,
    };
    // Shows on a terminal only.
    let bar = ProgressBar::new(source.departures.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:60} {human_pos} of {human_len} events")?);
    reactor.run(&source.departures, schedule, &mut writer, snapshots, &bar)?;
    bar.finish_and_clear();
    if let Some(asked) = args.crash_after {
        let events = counted(reactor.metrics.events, "event");
        eprintln!("did not crash: this run ended after {events}, before the {} asked for", HumanCount(asked));
    }
    let outcome = writer.finish()?;
    if args.crash_in.is_some() {
        eprintln!("did not crash: no checkpoint of this run came to what --crash-in asked for");
    }

    if let Some(path) = &args.results {
        write_results(path, &reactor).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    let report = Report { source: &source, reactor: &reactor, outcome: &outcome, min_flights: args.min_flights };
    match io::stdout().write_all(report.render()?.as_bytes()) {
        // Whoever reads the output, `head` for one, has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result.map_err(|error| format!("cannot print the report: {error}"))?),
    }
}
