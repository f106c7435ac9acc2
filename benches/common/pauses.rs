//! Pauses: how long the slowest calls take, as processor time, so that what other processes do does not count. On 64-bit
//! Linux only.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use opstate::{HotStore, StateStore};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::workload::{Shape, key, shuffled};

/// The processor time of this thread. It takes some 200 ns to ask for.
pub(crate) fn thread_time() -> Duration {
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    #[allow(unsafe_code, reason = "the standard library does not offer this clock")]
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    #[allow(unsafe_code, reason = "as above")]
    // SAFETY: the call writes to the struct, which is laid out as it is on 64-bit Linux.
    let failed = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "64-bit Linux has this clock");
    Duration::new(time.seconds.unsigned_abs(), time.nanoseconds as u32)
}

/// Makes so many calls and notes how long each took.
fn time(calls: usize, mut call: impl FnMut(usize)) -> Vec<u32> {
    let mut last = thread_time();
    let took = (0..calls).map(|number| {
        call(number);
        let now = thread_time();
        let took = now - last;
        last = now;
        u32::try_from(took.as_nanos()).unwrap_or(u32::MAX)
    });
    took.collect()
}

/// Inserts so many entries and then churns: updates of other lengths, deletions and insertions, half of the time under a
/// snapshot, which another thread drops as if it had serialized it.
pub(crate) fn report(entries: usize, shape: &Shape) -> String {
    let mut store = HotStore::new();
    let mut report = String::new();
    let order = shuffled(entries);
    let put =
        |store: &mut HotStore, entry, value: &[u8]| store.put(&key(shape, entry), value).expect("the entry is short");
    let inserts = time(entries, |number| put(&mut store, order[number], &number.to_le_bytes()));
    line(&mut report, "insert", inserts);

    let mut random = SmallRng::seed_from_u64(1);
    let mut snapshot = None;
    let turn = (entries / 20).max(1);
    let churn = time(entries, |number| {
        match number / turn % 2 {
            0 if number % turn == 0 => snapshot = Some(store.snapshot()),
            1 if number % turn == 0 => drop(thread::spawn({
                let snapshot = snapshot.take();
                move || drop(snapshot)
            })),
            _ => {}
        }
        let entry = random.random_range(0..entries as u32);
        match random.random_range(0..3) {
            0 => store.delete(&key(shape, entry)).expect("nothing can fail in memory"),
            _ => put(&mut store, entry, &[1; 40][..random.random_range(0..40)]),
        }
    });
    line(&mut report, "churn", churn);
    report
}

fn line(report: &mut String, name: &str, mut took: Vec<u32>) {
    took.sort_unstable();
    let at = |share: f64| f64::from(took[((took.len() - 1) as f64 * share) as usize]) / 1000.0;
    let worst: Vec<String> =
        took.iter().rev().take(5).map(|&took| format!("{:.0}", f64::from(took) / 1000.0)).collect();
    writeln!(
        report,
        "{name}: p50 {:.2}, p99 {:.2}, p99.9 {:.2}, p99.99 {:.2}, worst {} us of processor time",
        at(0.5),
        at(0.99),
        at(0.999),
        at(0.9999),
        worst.join(" ")
    )
    .expect("a string takes everything");
    // By powers of two: how many calls took less than so much, and as much as the line before.
    let mut from = 0;
    for limit in (8..).map(|power| 1_u32 << power) {
        let to = took.partition_point(|&took| took < limit);
        if to > from {
            let (below, count) = (f64::from(limit) / 1000.0, to - from);
            writeln!(report, "{count:>10} below {below:.1} us").expect("a string takes everything");
        }
        if to == took.len() {
            break;
        }
        from = to;
    }
}
