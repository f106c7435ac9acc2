//! Fuzzes images that a forger made: their bytes are arbitrary, but every checksum is right.
//!
//! The lowest bit of the first byte selects whether sums and fingerprints are made right, too, as a forger can who reads
//! the errors. Images follow, each after its length in two bytes: snapshots, grouped images and deltas, in any order.
//! Deltas are applied to the snapshot before them. Unlike the other targets, this one runs the checks of an image as users
//! do.

#![no_main]

use std::collections::BTreeMap;
use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use opstate::bytes::Bytes;
use opstate::{
    GroupedImage, HotStore, ImageInfo, ImageOptions, InMemoryStore, KeyGroups, StateDelta, StateError, StateSnapshot,
    StateStore, StateStoreExt, UnverifiedImage, VALUE_ALIGNMENT,
};
use twox_hash::XxHash3_64;

const HEADER: usize = 32;
const DESCRIPTOR: usize = 40;
const DIRECTORY_ENTRY: usize = 64;
const BASE: usize = 48;
const TRAILER: usize = 88;
/// Values of the header's byte for the kind of an image.
const DELTA: u8 = 2;
const GROUPED: u8 = 3;

/// An image that is changed in place. No method assumes that anything in it is sound.
struct Forged(Vec<u8>);

impl Forged {
    fn kind(&self) -> u8 {
        self.0.get(10).copied().unwrap_or(0)
    }

    fn number(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }

    fn trailer(&self) -> Option<usize> {
        self.0.len().checked_sub(TRAILER).filter(|&trailer| trailer >= HEADER)
    }

    fn footer(&self) -> Option<usize> {
        let (trailer, footer) = (self.trailer()?, self.number(self.trailer()?)? as usize);
        (HEADER..=trailer).contains(&footer).then_some(footer)
    }

    /// Returns the place of the base in a delta's footer, before the sections.
    fn base(&self) -> Option<usize> {
        let sections = match self.0.get(8)? {
            1 => 0,
            _ => 4 + u32::from_le_bytes(*self.0[..self.trailer()?].last_chunk()?) as usize,
        };
        let base = self.trailer()?.checked_sub(sections)?.checked_sub(BASE)?;
        (self.kind() == DELTA && base >= self.footer()?).then_some(base)
    }

    fn sum(&mut self, at: usize, parts: &[&[u8]]) {
        let sum = XxHash3_64::oneshot(&parts.concat());
        self.set(at, &sum.to_le_bytes());
    }

    /// Makes every checksum right that can be found.
    fn seal(&mut self) {
        let Some(trailer) = self.trailer() else { return };
        let copy = self.0.clone();
        self.sum(24, &[&copy[..24]]);
        if let Some(footer) = self.footer() {
            let count = (self.number(trailer + 16).unwrap_or(0) as usize).min((trailer - footer) / DESCRIPTOR);
            if self.kind() != GROUPED {
                let start = |segment| self.number(footer + segment * DESCRIPTOR).unwrap_or(0) as usize;
                let starts: Vec<_> = (0..count).map(start).chain([footer]).collect();
                for (segment, ends) in starts.windows(2).enumerate() {
                    if let Some(bytes) = copy.get(ends[0]..ends[1]) {
                        self.sum(footer + segment * DESCRIPTOR + 8, &[bytes]);
                    }
                }
            }
            let copy = self.0[footer..trailer].to_vec();
            self.sum(trailer + 64, &[&copy]);
        }
        let copy = self.0.clone();
        self.sum(trailer + 72, &[&copy[..HEADER], &copy[trailer..trailer + 72]]);
    }

    /// Replaces a number that an error found by the one that was expected. Returns `false` if there is no such number.
    fn learn(&mut self, error: &StateError) -> bool {
        let StateError::Malformed { found, expected, .. } = error else { return false };
        let Some(trailer) = self.trailer() else { return false };
        let base = self.base().map(|base| base..base + BASE).unwrap_or_default();
        let at = (trailer + 16..trailer + 64).chain(base).step_by(8).find(|&at| self.number(at) == Some(*found));
        at.is_some_and(|at| {
            self.set(at, &expected.to_le_bytes());
            self.seal();
            found != expected
        })
    }

    /// Makes sums and fingerprints right, as far as errors tell them.
    fn correct(&mut self) {
        self.correct_groups();
        self.seal();
        for _ in 0..12 {
            let error = match self.kind() {
                DELTA => StateDelta::from_bytes(self.0.clone()).err(),
                _ => StateSnapshot::from_bytes(self.0.clone()).err(),
            };
            if !error.is_some_and(|error| self.learn(&error)) {
                break;
            }
        }
    }

    /// Corrects the images within a grouped one, and makes the directory agree with them.
    fn correct_groups(&mut self) {
        let (GROUPED, Some(trailer), Some(footer)) = (self.kind(), self.trailer(), self.footer()) else { return };
        let count = (self.number(trailer + 16).unwrap_or(0) as usize).min((trailer - footer) / DIRECTORY_ENTRY);
        let (mut sums, mut fingerprint) = ([0_u64; 3], 0_u128);
        for entry in (0..count).map(|group| footer + 8 + group * DIRECTORY_ENTRY) {
            let (Some(start), Some(len)) = (self.number(entry), self.number(entry + 8)) else { continue };
            let (start, end) = (start as usize, start.saturating_add(len) as usize);
            // A grouped image in a grouped one is left as it is.
            let Some(mut part) = self.0.get(start..end).map(|part| Forged(part.to_vec())) else { continue };
            let (true, Some(end)) = (part.kind() != GROUPED, part.trailer()) else { continue };
            part.correct();
            self.set(start, &part.0);
            // The numbers of entries and bytes, and the fingerprint.
            self.set(entry + 16, &part.0[end + 24..end + 64]);
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = sum.wrapping_add(part.number(end + 24 + 8 * index).unwrap_or(0));
            }
            let own = part.0[end + 48..].first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes));
            fingerprint = fingerprint.wrapping_add(own);
        }
        sums.iter().enumerate().for_each(|(index, sum)| self.set(trailer + 24 + 8 * index, &sum.to_le_bytes()));
        self.set(trailer + 48, &fingerprint.to_le_bytes());
    }
}

/// Returns the next part. It ends at its stated length or at the end of the input.
fn next_part(input: &mut &[u8]) -> Option<Forged> {
    let (len, rest) = input.split_first_chunk()?;
    let (part, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    *input = rest;
    Some(Forged(part.to_vec()))
}

fn is_aligned(value: &Bytes) -> bool {
    value.is_empty() || value.as_ptr().addr() % VALUE_ALIGNMENT == 0
}

/// Inspects an image. Returns `true` if no segment of it is damaged.
fn inspect(info: &ImageInfo) -> bool {
    let mut is_sound = info.damage().is_empty();
    for segment in info.segments() {
        match segment.read() {
            Ok(changes) => assert_eq!(changes.count(), segment.entries() as usize),
            Err(_) => is_sound = false,
        }
    }
    for group in info.groups() {
        is_sound &= group.open().is_ok_and(|info| inspect(&info));
    }
    let _ = (info.label(), info.totals(), info.delta_info(), format!("{info:?}"));
    is_sound
}

/// Reads an image in every way. The ways must agree on what it contains.
fn read_image(image: &Forged) -> Option<StateSnapshot> {
    let bytes = || image.0.clone();
    let whole = StateSnapshot::from_bytes(bytes()).ok();
    assert_eq!(StateSnapshot::read_from(&image.0[..]).ok(), whole);
    let is_sound = ImageInfo::from_bytes(bytes()).is_ok_and(|info| inspect(&info));
    assert!(is_sound || whole.is_none());

    for lazy in [UnverifiedImage::from_bytes(bytes()), UnverifiedImage::from_reader(Cursor::new(bytes()))] {
        let Ok(lazy) = lazy else {
            assert!(whole.is_none());
            continue;
        };
        let entries: Vec<_> = lazy.iter().collect();
        let down: Vec<_> = lazy.iter().rev().filter_map(Result::ok).collect();
        assert!(down.iter().all(|(_, value)| is_aligned(value)));
        for (key, value) in entries.iter().flatten() {
            assert!(is_aligned(value));
            let _ =
                (lazy.get(key).map(|found| assert!(found.is_none_or(|found| &found == value))), lazy.entry_after(key));
        }
        let (mut hot, mut memory) = (HotStore::new(), InMemoryStore::new());
        memory.put(b"what was there", b"").unwrap();
        let restored = [lazy.restore_into(&mut hot).is_ok(), lazy.restore_into(&mut memory).is_ok()];
        assert_eq!(restored, [whole.is_some(); 2]);
        assert_eq!(lazy.verify().ok(), whole);
        let before = StateSnapshot::from_iter([("what was there", "")]);
        assert_eq!(memory.snapshot(), whole.clone().unwrap_or(before));
        assert_eq!(hot.snapshot(), whole.clone().unwrap_or_default());
        // Later deletes must not find more, or less, than was counted.
        for store in [&mut hot as &mut dyn StateStore, &mut memory] {
            store.delete_range(.., usize::MAX).unwrap();
            assert_eq!((store.len(), store.size_bytes()), (0, 0));
        }
    }

    for grouped in [GroupedImage::from_bytes(bytes()), GroupedImage::from_reader(Cursor::new(bytes()))] {
        let Ok(grouped) = grouped else {
            assert!(image.kind() != GROUPED || whole.is_none());
            continue;
        };
        let groups: Vec<_> = grouped.groups().map(|(group, _)| grouped.group(group)).collect();
        let slice = grouped.slice(0..grouped.key_groups().count());
        if let (Ok(groups), Ok(slice)) = (groups.into_iter().collect::<Result<Vec<_>, _>>(), &slice) {
            assert_eq!(slice.len(), groups.iter().map(StateSnapshot::len).sum::<usize>());
            assert_eq!(StateSnapshot::merge(groups).ok().as_ref(), Some(slice));
        }
        // Groups that have a key in common are seen when they are merged.
        assert_eq!(slice.ok(), whole);
        let _ = (grouped.slice(1..2), grouped.label(), format!("{grouped:?}"));
    }
    whole
}

/// Uses a snapshot of a forged image as any other.
fn use_snapshot(snapshot: &StateSnapshot, count: u32) {
    let entries: Vec<_> = snapshot.iter().collect();
    assert_eq!(snapshot.len(), entries.len());
    assert_eq!(snapshot.size_bytes(), entries.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
    let copy = StateSnapshot::from_sorted(entries).expect("the keys ascend");
    assert_eq!(copy.fingerprint(), snapshot.fingerprint());

    let groups = KeyGroups::new(count).expect("it is a valid number");
    let part = |key: &[u8]| key.len().min(2);
    let slices = snapshot.split(groups, |key| &key[..part(key)]).expect("the groups are in range");
    assert_eq!(StateSnapshot::merge(slices.into_iter().rev()).expect("slices have no key in common"), copy);
    let mut image = Vec::new();
    let options = ImageOptions::new().segment_bytes(100);
    snapshot.write_grouped(groups, |key| &key[..part(key)], options, &mut image).expect("memory takes everything");
    assert_eq!(read_image(&Forged(image)), Some(copy));
}

/// Reads a delta in every way.
fn use_delta(delta: &StateDelta) {
    let changes: Vec<_> = delta.iter().collect();
    assert!(changes.is_sorted_by(|(a, _), (b, _)| a < b));
    assert!(changes.iter().all(|(_, new)| new.as_ref().is_none_or(is_aligned)));
    assert_eq!((delta.len(), delta.puts() + delta.deletes()), (changes.len(), changes.len()));
    assert_eq!(delta.deletes(), changes.iter().filter(|(_, new)| new.is_none()).count());
    let size = |new: &Option<Bytes>| new.as_ref().map_or(0, Bytes::len);
    assert_eq!(delta.size_bytes(), changes.iter().map(|(key, new)| key.len() + size(new)).sum::<usize>());
    let again = StateDelta::from_bytes(delta.to_bytes()).expect("it was just written");
    assert_eq!((&again, again.label()), (delta, delta.label()));
    assert_eq!(again.to_bytes(), delta.to_bytes());
}

/// Returns the contents after a delta, whether its changes are of the kinds it says or not.
fn changed(before: &StateSnapshot, delta: &StateDelta) -> StateSnapshot {
    let mut model: BTreeMap<Bytes, Bytes> = before.iter().collect();
    for (key, new) in delta {
        match new {
            Some(new) => model.insert(key, new),
            None => model.remove(&key),
        };
    }
    StateSnapshot::from_sorted(model).expect("a map is sorted")
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, mut input)) = input.split_first() else { return };
    let (is_corrected, count) = (mode & 1 == 1, u32::from(mode >> 1) + 1);
    let mut now = StateSnapshot::default();
    let mut first = now.clone();
    let mut all: Option<StateDelta> = None;
    while let Some(mut image) = next_part(&mut input) {
        image.seal();
        if is_corrected {
            image.correct();
        }
        if image.kind() != DELTA {
            if let Some(snapshot) = read_image(&image) {
                use_snapshot(&snapshot, count);
                (first, now, all) = (snapshot.clone(), snapshot, None);
            }
            continue;
        }

        let is_sound = ImageInfo::from_bytes(image.0.clone()).is_ok_and(|info| inspect(&info));
        let Ok(mut delta) = StateDelta::from_bytes(image.0.clone()) else { continue };
        assert!(is_sound);
        if let (true, Some(base)) = (is_corrected, image.base()) {
            image.set(base, &now.fingerprint().to_le_bytes());
            image.set(base + 16, &changed(&now, &delta).fingerprint().to_le_bytes());
            image.seal();
            let Ok(opened) = StateDelta::from_bytes(image.0.clone()) else { continue };
            delta = opened;
        }
        use_delta(&delta);

        let mut store = HotStore::new();
        store.restore(now.clone());
        let (applied, applied_to_store) = (now.apply(&delta), store.apply(&delta));
        let composed = all.as_ref().map_or_else(|| Ok(delta.clone()), |all| all.compose(&delta));
        if let Ok(composed) = &composed {
            use_delta(composed);
        }
        let Ok(applied) = applied else { continue };
        assert_eq!(applied, changed(&now, &delta));
        assert_eq!(applied.fingerprint(), delta.result_fingerprint());
        assert_eq!(delta.inserts(), delta.iter().filter(|(key, _)| !now.contains(key)).count());
        applied_to_store.expect("the snapshot took the delta");
        assert_eq!(store.snapshot(), applied);
        let composed = composed.expect("the first snapshot took them one by one");
        assert_eq!(first.apply(&composed).expect("it took them one by one"), applied);
        assert_eq!(now.apply(&applied.delta_since(&now)).expect("it is the base"), applied);
        use_snapshot(&applied, count);
        (now, all) = (applied, Some(composed));
    }
});
