//! How much memory the index takes, and how many keys it reads.

use std::cell::Cell;

use super::*;

/// Returns the bytes an entry that `count` entries take if they are inserted in this order.
fn bytes_per_entry(count: u64, order: impl Iterator<Item = usize>) -> f64 {
    let mut pair = Pair::<64, 64>::new(numbers(count));
    order.for_each(|at| pair.insert(at));
    pair.check();
    let bytes = pair.index.allocated_bytes() as f64 / pair.index.len() as f64;
    pair.end();
    bytes
}

#[test]
fn leaves_are_well_filled_in_every_order() {
    // 11 bytes an entry and 48 a leaf, 13 at nine tenths; an inner node takes some 30 bytes a child.
    let count = 20_000;
    let many = count as usize;
    assert!(bytes_per_entry(count, 0..many) < 14.0);
    assert!(bytes_per_entry(count, (0..many).rev()) < 14.0);
    assert!(bytes_per_entry(count, shuffled(many)) < 20.0);
    // Ten runs at once, each ascending or descending in the middle of the tree.
    let runs = move |at: usize| at % 10 * (many / 10) + at / 10;
    assert!(bytes_per_entry(count, (0..many).map(runs)) < 16.0);
    assert!(bytes_per_entry(count, (0..many).rev().map(runs)) < 16.5);
}

/// Keys that count how often one is read.
struct Counted {
    keys: Vec<Vec<u8>>,
    reads: Cell<usize>,
}

impl Keys for Counted {
    fn key(&self, id: EntryId) -> &[u8] {
        self.reads.set(self.reads.get() + 1);
        self.keys.key(id)
    }
}

/// Returns how many keys are read, for each of these keys: to insert it, in an order that looks random; to find it
/// then; and to find it in an index that was built of all keys at once. The keys are in order.
fn reads_per_key(keys: Vec<Vec<u8>>) -> [f64; 3] {
    let (epochs, count) = (Epochs::new(), keys.len());
    let keys = Counted { keys, reads: Cell::new(0) };
    let per_key = || keys.reads.take() as f64 / count as f64;
    let find_all = |index: &SortedIndex<64, 64>| {
        for key in &keys.keys {
            index.view().range(&keys, (Included(key), Unbounded)).next();
        }
        per_key()
    };
    let mut index = SortedIndex::<64, 64>::new();
    shuffled(count).for_each(|at| index.insert(&epochs, &keys, &keys.keys[at], id(at)));
    let inserting = per_key();
    let finding = find_all(&index);
    index.clear(&epochs);
    let mut index = SortedIndex::<64, 64>::bulk(&epochs, &keys, (0..count).map(id));
    keys.reads.take();
    let finding_in_bulk = find_all(&index);
    index.clear(&epochs);
    [inserting, finding, finding_in_bulk]
}

#[test]
fn leaves_tell_most_without_a_look_at_keys() {
    let count = 20_000;
    let groups = |name: fn(usize) -> String| -> Vec<_> {
        (0..count).map(|i| [name(i / 500).as_bytes(), &(i % 500).to_be_bytes()].concat()).collect()
    };
    let at_most = |keys, most: [f64; 3]| {
        let found = reads_per_key(keys);
        assert!(found.iter().zip(&most).all(|(found, most)| found <= most), "{found:?}");
    };
    // A search reads one key, the one that it finds.
    at_most(numbers(count as u64), [0.05, 1.0, 1.0]);
    at_most(groups(|group| format!("{group:03}")), [0.21, 1.0, 1.11]);
    at_most(groups(|group| format!("{group:030}")), [0.24, 1.01, 1.115]);
    // Common names longer than the part of the prefix that a leaf holds.
    at_most(groups(|group| format!("{group:030}{}", "long".repeat(20))), [0.7, 1.23, 1.115]);
}

/// Walking down reads as few keys as walking up: some at either end of the range, and none between.
#[test]
fn walking_down_reads_keys_at_the_ends_only() {
    let count = 20_000;
    let keys = Counted { keys: numbers(count as u64), reads: Cell::new(0) };
    let epochs = Epochs::new();
    let mut index = SortedIndex::<64, 64>::bulk(&epochs, &keys, (0..count).map(id));
    keys.reads.take();
    for (start, end) in [(0, count), (17, 18), (100, 5_000), (63, 64), (9_999, 19_999)] {
        let range = (Included(&keys.keys[start][..]), Excluded(keys.keys.get(end).map_or(&[0xFF; 9][..], |key| key)));
        let mut ids = index.view().range_down(&keys, range);
        let mut found = 0;
        while let Some(run) = ids.next_slice() {
            found += run.len();
        }
        assert_eq!(found, end - start);
        let reads = keys.reads.take();
        assert!(reads <= 4, "{reads} of {found}");
    }
    index.clear(&epochs);
}

#[test]
fn whole_leaves_are_removed_without_a_look_at_most_keys() {
    let count = 20_000;
    let keys = Counted { keys: numbers(count as u64), reads: Cell::new(0) };
    let (epochs, all) = (Epochs::new(), (Unbounded, Unbounded));
    let mut index = SortedIndex::<64, 64>::bulk(&epochs, &keys, (0..count).map(id));
    keys.reads.take();
    let range = (Included(&keys.keys[30][..]), Excluded(&keys.keys[count - 30][..]));
    let mut parts = Vec::new();
    while let Some((ids, is_whole)) = index.view().first_leaf(&keys, range) {
        let ids = ids.to_vec();
        if !is_whole {
            ids.iter().for_each(|&id| index.remove(&epochs, &keys, keys.key(id), id));
        } else {
            assert!(index.remove_leaf(&epochs, &keys, &ids));
        }
        parts.push(is_whole);
    }
    // Leaves of 57 keys, but for one at either end.
    assert_eq!((parts.len(), parts.iter().filter(|&is_whole| !is_whole).count()), (351, 2));
    // One for each leaf, one for each id of the others, and some at the ends of the range.
    assert!(keys.reads.take() < parts.len() + 57 + 10);
    index.validate(&keys);
    assert_eq!(
        index.view().range(&keys, all).collect::<Vec<_>>(),
        Vec::from_iter((0..30).chain(count - 30..count).map(id))
    );
    assert_eq!(index.height, 2);
    index.clear(&epochs);
}

#[test]
fn deletions_give_memory_back() {
    let count = 20_000;
    let mut pair = Pair::<64, 64>::new(numbers(count as u64));
    let mut most = Vec::new();
    for round in 0..6 {
        for at in shuffled(count) {
            pair.insert(at);
        }
        pair.check();
        most.push(pair.index.allocated_bytes());
        // A few stay everywhere.
        for at in shuffled(count).filter(|at| at % 97 != round) {
            pair.remove(at);
        }
        pair.check();
        // Invariant 4: an eighth full at worst, that is 92 bytes an entry and some for the inner nodes.
        assert!(pair.index.allocated_bytes() < 110 * pair.index.len(), "round {round}");
    }
    assert!(most.iter().all(|&bytes| bytes <= most[0] * 5 / 4), "{most:?}");
    // A window that moves on.
    for at in 0..count {
        pair.insert(at);
        if let Some(old) = at.checked_sub(1000) {
            pair.remove(old);
        }
        // Leaves at both ends, and the entries left above.
        assert!(pair.index.allocated_bytes() < 80 * (pair.index.len() + 64));
    }
    pair.check();
    pair.end();
}
