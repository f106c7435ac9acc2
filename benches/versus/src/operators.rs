//! Operators end to end: events per second, with checkpoints.
//!
//! ```text
//!   events ──> operator ── get, put, modify, scan, delete_range ──> store
//!                 │                                                   │ every so many events: freeze
//!                 v                                                   v
//!          results (a digest)                        another thread: snapshot, image
//! ```
//!
//! All contenders get the same events, and must come to the same results. A checkpoint begins when the one before it is
//! written, so whoever serializes slowly waits.
//!
//! fjall is left out: a scan passes over all that was deleted and not compacted yet, so that a window that closes takes
//! seconds after some ten thousand events.

mod dedup;
mod flights;
mod join;
pub(crate) mod stream;
mod windows;

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use opstate::{StateError, StateStore};

use crate::common::compare::{Better, add_row, head, progress};
use crate::common::contender::{Bench, Kind};
use crate::contenders::ALL;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Events of the generated streams.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) events: usize,
    /// Events from one checkpoint to the next.
    #[arg(long, default_value_t = 50_000)]
    pub(crate) checkpoint_every: usize,
    /// Only the contenders whose names contain one of these.
    #[arg(long, value_delimiter = ',')]
    pub(crate) with: Vec<String>,
}

/// Something that keeps its state in a store.
trait Operator {
    /// Deals with the event of this number, and adds to the results what became final by it.
    fn on_event(&mut self, number: usize, store: &mut dyn StateStore, results: &mut Results) -> Result<(), StateError>;
}

/// Stands for all results, whatever their order within one instant.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Results {
    count: u64,
    sum: u64,
}

impl Results {
    fn add(&mut self, parts: &[u64]) {
        let mix = |hash: u64, part: &u64| (hash ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        self.count += 1;
        self.sum = self.sum.wrapping_add(parts.iter().fold(0, mix));
    }
}

/// Events per second of each contender, `None` for those that have no scans or snapshots, by workload.
pub(crate) fn measure(args: &Args, mut add: impl FnMut(&str, &[Option<f64>])) -> Result<(), StateError> {
    let events = stream::events(args.events);
    let departures = flights::departures();
    type Make<'a> = Box<dyn Fn() -> Box<dyn Operator + 'a> + 'a>;
    let workloads: [(&str, usize, Make<'_>); 4] = [
        (
            "flights: windows of days by route, real events",
            flights::EVENTS,
            Box::new(|| Box::new(flights::Routes::new(&departures))),
        ),
        ("windows of 10 s: bids by auction", events.len(), Box::new(|| Box::new(windows::BidsByAuction::new(&events)))),
        ("join: auctions with their bids", events.len(), Box::new(|| Box::new(join::WinningBids::new(&events)))),
        ("dedup: bids seen in the last 30 s", events.len(), Box::new(|| Box::new(dedup::FirstBids::new(&events)))),
    ];
    for (name, len, make) in workloads {
        let mut expected = None;
        let mut numbers = Vec::new();
        for kind in ALL {
            progress(&format!("{name}, {}", kind.name));
            let is_chosen = args.with.is_empty() || args.with.iter().any(|with| kind.name.contains(with));
            if !(kind.can.scan && kind.can.snapshot && is_chosen && kind.name != "fjall") {
                numbers.push(None);
                continue;
            }
            let mut rounds = Vec::new();
            for _ in 0..3 {
                let (per_second, results) = run(*kind, len, &mut *make(), args.checkpoint_every)?;
                assert_eq!(*expected.get_or_insert(results), results, "results of {} for {name}", kind.name);
                rounds.push(per_second);
            }
            numbers.push(crate::common::compare::median(rounds));
        }
        add(name, &numbers);
    }
    progress("");
    Ok(())
}

fn run(kind: Kind, events: usize, operator: &mut dyn Operator, every: usize) -> Result<(f64, Results), StateError> {
    let mut store: Box<dyn Bench> = (kind.make)();
    let mut results = Results::default();
    let mut writing: Option<JoinHandle<u64>> = None;
    let join = |writing: Option<JoinHandle<u64>>| writing.map(|writing| writing.join().expect("a checkpoint"));
    let start = Instant::now();
    for number in 0..events {
        operator.on_event(number, &mut *store, &mut results)?;
        if (number + 1).is_multiple_of(every) {
            join(writing.take());
            let frozen = store.freeze();
            writing = Some(thread::spawn(move || frozen().write_to(io::sink()).expect("a sink takes everything")));
        }
    }
    join(writing);
    Ok((events as f64 / start.elapsed().as_secs_f64(), results))
}

pub(crate) fn main(args: &Args) -> Result<(), StateError> {
    let mut table = head(ALL, "thousand events a second", Better::More);
    measure(args, |name, numbers| {
        let thousands: Vec<Option<f64>> = numbers.iter().map(|number| Some((*number)? / 1e3)).collect();
        add_row(&mut table, ALL, name, &thousands, Better::More);
    })?;
    println!("{table}");
    Ok(())
}
