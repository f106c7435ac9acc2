//! Everything that threads share, all at once, to be run under the thread sanitizer:
//!
//! ```sh
//! RUSTFLAGS=-Zsanitizer=thread cargo +nightly run -Zbuild-std --target x86_64-unknown-linux-gnu \
//!     --manifest-path tests/sharing/Cargo.toml
//! ```
//!
//! A writer continues while other threads read, compare, serialize and drop its snapshots, in no fixed order. Each
//! result is compared with the store's contents when the snapshot was taken. The argument `race` makes a data race on
//! purpose, to check that the sanitizer finds it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::{env, fs, process, thread};

use opstate::{HotStore, ImageOptions, InMemoryStore, StateDelta, StateSnapshot, StateStore, UnverifiedImage};

const READERS: usize = 3;
const ENTRIES: u64 = 3_000;

/// Contents of a store at some moment, and a snapshot of them.
#[derive(Clone)]
struct Moment {
    snapshot: StateSnapshot,
    model: Arc<BTreeMap<Vec<u8>, Vec<u8>>>,
}

fn main() {
    if env::args().any(|argument| argument == "race") {
        return race();
    }
    for seed in 0..3 {
        // Use chunks of at most 512 bytes, then the defaults.
        share(HotStore::builder().chunk_bytes(64, 512).build(), ENTRIES, seed);
        share(HotStore::new(), ENTRIES, seed);
        share(InMemoryStore::new(), ENTRIES, seed);
    }
    // Use more keys than one branch of the table holds, and enough for another level of the order.
    share(HotStore::new(), 50_000, 3);
    images();
    println!("shared by {} threads", READERS + 1);
}

/// Writes to a store while other threads read its snapshots.
fn share(mut store: impl StateStore, keys: u64, seed: u64) {
    let mut random = random(seed);
    let mut model = BTreeMap::new();
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    thread::scope(|scope| {
        for reader in 0..READERS {
            let receiver = Arc::clone(&receiver);
            scope.spawn(move || read(&receiver, keys, seed + reader as u64));
        }
        let mut last: Option<Moment> = None;
        for round in 0..20 {
            for _ in 0..keys {
                write(&mut store, &mut model, keys, &mut random);
            }
            match round {
                // Restore from the store's own snapshot, and from one of another store.
                8 => store.restore(last.as_ref().map(|moment| moment.snapshot.clone()).expect("there were rounds")),
                12 => store.restore(model.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
                16 => {
                    store.clear();
                    model.clear();
                }
                _ => {}
            }
            if round == 8 {
                model.clone_from(&last.as_ref().expect("there were rounds").model);
            }
            let moment = Moment { snapshot: store.snapshot(), model: Arc::new(model.clone()) };
            // Send each moment twice, usually to two readers. One of them also gets the previous moment.
            let before = last.replace(moment.clone());
            sender.send((moment.clone(), None)).expect("readers wait");
            sender.send((moment, before)).expect("readers wait");
        }
        // Remaining snapshots outlive the store.
        drop((store, sender));
    });
}

fn write(
    store: &mut impl StateStore,
    model: &mut BTreeMap<Vec<u8>, Vec<u8>>,
    keys: u64,
    random: &mut impl FnMut() -> u64,
) {
    let key = (random() % keys).to_be_bytes();
    // Some values are large, or put as a handle.
    let len = if random() % 50 == 0 { 600 } else { random() % 40 };
    let value = vec![random() as u8; len as usize];
    match random() % 8 {
        0 => {
            store.delete(&key).expect("a delete is never refused");
            model.remove(&key[..]);
        }
        1 => {
            let fill = random() as u8;
            store.modify(&key, &mut |value| value.fill(fill)).expect("there is no budget");
            model.entry(key.to_vec()).and_modify(|value| value.fill(fill));
        }
        2 => assert_eq!(store.get(&key).as_deref(), model.get(&key[..]).map(Vec::as_slice)),
        _ => {
            store.put(&key, &value).expect("there is no budget");
            model.insert(key.to_vec(), value);
        }
    }
}

/// Reads snapshots in random ways until no more come.
fn read(receiver: &Mutex<Receiver<(Moment, Option<Moment>)>>, keys: u64, seed: u64) {
    let mut random = random(seed);
    let mut held = Vec::new();
    loop {
        let next = receiver.lock().expect("no reader panics under the lock").recv();
        let Ok((Moment { snapshot, model }, before)) = next else { break };
        match random() % 4 {
            0 => assert!(snapshot.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).eq((*model).clone())),
            1 => {
                for _ in 0..200 {
                    let key = (random() % keys).to_be_bytes();
                    assert_eq!(snapshot.get(&key).as_deref(), model.get(&key[..]).map(Vec::as_slice));
                }
            }
            2 => {
                let mut image = Vec::new();
                let options = ImageOptions::new().threads(2).segment_bytes(4096);
                snapshot.write_with(options, &mut image).expect("memory takes everything");
                assert_eq!(StateSnapshot::from_bytes(image).expect("it was just written"), snapshot);
            }
            _ => {
                snapshot.fingerprint();
                held.push(snapshot.clone());
            }
        }
        if let Some(before) = before {
            let delta = snapshot.delta_since(&before.snapshot);
            let delta = StateDelta::from_bytes(delta.to_bytes()).expect("it was just written");
            assert_eq!(before.snapshot.apply(&delta).expect("it is the base"), snapshot);
            assert_eq!(delta.len(), snapshot.diff(&before.snapshot).count());
        }
        if held.len() > 3 {
            held.swap_remove(random() as usize % held.len());
        }
    }
}

/// Reads unverified images on several threads at once.
fn images() {
    let snapshot: StateSnapshot =
        (0..ENTRIES).map(|number| (number.to_be_bytes().to_vec(), vec![number as u8; 20])).collect();
    let path = env::temp_dir().join(format!("opstate-sharing-{}", process::id()));
    let options = ImageOptions::new().segment_bytes(1024);
    let file = fs::File::create(&path).expect("a temporary file can be made");
    snapshot.write_with(options, file).expect("a temporary file can be written");
    let bytes = fs::read(&path).expect("a temporary file can be read");
    let opened = UnverifiedImage::open(&path).expect("it was just written");
    let lazy = UnverifiedImage::from_bytes(bytes).expect("it was just written");
    fs::remove_file(&path).expect("a temporary file can be removed");
    thread::scope(|scope| {
        for reader in 0..READERS as u64 {
            for image in [&opened, &lazy] {
                let snapshot = &snapshot;
                scope.spawn(move || {
                    let mut random = random(reader);
                    for _ in 0..500 {
                        let key = (random() % ENTRIES).to_be_bytes();
                        assert_eq!(image.get(&key).expect("it was just written"), snapshot.get(&key));
                    }
                    let from = (random() % ENTRIES).to_be_bytes();
                    let range = || (Bound::Included(&from[..]), Bound::Unbounded);
                    assert!(image.scan(range()).map(Result::ok).eq(snapshot.scan(range()).map(Some)));
                    assert_eq!(&image.verify().expect("it was just written"), snapshot);
                });
            }
        }
    });
}

/// Makes a data race: two threads write to one place without synchronization.
fn race() {
    static mut PLACE: u64 = 0;
    // SAFETY: there is none. It is what the sanitizer is to find.
    let write = || (0..1000).for_each(|number| unsafe { (&raw mut PLACE).write_volatile(number) });
    let other = thread::spawn(write);
    write();
    other.join().expect("it does not panic");
}

/// Returns a generator of pseudorandom numbers for a seed (xorshift, Marsaglia 2003).
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
