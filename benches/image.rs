//! Costs of images: writing on one thread and on two, opening whole and in place, splitting and merging.
//!
//! `cargo bench --bench image -- 10` measures with 10 million entries. The default is 1 million. Times are medians of
//! three rounds.

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use opstate::{GroupedImage, HotStore, ImageOptions, KeyGroups, StateSnapshot, StateStore, UnverifiedImage};

/// Returns the median time of three rounds. Each round gets a new input, whose construction is not timed.
fn median<I, R>(mut input: impl FnMut() -> I, mut round: impl FnMut(I) -> R) -> Duration {
    let mut times = [(); 3].map(|()| {
        let input = input();
        let start = Instant::now();
        let result = black_box(round(input));
        let time = start.elapsed();
        drop(result);
        time
    });
    times.sort();
    times[1]
}

fn print(what: &str, time: Duration, entries: usize) {
    println!(
        "{what:<58} {:>10.3} ms {:>7.1} ns an entry",
        time.as_secs_f64() * 1e3,
        time.as_nanos() as f64 / entries as f64
    );
}

fn filled(entries: u64, value_len: usize) -> HotStore {
    let mut store = HotStore::new();
    for i in 0..entries {
        // Multiplying by an odd number permutes the 64-bit integers.
        let key = (i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_be_bytes();
        store.put(&[&key[..], b"/key"].concat(), &vec![i as u8; value_len]).unwrap();
    }
    store
}

fn main() -> Result<(), opstate::StateError> {
    let millions: f64 = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1.0);
    let entries = (millions * 1e6) as u64;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("image");
    for value_len in [8, 100] {
        let mut store = filled(entries, value_len);
        let n = store.len();
        // A new snapshot has not computed its fingerprint yet.
        let mut fresh = || store.snapshot();
        println!("\n{n} entries in a `HotStore`, keys of 12 bytes, values of {value_len}");
        for threads in [1, 2, 3] {
            let options = ImageOptions::new().threads(threads);
            let time = median(&mut fresh, |snapshot| snapshot.write_with(options, io::sink()).unwrap());
            print(&format!("write, threads: {threads}"), time, n);
        }
        let groups = KeyGroups::new(128)?;
        let options = ImageOptions::new();
        let time =
            median(&mut fresh, |snapshot| snapshot.write_grouped(groups, |key| key, options, io::sink()).unwrap());
        print("write 128 key groups", time, n);
        let time = median(&mut fresh, |snapshot| snapshot.split(groups, |key| key).unwrap());
        print("split into 128 key groups", time, n);
        let three = |key: &[u8]| groups.worker_of(groups.group_of(key), 3) as usize;
        let time = median(&mut fresh, |snapshot| snapshot.split_with(3, three).unwrap());
        print("split for 3 workers", time, n);
        let snapshot = fresh();
        let slices = snapshot.split(groups, |key| key)?;
        let time = median(|| slices.clone(), |slices| StateSnapshot::merge(slices).unwrap());
        print("merge 128 slices", time, n);
        let merged = StateSnapshot::merge(slices)?;
        let time = median(|| (), |()| merged.iter().count());
        print("scan the merged slices", time, n);
        let slices = snapshot.split_with(3, three)?;
        let time = median(|| slices.clone(), |slices| StateSnapshot::merge(slices).unwrap());
        print("merge 3 slices", time, n);
        drop((merged, slices));

        let len = snapshot.write_to(File::create(&path)?)?;
        println!("an image of {len} bytes, in the page cache");
        print(
            "from_bytes of the file, read first",
            median(|| (), |()| StateSnapshot::from_bytes(std::fs::read(&path).unwrap())),
            n,
        );
        print("read_from the file", median(|| (), |()| StateSnapshot::read_from(File::open(&path).unwrap())), n);
        print("open", median(|| (), |()| UnverifiedImage::open(&path)), n);
        print("from_reader", median(|| (), |()| UnverifiedImage::from_reader(File::open(&path).unwrap())), n);
        let open = || UnverifiedImage::open(&path).unwrap();
        print("the first get after open", median(open, |image| (image.get(b"middle").unwrap(), image)), n);
        print("verify after open", median(open, |image| image.verify().unwrap()), n);
        print("scan after open", median(open, |image| image.iter().map(Result::unwrap).count()), n);
        let mut restore = |what, open: &dyn Fn() -> UnverifiedImage| {
            print(what, median(open, |image| image.restore_into(&mut store).unwrap()), n);
        };
        restore("verify and restore a `HotStore` after open", &open);
        restore("verify and restore it after from_reader", &|| {
            UnverifiedImage::from_reader(File::open(&path).unwrap()).unwrap()
        });
        let open = || StateSnapshot::from_bytes(std::fs::read(&path).unwrap()).unwrap();
        print("restore it after from_bytes, without that", median(open, |snapshot| store.restore(snapshot)), n);

        snapshot.write_grouped(groups, |key| key, options, File::create(&path)?)?;
        print("open a grouped image", median(|| (), |()| GroupedImage::open(&path)), n);
        let grouped = GroupedImage::open(&path)?;
        let time = median(|| (), |()| grouped.group(77).unwrap());
        print("read one group of it, of 128", time, n);
    }
    Ok(())
}
