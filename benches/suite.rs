//! Every operation of every store of this crate, and of the glued maps, by criterion: `cargo bench --bench suite`.
//!
//! All of them at 10,000 entries, and what depends on the size at 1,000,000, too: lookups, writes and scans of several kinds
//! of keys and values. Answers are checked to be the same before anything is timed. With a part of a name only the
//! benchmarks that contain it run: `cargo bench --bench suite -- get/`. `-- --quick` takes some minutes.
//!
//! Stores do not run in turn here, as they do in the benchmark `hot`. So compare a benchmark with its own past, which
//! criterion keeps (`-- --save-baseline NAME`, `-- --baseline NAME`), rather than stores with each other.

mod common;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion};

use common::contender::{Contender, GLUED, HOT, IN_MEMORY};
use common::operations::{OPERATIONS, Operation};
use common::workload::{Keys, Shape, Workload, check_equal};

/// The shapes, with the operations that run on each.
const SHAPES: &[(&str, usize, Shape, &[&str])] = &[
    ("10k", 10_000, Shape::USUAL, &[]),
    ("1m", 1_000_000, Shape::USUAL, &["get", "chain", "read", "get-many", "update", "put-many", "first", "visit"]),
    ("10k-zipf", 10_000, Shape { zipf: true, ..Shape::USUAL }, &["get", "update"]),
    ("10k-sequential", 10_000, Shape { keys: Keys::Sequential, ..Shape::USUAL }, &["get", "replace", "visit"]),
    ("10k-windows", 10_000, Shape { keys: Keys::Window, ..Shape::USUAL }, &["get", "replace", "prefix-scan"]),
    ("10k-keys-of-40", 10_000, Shape { key_len: 40, ..Shape::USUAL }, &["get", "update", "replace", "visit"]),
    ("10k-keys-of-200", 10_000, Shape { key_len: 200, ..Shape::USUAL }, &["get", "update", "replace", "visit"]),
    ("10k-values-of-100", 10_000, Shape { value_len: 100, ..Shape::USUAL }, &["get", "update", "resize", "scan"]),
    ("10k-values-of-1k", 10_000, Shape { value_len: 1 << 10, ..Shape::USUAL }, &["get", "update", "scan"]),
    ("1k-values-of-64k", 1_000, Shape { value_len: 64 << 10, ..Shape::USUAL }, &["get", "read", "update"]),
];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    for &(shape_name, entries, shape, names) in SHAPES {
        let is_chosen = |operation: &&Operation| names.is_empty() || names.contains(&operation.name);
        let work = Workload::new(entries, shape);
        let mut contenders = [GLUED, IN_MEMORY, HOT].map(Contender::new);
        for contender in &mut contenders {
            // The first operation fills the store.
            (OPERATIONS[0].run)(&work, contender, 0);
        }
        check_equal(&work, &contenders.each_ref());
        for operation in OPERATIONS.iter().filter(is_chosen) {
            let mut group = criterion.benchmark_group(operation.name);
            for contender in &mut contenders {
                let mut round = 0;
                group.bench_function(BenchmarkId::new(contender.kind.name, shape_name), |bencher| {
                    // One round is as short as it can be; what it took is scaled to what criterion asks for.
                    bencher.iter_custom(|operations| {
                        round += 1;
                        let nanoseconds = (operation.run)(&work, contender, round).ns() * operations as f64;
                        Duration::from_nanos(nanoseconds as u64)
                    });
                });
            }
            group.finish();
        }
    }
    criterion.final_summary();
}
