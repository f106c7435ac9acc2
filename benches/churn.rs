//! A large store under everything at once, for a long time: `cargo bench --bench churn -- --gigabytes 5 --minutes 60`.
//!
//! A slot has a key of its own and, at any time, a version or none; a value is computed from both, so every answer can be
//! checked without a second copy of the state. One thread reads, updates, inserts, deletes and scans; another one gets a
//! snapshot whenever it is done with the last, writes what changed since then or, every so often, everything, reads a
//! sample of it and checks that against what the slots were at that moment.
//!
//! Every line is a stretch of time. Calls are timed by processor time, so that other processes do not count; taking that
//! costs 200 ns a call. The first and the last tenth of the run are compared at the end: a store that gets slower or larger
//! drifts.

mod common;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn main() {
    println!("this needs the clock of a thread's processor time, which is asked for on 64-bit Linux only");
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn main() {
    churn::main();
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod churn {
    use std::io::{self, Write};
    use std::ops::{AddAssign, ControlFlow};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::{Duration, Instant};

    use clap::Parser;
    use opstate::{HotStore, StateSnapshot, StateStore, StateStoreExt};
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::common::footprint::resident_bytes;
    use super::common::pauses::thread_time;

    #[derive(Parser)]
    struct Args {
        /// The keys and values that the store is filled with, in units of 10^9 bytes.
        #[arg(long, default_value_t = 5.0)]
        gigabytes: f64,
        /// How long to go on after the store is filled.
        #[arg(long, default_value_t = 60.0)]
        minutes: f64,
        /// Every so many-th checkpoint is a full image.
        #[arg(long, default_value_t = 20)]
        full_every: u64,
        /// Seconds from one checkpoint to the next, or as long as the other thread takes.
        #[arg(long, default_value_t = 2.0)]
        checkpoint_every: f64,
        /// Minutes of a line.
        #[arg(long, default_value_t = 2.0)]
        line: f64,
        /// Ignored: `cargo bench` gives it.
        #[arg(long, hide = true)]
        bench: bool,
    }

    /// A number that looks random, the same for the same input.
    fn mixed(number: u64) -> u64 {
        let number = (number ^ (number >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let number = (number ^ (number >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number ^ (number >> 32)
    }

    /// Keys of 12 to 39 bytes; a hundred slots share the first eight.
    fn key(slot: u32, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(&mixed(u64::from(slot / 100)).to_be_bytes());
        key.extend_from_slice(&slot.to_be_bytes());
        key.resize(12 + (mixed(slot.into()) % 28) as usize, b'k');
    }

    /// Half of all values have 8 to 39 bytes, most of the others up to 512, and one in 64 up to 4,096.
    fn value(slot: u32, version: u32, value: &mut Vec<u8>) {
        let seed = mixed(u64::from(slot) << 32 | u64::from(version));
        // Every other version has the length of the one before.
        let of_len = mixed(u64::from(slot) << 32 | u64::from(version / 2) | 1 << 31);
        let len = match of_len % 64 {
            0 => 513 + of_len / 64 % 3584,
            1..=31 => 40 + of_len / 64 % 473,
            _ => 8 + of_len / 64 % 32,
        };
        value.clear();
        value.extend_from_slice(&seed.to_le_bytes());
        value.resize(len as usize, seed as u8);
    }

    /// The keys and values of a slot on average, one of ten being empty.
    const BYTES_A_SLOT: f64 = 187.0;

    /// How long calls took: by powers of two of nanoseconds.
    #[derive(Clone, Default)]
    struct Times {
        counts: [u64; 32],
        worst: Duration,
    }

    impl Times {
        fn note(&mut self, took: Duration) {
            let ns = took.as_nanos().max(1) as u64;
            self.counts[(ns.ilog2() as usize).min(31)] += 1;
            self.worst = self.worst.max(took);
        }

        fn calls(&self) -> u64 {
            self.counts.iter().sum()
        }

        /// What so large a share of calls took less than, in microseconds: a power of two, or the worst.
        fn below_us(&self, share: f64) -> f64 {
            let mut left = (self.calls() as f64 * share) as u64;
            let found = self.counts.iter().position(|&count| {
                let is_here = count >= left && count > 0;
                left = left.saturating_sub(count);
                is_here
            });
            let below = found.map_or(0.0, |power| (1_u64 << (power + 1)) as f64 / 1e3);
            below.min(us(self.worst))
        }
    }

    impl AddAssign<&Times> for Times {
        fn add_assign(&mut self, other: &Self) {
            self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
            self.worst = self.worst.max(other.worst);
        }
    }

    fn us(time: Duration) -> f64 {
        time.as_nanos() as f64 / 1e3
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Read,
        Update,
        Insert,
        Delete,
        Scan,
        Snapshot,
    }

    const KINDS: [(Kind, &str); 6] = [
        (Kind::Read, "read"),
        (Kind::Update, "update"),
        (Kind::Insert, "insert"),
        (Kind::Delete, "delete"),
        (Kind::Scan, "scan of 100"),
        (Kind::Snapshot, "snapshot"),
    ];

    /// What happened in a stretch of time.
    #[derive(Clone, Default)]
    struct Stretch {
        times: [Times; KINDS.len()],
        /// The processor time of all calls.
        busy: Duration,
        live: f64,
        resident: f64,
    }

    impl Stretch {
        fn calls(&self) -> u64 {
            self.times.iter().map(Times::calls).sum()
        }

        fn ns_a_call(&self) -> f64 {
            self.busy.as_nanos() as f64 / self.calls().max(1) as f64
        }

        /// Resident bytes for each byte of keys and values.
        fn factor(&self) -> f64 {
            self.resident / self.live
        }

        fn merge(&mut self, other: &Self) {
            self.times.iter_mut().zip(&other.times).for_each(|(sum, times)| *sum += times);
            self.busy += other.busy;
        }
    }

    /// A snapshot for the other thread, with some of what it has to hold.
    struct Checkpoint {
        snapshot: StateSnapshot,
        len: usize,
        size_bytes: usize,
        sample: Vec<(u32, Option<u32>)>,
    }

    /// What the other thread did.
    #[derive(Default)]
    struct Written {
        deltas: u64,
        changed: u64,
        images: u64,
        image_bytes: u64,
        image_time: Duration,
    }

    struct CountBytes(u64);

    impl Write for CountBytes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write(checkpoints: &Receiver<Checkpoint>, is_idle: &Sender<()>, full_every: u64) -> Written {
        let mut written = Written::default();
        let mut last: Option<StateSnapshot> = None;
        let (mut key_bytes, mut value_bytes) = (Vec::new(), Vec::new());
        let ask = || is_idle.send(()).is_ok();
        ask();
        for (Checkpoint { snapshot, len, size_bytes, sample }, number) in checkpoints.iter().zip(0..) {
            assert_eq!((snapshot.len(), snapshot.size_bytes()), (len, size_bytes));
            for (slot, version) in sample {
                key(slot, &mut key_bytes);
                let found = snapshot.get(&key_bytes);
                if let Some(version) = version {
                    value(slot, version, &mut value_bytes);
                }
                assert_eq!(found.as_deref(), version.map(|_| &value_bytes[..]), "slot {slot} of checkpoint {number}");
            }
            if number % full_every == 0 {
                let start = Instant::now();
                let mut sink = CountBytes(0);
                snapshot.write_to(&mut sink).expect("nothing fails");
                assert!(sink.0 > size_bytes as u64, "an image has all keys and values");
                written.images += 1;
                written.image_bytes += sink.0;
                written.image_time += start.elapsed();
            } else if let Some(last) = &last {
                let delta = snapshot.delta_since(last);
                delta.write_to(CountBytes(0)).expect("nothing fails");
                written.deltas += 1;
                written.changed += delta.len() as u64;
            }
            last = Some(snapshot);
            ask();
        }
        written
    }

    /// The store, and what has to be in it.
    struct Churn {
        store: Box<dyn StateStore>,
        /// The version of each slot; the lowest bit says whether it is there.
        slots: Vec<u32>,
        random: SmallRng,
        key: Vec<u8>,
        value: Vec<u8>,
        stretch: Stretch,
    }

    impl Churn {
        fn time<R>(&mut self, kind: Kind, call: impl FnOnce(&mut dyn StateStore, &[u8], &[u8]) -> R) -> R {
            let start = thread_time();
            let answer = call(&mut *self.store, &self.key, &self.value);
            let took = thread_time() - start;
            self.stretch.times[kind as usize].note(took);
            self.stretch.busy += took;
            answer
        }

        fn version(&self, slot: u32) -> Option<u32> {
            let state = self.slots[slot as usize];
            (state & 1 == 1).then_some(state >> 1)
        }

        /// Puts the slot's next version.
        fn put(&mut self, slot: u32) {
            let version = (self.slots[slot as usize] >> 1) + 1;
            let kind = if self.version(slot).is_some() { Kind::Update } else { Kind::Insert };
            self.slots[slot as usize] = version << 1 | 1;
            key(slot, &mut self.key);
            value(slot, version, &mut self.value);
            self.time(kind, |store, key, value| store.put(key, value)).expect("the entry is short");
        }

        fn delete(&mut self, slot: u32) {
            self.slots[slot as usize] &= !1;
            key(slot, &mut self.key);
            self.time(Kind::Delete, |store, key, _| store.delete(key)).expect("nothing can fail in memory");
        }

        fn read(&mut self, slot: u32) {
            let version = self.version(slot);
            key(slot, &mut self.key);
            let found = self.time(Kind::Read, |store, key, _| store.get(key));
            if let Some(version) = version {
                value(slot, version, &mut self.value);
            }
            assert_eq!(found.as_deref(), version.map(|_| &self.value[..]), "slot {slot}");
        }

        fn scan(&mut self, slot: u32) {
            let first = slot / 100 * 100;
            let there = (first..first + 100).filter(|&slot| slot < self.slots.len() as u32);
            let there = there.filter(|&slot| self.version(slot).is_some()).count();
            key(slot, &mut self.key);
            let found = self.time(Kind::Scan, |store, key, _| {
                let mut found = 0;
                store.visit_prefix(&key[..8], |_, _| {
                    found += 1;
                    ControlFlow::Continue(())
                });
                found
            });
            assert_eq!(found, there, "the entries of slots {first} to {}", first + 99);
        }

        fn step(&mut self) {
            let slot = self.random.random_range(0..self.slots.len() as u32);
            match self.random.random_range(0..20) {
                0..8 => self.read(slot),
                // Of ten slots nine are there: as many are inserted as are deleted.
                8..17 => self.put(slot),
                17 => self.delete(slot),
                18 if self.random.random_range(0..10) == 0 => self.scan(slot),
                _ => self.read(slot),
            }
        }

        fn checkpoint(&mut self) -> Checkpoint {
            let snapshot = self.time(Kind::Snapshot, |store, _, _| store.snapshot());
            let slots = self.slots.len() as u32;
            let slots: Vec<u32> = (0..2000).map(|_| self.random.random_range(0..slots)).collect();
            let sample = slots.into_iter().map(|slot| (slot, self.version(slot))).collect();
            Checkpoint { snapshot, len: self.store.len(), size_bytes: self.store.size_bytes(), sample }
        }

        fn end_stretch(&mut self) -> Stretch {
            self.stretch.live = self.store.size_bytes() as f64;
            self.stretch.resident = resident_bytes().unwrap_or_default() as f64 - 4.0 * self.slots.len() as f64;
            std::mem::take(&mut self.stretch)
        }

        /// Fills nine slots of ten, in no order of keys.
        fn fill(&mut self) {
            let slots = self.slots.len() as u64;
            // It divides no number of slots that fits in memory, so every slot is met once.
            const STRIDE: u64 = 4_000_000_007;
            for i in 0..slots {
                let slot = (i * STRIDE % slots) as u32;
                if mixed(i) % 10 > 0 {
                    self.put(slot);
                }
            }
        }
    }

    pub(super) fn main() {
        let args = Args::parse();
        let slots = (args.gigabytes * 1e9 / BYTES_A_SLOT) as usize;
        let mut churn = Churn {
            store: Box::new(HotStore::new()),
            slots: vec![0; slots],
            random: SmallRng::seed_from_u64(1),
            key: Vec::new(),
            value: Vec::new(),
            stretch: Stretch::default(),
        };
        churn.fill();
        let filled = churn.end_stretch();
        println!("filled with {} entries, {:.2} GB of keys and values", churn.store.len(), filled.live / 1e9);
        line(Duration::ZERO, &filled);

        let (send, receive) = channel();
        let (is_idle, idle) = channel();
        let writer = thread::spawn(move || write(&receive, &is_idle, args.full_every));
        let run = Duration::from_secs_f64(args.minutes * 60.0);
        let mut stretches: Vec<Stretch> = Vec::new();
        let start = Instant::now();
        while start.elapsed() < run {
            let ends =
                (start + Duration::from_secs_f64(args.line * 60.0) * (stretches.len() as u32 + 1)).min(start + run);
            let mut checkpoint_at = Instant::now();
            while Instant::now() < ends {
                (0..1024).for_each(|_| churn.step());
                if Instant::now() >= checkpoint_at && idle.try_recv().is_ok() {
                    checkpoint_at += Duration::from_secs_f64(args.checkpoint_every);
                    send.send(churn.checkpoint()).expect("the other thread waits for it");
                }
            }
            let stretch = churn.end_stretch();
            line(start.elapsed(), &stretch);
            stretches.push(stretch);
        }
        drop(send);
        let written = writer.join().expect("every checkpoint held what it has to");
        summary(&stretches, &written);
        for slot in 0..slots as u32 {
            churn.read(slot);
        }
        println!("all {slots} slots were read once more, and are what they have to be");
    }

    fn line(at: Duration, stretch: &Stretch) {
        let mut writes = stretch.times[Kind::Update as usize].clone();
        writes += &stretch.times[Kind::Insert as usize];
        writes += &stretch.times[Kind::Delete as usize];
        println!(
            "{:>5.1} min: {:>5.0} ns a call; writes p99.9 below {:>6.1} us, worst {:>8.1} us; {:.2} GB live, {:.2} GB \
             resident, {:.3} times as much",
            at.as_secs_f64() / 60.0,
            stretch.ns_a_call(),
            writes.below_us(0.999),
            us(writes.worst),
            stretch.live / 1e9,
            stretch.resident / 1e9,
            stretch.factor()
        );
    }

    fn summary(stretches: &[Stretch], written: &Written) {
        let mut all = Stretch::default();
        stretches.iter().for_each(|stretch| all.merge(stretch));
        println!("\n{:<12} {:>13} {:>9} {:>9} {:>9} {:>11}", "us", "calls", "p50", "p99", "p99.9", "worst");
        for (kind, name) in KINDS {
            let times = &all.times[kind as usize];
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| times.below_us(share));
            println!("{name:<12} {:>13} {p50:>9.1} {p99:>9.1} {p999:>9.1} {:>11.1}", times.calls(), us(times.worst));
        }
        let Written { deltas, changed, images, image_bytes, image_time } = written;
        println!(
            "{deltas} deltas of {} entries on average, {images} images at {:.0} MB/s",
            changed / deltas.max(&1),
            *image_bytes as f64 / 1e6 / image_time.as_secs_f64().max(1e-9)
        );
        // The first stretch is still filling what deleted and replaced values leave room for.
        let tenth = (stretches.len() / 10).max(1);
        let mean =
            |of: &[Stretch], what: fn(&Stretch) -> f64| of.iter().map(what).sum::<f64>() / of.len().max(1) as f64;
        for (what, unit, figure) in [
            ("time a call", "ns", Stretch::ns_a_call as fn(&Stretch) -> f64),
            ("resident to live", "", Stretch::factor),
        ] {
            let (first, last) =
                (mean(&stretches[..tenth], figure), mean(&stretches[stretches.len() - tenth..], figure));
            println!(
                "{what}: {first:.3} {unit} in the first tenth of the run, {last:.3} {unit} in the last: {:+.1} %",
                (last / first - 1.0) * 100.0
            );
        }
    }
}
