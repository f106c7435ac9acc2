//! Restores from unverified images: each reads the image once, and changes nothing if the image is damaged.

use std::io::Cursor;
use std::ops::ControlFlow;

use opstate::{
    GroupedImage, HotStore, ImageOptions, InMemoryStore, KeyGroups, Label, StateSnapshot, StateStore, UnverifiedImage,
};

use crate::support::images::{image_of, numbered};
use crate::support::layout::{
    DIRECTORY_ENTRY, Segment, TRAILER, assemble, assemble_grouped, extents, get_u64, open_forged, seal, seal_parts,
    set_u64,
};
use crate::support::readers::Watched;

/// Checks that the reads cover `start` to `end` in order, without a gap.
fn assert_read_once_in_order(reads: Vec<(u64, u64)>, start: u64, end: u64) {
    let mut next = start;
    for (start, end) in reads {
        assert_eq!(start, next);
        next = end;
    }
    assert_eq!(next, end);
}

#[test]
fn a_read_touches_its_segment_and_a_restore_reads_once_in_order() {
    let snapshot = numbered(10_000, 20);
    let image = image_of(&snapshot, 1000);
    let extents = extents(&image);
    let (watched, reads) = Watched::new(image.clone());
    let opened = UnverifiedImage::from_reader(watched).unwrap();
    let footer = extents.last().unwrap().1 as u64;
    let opening = std::mem::take(&mut *reads.lock().unwrap());
    // The header, the trailer and the footer are each read once.
    let (len, trailer) = (image.len() as u64, (image.len() - TRAILER) as u64);
    assert_eq!(opening, [(0, 32), (trailer, len), (footer, trailer)]);

    assert_eq!(opened.get(&5000_u32.to_be_bytes()).unwrap(), snapshot.get(&5000_u32.to_be_bytes()));
    let read = std::mem::take(&mut *reads.lock().unwrap());
    let (start, end) = (read[0].0, read.last().unwrap().1);
    assert!(extents.contains(&(start as usize, end as usize)), "{start}..{end}");
    // A repeated lookup does not read its segment again. A key before the first segment needs no read.
    assert!(opened.get(&5000_u32.to_be_bytes()).unwrap().is_some() && opened.get(b"").unwrap().is_none());
    assert!(reads.lock().unwrap().is_empty());

    let stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
    for mut store in stores {
        // Restore from a new image, and from a verified one.
        let (watched, reads) = Watched::new(image.clone());
        let opened = UnverifiedImage::from_reader(watched).unwrap();
        for _ in 0..2 {
            reads.lock().unwrap().clear();
            opened.restore_into(&mut store).unwrap();
            assert_eq!(store.len(), 10_000);
            assert_read_once_in_order(std::mem::take(&mut *reads.lock().unwrap()), 32, footer);
            assert_eq!(store.snapshot(), snapshot);
        }
        // The restore verified the image, so no further reads are needed.
        reads.lock().unwrap().clear();
        let verified = opened.verify().unwrap();
        assert_eq!(verified.fingerprint(), snapshot.fingerprint());
        assert!(reads.lock().unwrap().is_empty());
        // A restore from the snapshot also reads the image once.
        store.try_restore(verified).unwrap();
        assert_read_once_in_order(std::mem::take(&mut *reads.lock().unwrap()), 32, footer);
    }
    // All other operations that read every entry verify the image, too.
    let reads_all: [fn(&UnverifiedImage); 3] = [
        |image| assert_eq!(image.iter().map(Result::unwrap).count(), 10_000),
        |image| image.visit_range(.., |_, _| ControlFlow::Continue(())).unwrap(),
        |image| drop(image.verify().unwrap()),
    ];
    for read_all in reads_all {
        let (watched, reads) = Watched::new(image.clone());
        let opened = UnverifiedImage::from_reader(watched).unwrap();
        reads.lock().unwrap().clear();
        read_all(&opened);
        assert_read_once_in_order(std::mem::take(&mut *reads.lock().unwrap()), 32, footer);
        assert_eq!(opened.fingerprint().unwrap(), snapshot.fingerprint());
        assert!(reads.lock().unwrap().is_empty());
    }
}

#[test]
fn a_restore_reads_every_byte_of_a_grouped_image_once() {
    let snapshot = numbered(3000, 20);
    let (groups, options) = (KeyGroups::new(5).unwrap(), ImageOptions::new().segment_bytes(1000));
    let mut image = Vec::new();
    snapshot.write_grouped(groups, |key| key, options, &mut image).unwrap();
    let grouped = GroupedImage::from_bytes(image.clone()).unwrap();
    // Collect the segments of all groups.
    let mut segments = Vec::new();
    for (group, _) in grouped.groups() {
        let extent = grouped.extent(group).unwrap();
        let part = &image[extent.start as usize..extent.end as usize];
        segments
            .extend(extents(part).iter().map(|&(start, end)| (extent.start + start as u64, extent.start + end as u64)));
    }
    let stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
    for mut store in stores {
        let (watched, reads) = Watched::new(image.clone());
        let opened = UnverifiedImage::from_reader(watched).unwrap();
        reads.lock().unwrap().clear();
        opened.restore_into(&mut store).unwrap();
        assert_eq!(store.snapshot(), snapshot);
        let mut reads = std::mem::take(&mut *reads.lock().unwrap());
        reads.sort_unstable();
        assert!(reads.is_sorted_by(|a, b| a.1 <= b.0), "a byte is read twice");
        let joined = |ranges: &[(u64, u64)]| {
            let mut joined: Vec<(u64, u64)> = Vec::new();
            for &(start, end) in ranges {
                match joined.last_mut() {
                    Some(last) if last.1 == start => last.1 = end,
                    _ => joined.push((start, end)),
                }
            }
            joined
        };
        assert_eq!(joined(&reads), joined(&segments));
    }
}

/// Returns stores that hold entries, and a snapshot of these.
fn filled() -> ([Box<dyn StateStore>; 2], StateSnapshot) {
    let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
    let before = StateSnapshot::from_sorted([("kept", vec![1; 600]), ("too", vec![2; 5])]).unwrap();
    stores.iter_mut().for_each(|store| store.restore(before.clone()));
    (stores, before)
}

#[test]
fn a_store_stays_as_it_was_wherever_an_image_is_damaged() {
    let label = Label::new().operator("dedup").user(vec![7; 20]);
    let mut entries: Vec<_> = (0..12_u32).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; 9])).collect();
    // This value has a segment of its own.
    entries[7].1 = vec![7; 150];
    let snapshot = StateSnapshot::from_sorted(entries).unwrap().with_label(label);
    let plain = image_of(&snapshot, 100);
    let mut grouped = Vec::new();
    let options = ImageOptions::new().segment_bytes(100);
    snapshot.write_grouped(KeyGroups::new(3).unwrap(), |key| key, options, &mut grouped).unwrap();
    let (mut stores, before) = filled();
    for image in [plain, grouped] {
        let (mut at_opening, mut at_restoring) = (0, 0);
        for at in 0..image.len() {
            let mut damaged = image.clone();
            damaged[at] ^= 1 << (at % 8);
            for opened in [
                UnverifiedImage::from_bytes(damaged.clone()),
                UnverifiedImage::from_reader(Cursor::new(damaged.clone())),
            ] {
                let Ok(opened) = opened else {
                    at_opening += 1;
                    continue;
                };
                at_restoring += 1;
                for store in &mut stores {
                    opened.restore_into(store).expect_err("damage goes unnoticed");
                    assert_eq!(store.snapshot(), before, "{at}");
                    assert_eq!((store.len(), store.size_bytes()), (before.len(), before.size_bytes()));
                }
            }
        }
        assert!(at_opening > 300 && at_restoring > 500, "{at_opening} {at_restoring}");
        for store in &mut stores {
            UnverifiedImage::from_bytes(image.clone()).unwrap().restore_into(store).unwrap();
            assert_eq!(store.snapshot(), snapshot);
            store.restore(before.clone());
        }
    }
}

#[test]
fn a_store_stays_as_it_was_where_only_the_sums_of_an_image_are_wrong() {
    let segments =
        [Segment::of(&[(b"a", b"1"), (b"b", b"22")]), Segment::with_blob(b"c", &[7; 100]), Segment::of(&[(b"d", b"")])];
    let mut image = assemble(&segments);
    open_forged(&mut image).unwrap();
    // Forge each sum by itself, then two sums whose total is unchanged, then both halves of the fingerprint.
    let lies: [(&[(usize, i64)], &str); 7] = [
        (&[(32, 1)], "the length of all keys is not true"),
        (&[(32, -1)], "the length of all keys is not true"),
        (&[(40, 1)], "the length of all values is not true"),
        (&[(40, -103)], "the length of all values is not true"),
        (&[(32, 1), (40, -1)], "the length of all keys is not true"),
        (&[(48, 1)], "the fingerprint is not that of the entries"),
        (&[(56, -1)], "the fingerprint is not that of the entries"),
    ];
    let add = |bytes: &mut [u8], at: usize, by: i64| set_u64(bytes, at, get_u64(bytes, at).wrapping_add_signed(by));
    let (mut stores, before) = filled();
    for (lies, problem) in lies {
        let mut forged = image.clone();
        let trailer = forged.len() - TRAILER;
        lies.iter().for_each(|&(at, by)| add(&mut forged, trailer + at, by));
        seal(&mut forged);
        // Put the forged image between two sound groups. The directory repeats the forged sums.
        let mut last = assemble(&[Segment::of(&[(b"e", b"5")])]);
        open_forged(&mut last).unwrap();
        let mut first = assemble(&[Segment::of(&[(b"", b"0")])]);
        open_forged(&mut first).unwrap();
        let grouped = assemble_grouped(8, &[(0, first), (4, forged.clone()), (7, last)]);
        for image in [forged, grouped] {
            assert!(StateSnapshot::from_bytes(image.clone()).is_err());
            for opened in [
                UnverifiedImage::from_bytes(image.clone()).unwrap(),
                UnverifiedImage::from_reader(Cursor::new(image.clone())).unwrap(),
            ] {
                // All entries are readable. Sums are compared only when entries are read in ascending order.
                assert!(opened.iter().rev().all(|entry| entry.is_ok()));
                assert!(opened.scan(b""..).any(|entry| entry.is_err()));
                for store in &mut stores {
                    let error = opened.restore_into(store).unwrap_err();
                    assert!(error.to_string().contains(problem), "{error}");
                    assert_eq!(store.snapshot(), before);
                }
            }
        }
    }
    // Make the directory disagree with the image.
    let mut grouped = assemble_grouped(8, &[(4, image)]);
    let trailer = grouped.len() - TRAILER;
    let footer = get_u64(&grouped, trailer) as usize;
    assert!(footer + 8 + DIRECTORY_ENTRY < trailer);
    for at in [footer + 8 + 32, trailer + 40] {
        add(&mut grouped, at, 1);
    }
    seal_parts(&mut grouped, &[], footer);
    let opened = UnverifiedImage::from_bytes(grouped).and_then(|opened| opened.restore_into(&mut stores[0]));
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("the size of its entries is not that in the directory"), "{error}");
    assert_eq!(stores[0].snapshot(), before);
}
