//! The lookup budget: `cargo bench --bench budget` fails if a typical lookup takes more than 500 ns although the store
//! promises less.
//!
//! Random keys are looked up through `Box<dyn StateStore>`, one after the other. They lie in one buffer, so that reading
//! them misses no cache. Half of the benchmarks look up keys of the store, half look up keys next to those.
//!
//! Criterion measures, and the median of its samples is the verdict. A median over the budget is measured up to four times
//! more, and the shortest counts: a busy machine makes lookups slower, but never faster.
//!
//! Criterion does not time single lookups. So some are timed one by one, for the percentiles in the table, and the time
//! that reading the clock takes is subtracted.
//!
//! `-- --quick` leaves out the sizes that no cache holds, because other programs make those several times as slow. An
//! argument that is a part of a name selects benchmarks, as always with criterion. With `OPSTATE_BUDGET_SLEEP=1` in the
//! environment, a store that sleeps at each lookup shows that the benchmark can fail.

mod common;

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::ops::Range;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use comfy_table::{CellAlignment, Table, presets};
use criterion::Criterion;
use opstate::{Entries, HotStore, InMemoryStore, StateError, StateSnapshot, StateStore};

use common::compare::grouped;
use common::workload::{ROUNDS, Shape, Workload};

const BUDGET_NS: f64 = 500.0;
/// Samples that criterion takes of each benchmark.
const SAMPLES: usize = 20;
/// Samples that criterion takes of each benchmark with `--quick`.
const SAMPLES_IF_QUICK: usize = 2;
const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// Number of lookups that are timed one by one.
const SINGLE: usize = 20_000;

struct Store {
    name: &'static str,
    make: fn() -> Box<dyn StateStore>,
    /// Largest numbers of entries for which the store's documentation promises lookups within the budget: with values of
    /// 8 bytes, and of 100.
    promised: [usize; 2],
    /// Largest number of entries that is measured.
    most: usize,
}

const STORES: [Store; 2] = [
    Store { name: "HotStore", make: || Box::new(HotStore::new()), promised: [10_000_000; 2], most: 10_000_000 },
    Store {
        name: "InMemoryStore",
        make: || Box::new(InMemoryStore::new()),
        promised: [300_000, 50_000],
        most: 1_000_000,
    },
];

const SLEEPING: Store =
    Store { name: "Sleeping", make: || Box::new(Sleeping(HotStore::new())), promised: [1_000; 2], most: 1_000 };

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let is_quick = env::args().any(|arg| arg == "--quick");
    let stores = if env::var_os("OPSTATE_BUDGET_SLEEP").is_some() { &[SLEEPING][..] } else { &STORES };
    let criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    let samples = if is_quick { SAMPLES_IF_QUICK } else { SAMPLES };
    let mut bench = Bench { criterion, samples, overhead: overhead(), lines: Vec::new() };
    for store in stores {
        for (value_len, promised) in [8, 100].into_iter().zip(store.promised) {
            let most = if is_quick { store.most.min(10_000) } else { store.most };
            for entries in SIZES.into_iter().filter(|&entries| entries <= most) {
                bench.lookups(store, value_len, entries, promised)?;
            }
        }
    }
    bench.criterion.final_summary();
    if bench.lines.is_empty() {
        // The arguments select no benchmark, or ask for a list.
        return Ok(ExitCode::SUCCESS);
    }
    Ok(report(&bench.lines))
}

struct Bench {
    criterion: Criterion,
    /// Samples that criterion takes of each benchmark, after those to warm up.
    samples: usize,
    /// Time that reading the clock takes.
    overhead: Duration,
    lines: Vec<Line>,
}

/// One row of the report.
struct Line {
    name: String,
    typical_ns: f64,
    percentiles: [Duration; 3],
    is_promised: bool,
}

impl Bench {
    fn lookups(
        &mut self,
        store: &Store,
        value_len: usize,
        entries: usize,
        promised: usize,
    ) -> Result<(), Box<dyn Error>> {
        let shape = Shape { value_len, ..Shape::USUAL };
        let work = Workload::new(entries, shape);
        let mut filled = (store.make)();
        for &entry in &work.order {
            filled.put(&work.key(entry), &work.value(entry, 0))?;
        }
        let asked = || (0..ROUNDS).map(|round| work.asked(round));
        let present: Vec<u8> = asked().flat_map(|(_, keys)| keys).copied().collect();
        let absent: Vec<u8> =
            asked().flat_map(|(entries, _)| entries).flat_map(|&entry| work.absent_key(entry).to_vec()).collect();
        for (what, keys) in [("hit", &present), ("miss", &absent)] {
            let keys: Vec<&[u8]> = keys.chunks_exact(shape.key_len).collect();
            assert!(keys.iter().take(1_000).all(|key| filled.get(key).is_some() == (what == "hit")));
            let name = format!("{}/{what}/value {value_len}/{entries}", store.name);
            let is_promised = entries <= promised;
            let Some(mut typical_ns) = self.median(&name, 0, &*filled, &keys) else { continue };
            for again in 1..5 {
                if is_promised && typical_ns > BUDGET_NS {
                    typical_ns = self.median(&name, again, &*filled, &keys).unwrap_or(f64::MAX).min(typical_ns);
                }
            }
            let percentiles = self.single(&*filled, &keys);
            self.lines.push(Line { name, typical_ns, percentiles, is_promised });
        }
        Ok(())
    }

    /// Returns the median of criterion's samples, in nanoseconds, or `None` if the arguments leave this benchmark out.
    fn median(&mut self, name: &str, again: usize, store: &dyn StateStore, keys: &[&[u8]]) -> Option<f64> {
        let id = if again == 0 { name.to_owned() } else { format!("{name}/again {again}") };
        let mut next = keys.iter().cycle();
        let mut samples = Vec::new();
        self.criterion.bench_function(&id, |bencher| {
            bencher.iter_custom(|lookups| {
                let start = Instant::now();
                for _ in 0..lookups {
                    black_box(store.get(next.next().expect("the keys never end")));
                }
                let time = start.elapsed();
                samples.push(time.as_nanos() as f64 / lookups as f64);
                time
            });
        });
        // The samples before these warm up.
        let start = samples.len().saturating_sub(self.samples);
        let samples = &mut samples[start..];
        samples.sort_by(f64::total_cmp);
        let below_middle = samples.len().checked_sub(1)? / 2;
        Some((samples[below_middle] + samples[samples.len() / 2]) / 2.0)
    }

    /// Returns the median and two high percentiles of lookups that are timed one by one.
    fn single(&self, store: &dyn StateStore, keys: &[&[u8]]) -> [Duration; 3] {
        let mut times: Vec<Duration> = (keys.iter().cycle().take(SINGLE))
            .map(|key| {
                let start = Instant::now();
                black_box(store.get(key));
                start.elapsed().saturating_sub(self.overhead)
            })
            .collect();
        times.sort_unstable();
        [0.5, 0.99, 0.999].map(|share| times[(share * times.len() as f64) as usize])
    }
}

/// Returns the time that reading the clock takes.
fn overhead() -> Duration {
    let mut times: Vec<Duration> = (0..SINGLE).map(|_| Instant::now().elapsed()).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn report(lines: &[Line]) -> ExitCode {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["lookup, ns", "typical", "p50", "p99", "p99.9", "within 500 ns"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for Line { name, typical_ns, percentiles, is_promised } in lines {
        let mut cells = vec![name.clone(), grouped(*typical_ns)];
        cells.extend(percentiles.iter().map(|time| grouped(time.as_nanos() as f64)));
        let verdict = match (is_promised, *typical_ns <= BUDGET_NS) {
            (true, true) => "yes",
            (true, false) => "NO",
            (false, true) => "yes, not promised",
            (false, false) => "no, not promised",
        };
        cells.push(verdict.to_owned());
        table.add_row(cells);
    }
    println!("{table}");
    let over: Vec<&Line> = lines.iter().filter(|line| line.is_promised && line.typical_ns > BUDGET_NS).collect();
    for Line { name, typical_ns, .. } in &over {
        println!("over the budget of 500 ns: {name} takes {typical_ns:.0} ns");
    }
    if over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A store with lookups over the budget.
struct Sleeping(HotStore);

impl StateStore for Sleeping {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        thread::sleep(Duration::from_micros(1));
        self.0.get(key)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.0.put(key, value)
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        self.0.delete(key)
    }

    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
        self.0.prefix_scan(prefix)
    }

    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
        self.0.range_scan(range)
    }

    fn size_bytes(&self) -> usize {
        self.0.size_bytes()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn snapshot(&self) -> StateSnapshot {
        self.0.snapshot()
    }

    fn restore(&mut self, snapshot: StateSnapshot) {
        self.0.restore(snapshot);
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
