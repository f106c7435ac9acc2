//! Everything that threads share, all at once, to be run under the thread sanitizer:
//!
//! ```sh
//! RUSTFLAGS=-Zsanitizer=thread cargo +nightly run -Zbuild-std --target x86_64-unknown-linux-gnu \
//!     --manifest-path tests/sharing/Cargo.toml
//! ```
//!
//! The argument `race` makes a data race on purpose, to check that the sanitizer finds it. For a longer run, which finds
//! more without the sanitizer, because it is faster:
//!
//! ```sh
//! cargo run --release --manifest-path tests/sharing/Cargo.toml -- stress SECONDS [FIRST_SEED]
//! ```
//!
//! Each seed is a program of the writer. A failure prints the seed of its program, and `stress 0 SEED` runs that program
//! alone.

use std::ops::Bound;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use opstate::{ImageOptions, StateSnapshot, UnverifiedImage};

#[path = "../support/stress.rs"]
mod stress;

use stress::{READERS, Random, stress};

const ENTRIES: u64 = 3_000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => {
            stress(0..40);
            images();
            println!("shared by {} threads", READERS + 1);
        }
        ["race"] => race(),
        ["stress", seconds] => stress_for(seconds, "0"),
        ["stress", seconds, first_seed] => stress_for(seconds, first_seed),
        _ => panic!("the arguments are nothing, `race`, or `stress SECONDS [FIRST_SEED]`"),
    }
}

/// Runs programs, one at least, until the time is over.
fn stress_for(seconds: &str, first_seed: &str) {
    let number = |argument: &str| argument.parse::<u64>().expect("it is a number");
    let (end, first) = (Instant::now() + Duration::from_secs(number(seconds)), number(first_seed));
    let mut programs = 0;
    let seeds = (first..).take_while(|&seed| seed == first || Instant::now() < end);
    // The last line tells the seed even if a program ends the process.
    stress(seeds.inspect(|seed| {
        programs += 1;
        eprint!("\rprogram of the seed {seed}");
    }));
    eprintln!();
    println!("{programs} programs, beginning with the seed {first}");
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
                    let mut random = Random::new(reader);
                    for _ in 0..500 {
                        let key = random.below(ENTRIES).to_be_bytes();
                        assert_eq!(image.get(&key).expect("it was just written"), snapshot.get(&key));
                    }
                    let from = random.below(ENTRIES).to_be_bytes();
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
