//! Key groups: splits, merges, grouped images, and state that moves between workers.

use std::collections::BTreeMap;
use std::io::{self, Cursor};

use opstate::{
    GroupedImage, HotStore, ImageOptions, InMemoryStore, KeyGroups, StateError, StateSnapshot, StateStore,
    UnverifiedImage,
};
use proptest::prelude::*;

use crate::support::allocator::allocated_by;
use crate::support::cases::cases;
use crate::support::layout::{
    DIRECTORY_ENTRY, HEADER, Parts, Segment, TRAILER, Version, assemble, assemble_grouped, assemble_grouped_as,
    assert_lazy_agrees, assert_well_formed, get_u64, label_section, open_forged, seal_parts, set_u64,
};
use crate::support::model::{any_key, any_value};
use crate::support::readers::Watched;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Returns a function that gives at most the first `len` bytes of a key as its group's part.
fn part(len: usize) -> impl Fn(&[u8]) -> &[u8] {
    move |key| &key[..key.len().min(len)]
}

fn grouped(snapshot: &StateSnapshot, groups: KeyGroups, part_len: usize, options: ImageOptions) -> Vec<u8> {
    let mut image = Vec::new();
    let written = snapshot.write_grouped(groups, part(part_len), options, &mut image).unwrap();
    assert_eq!(written, image.len() as u64);
    image
}

fn hot(snapshot: &StateSnapshot) -> StateSnapshot {
    let mut store = HotStore::new();
    store.restore(snapshot.clone());
    store.snapshot().with_timestamp_ns(snapshot.timestamp_ns())
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn slices_hold_every_entry_once(
        model in proptest::collection::btree_map(any_key(), any_value(), 0..60),
        count in 1_u32..40,
        part_len in 0_usize..6,
        segment_bytes in 1_usize..2000,
        buffer_bytes in prop_oneof![Just(0), 1_usize..4000, Just(usize::MAX)],
    ) {
        let groups = KeyGroups::new(count).unwrap();
        let snapshot = StateSnapshot::from_sorted(model.clone()).unwrap().with_timestamp_ns(7);
        let part = part(part_len);
        let slices = snapshot.split(groups, &part).unwrap();
        prop_assert_eq!(slices.len(), count as usize);
        for (group, slice) in slices.iter().enumerate() {
            let expected = model.iter().filter(|(key, _)| groups.group_of(part(key)) as usize == group);
            let expected = StateSnapshot::from_sorted(expected.map(|(k, v)| (k.clone(), v.clone()))).unwrap();
            prop_assert_eq!(slice, &expected);
            prop_assert_eq!(slice.timestamp_ns(), 7);
        }
        let merged = StateSnapshot::merge(slices.iter().rev().cloned()).unwrap();
        prop_assert_eq!(&merged, &snapshot);
        prop_assert_eq!(merged.fingerprint(), snapshot.fingerprint());
        prop_assert_eq!(merged.to_bytes(), snapshot.to_bytes());
        for key in model.keys() {
            prop_assert_eq!(merged.get(key), snapshot.get(key));
            let found: Vec<_> = merged.range_scan(b"b"..key).collect();
            prop_assert_eq!(found, snapshot.range_scan(b"b"..key).collect::<Vec<_>>());
        }

        // The image depends neither on the origin of the entries nor on the memory given.
        let options = ImageOptions::new().segment_bytes(segment_bytes);
        let image = grouped(&snapshot, groups, part_len, options.buffer_bytes(buffer_bytes));
        prop_assert_eq!(&image, &grouped(&hot(&snapshot), groups, part_len, options));
        prop_assert_eq!(&image, &grouped(&merged, groups, part_len, options));
        let parts: Vec<_> = slices.iter().zip(0..).filter(|(slice, _)| !slice.is_empty()).map(|(slice, group)| {
            let mut image = Vec::new();
            slice.write_with(options, &mut image).unwrap();
            (group, image)
        }).collect();
        let mut expected = assemble_grouped(count.into(), &parts);
        set_u64(&mut expected, 16, 7);
        let footer = get_u64(&expected, expected.len() - TRAILER) as usize;
        seal_parts(&mut expected, &[], footer);
        prop_assert_eq!(&image, &expected);

        let whole = StateSnapshot::from_bytes(image.clone()).unwrap();
        prop_assert_eq!(&whole, &snapshot);
        prop_assert_eq!(whole.fingerprint(), snapshot.fingerprint());
        prop_assert_eq!((whole.timestamp_ns(), whole.size_bytes()), (7, snapshot.size_bytes()));
        prop_assert_eq!(whole.to_bytes(), snapshot.to_bytes());
        assert_lazy_agrees(&image, Some(&snapshot));
        for opened in [
            GroupedImage::from_bytes(image.clone()).unwrap(),
            GroupedImage::from_reader(Cursor::new(image.clone())).unwrap(),
        ] {
            prop_assert_eq!(opened.key_groups(), groups);
            prop_assert_eq!((opened.len(), opened.timestamp_ns()), (model.len(), 7));
            prop_assert_eq!(opened.is_empty(), model.is_empty());
            prop_assert_eq!(opened.fingerprint(), snapshot.fingerprint());
            let numbers = slices.iter().zip(0..).map(|(slice, group)| (group, slice.len() as u64));
            prop_assert!(opened.groups().eq(numbers.filter(|&(_, entries)| entries > 0)));
            for (slice, group) in slices.iter().zip(0..) {
                let read = opened.group(group).unwrap();
                prop_assert_eq!(&read, slice);
                prop_assert_eq!(read.timestamp_ns(), 7);
                if let Some(extent) = opened.extent(group) {
                    let cut = &image[extent.start as usize..extent.end as usize];
                    prop_assert_eq!(&StateSnapshot::from_bytes(cut.to_vec()).unwrap(), slice);
                } else {
                    prop_assert!(slice.is_empty());
                }
            }
            prop_assert_eq!(opened.slice(0..count).unwrap(), snapshot.clone());
        }
    }

    #[test]
    fn state_moves_from_any_number_of_workers_to_any_other(
        events in proptest::collection::vec((any_key(), any_value()), 0..120),
        count in 1_u32..200,
        part_len in 0_usize..6,
        (before, after) in (1_u32..12, 1_u32..12),
        is_hot in any::<bool>(),
    ) {
        let groups = KeyGroups::new(count).unwrap();
        let part = part(part_len);
        let new_store = || -> Box<dyn StateStore> {
            if is_hot { Box::new(HotStore::new()) } else { Box::new(InMemoryStore::new()) }
        };
        let mut model = Model::new();
        let mut workers: Vec<_> = (0..before).map(|_| new_store()).collect();
        let worker_of = |key: &[u8], workers| groups.worker_of(groups.group_of(part(key)), workers) as usize;
        let run = |events: &[(Vec<u8>, Vec<u8>)], workers: &mut Vec<Box<dyn StateStore>>, model: &mut Model| {
            let count = workers.len() as u32;
            for (key, value) in events {
                workers[worker_of(key, count)].put(key, value).unwrap();
                model.insert(key.clone(), value.clone());
            }
        };
        let (early, late) = events.split_at(events.len() / 2);
        run(early, &mut workers, &mut model);

        let images: Vec<_> = workers
            .iter()
            .map(|store| grouped(&store.snapshot(), groups, part_len, ImageOptions::new()))
            .map(|image| GroupedImage::from_bytes(image).unwrap())
            .collect();
        let mut moved: Vec<_> = (0..after).map(|_| new_store()).collect();
        for (worker, store) in moved.iter_mut().enumerate() {
            let mine = groups.groups_of(worker as u32, after);
            let slices: Vec<_> = images.iter().map(|image| image.slice(mine.clone()).unwrap()).collect();
            store.restore(StateSnapshot::merge(slices).unwrap());
            prop_assert!(store.snapshot().iter().all(|(key, _)| worker_of(&key, after) == worker));
        }
        let all = StateSnapshot::merge(moved.iter().map(|store| store.snapshot())).unwrap();
        prop_assert_eq!(all, StateSnapshot::from_sorted(model.clone()).unwrap());

        // Continue on the moved state.
        run(late, &mut moved, &mut model);
        prop_assert_eq!(moved.iter().map(|store| store.len()).sum::<usize>(), model.len());
        let all = StateSnapshot::merge(moved.iter().map(|store| store.snapshot())).unwrap();
        prop_assert_eq!(all, StateSnapshot::from_sorted(model).unwrap());
    }

    #[test]
    fn conflicts_are_counted_and_named(
        slices in proptest::collection::vec(proptest::collection::btree_map(0_u8..40, any::<u8>(), 0..12), 0..6),
    ) {
        let mut times = BTreeMap::new();
        for key in slices.iter().flat_map(BTreeMap::keys) {
            *times.entry(*key).or_insert(0_usize) += 1;
        }
        let conflicts: usize = times.values().map(|times| times - 1).sum();
        let snapshots = slices.iter().map(|slice| StateSnapshot::from_iter(slice.iter().map(|(k, v)| (vec![*k], vec![*v]))));
        match StateSnapshot::merge(snapshots) {
            Ok(merged) => {
                prop_assert_eq!(conflicts, 0);
                prop_assert_eq!(merged.len(), times.len());
                assert_well_formed(&merged);
            }
            Err(StateError::ConflictingKeys { keys, conflicts: found }) => {
                prop_assert_eq!(found, conflicts);
                let all = times.iter().flat_map(|(key, times)| vec![[*key].escape_ascii().to_string(); times - 1]);
                prop_assert_eq!(keys, all.take(8).collect::<Vec<_>>());
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    let snapshot = StateSnapshot::from_iter([("a", ""), ("b\n", ""), ("c", "")]);
    let error = StateSnapshot::merge([snapshot.clone(), snapshot.clone()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "3 keys are in more than one of the slices: `a`, `b\\n`, `c`; merge slices of one checkpoint that hold each key \
         once"
    );
    let many = StateSnapshot::from_iter((0..20_u8).map(|i| (vec![b'a' + i], "")));
    let error = StateSnapshot::merge([many.clone(), many]).unwrap_err();
    assert!(error.to_string().contains("`h`, ...; merge"), "{error}");
    let error = snapshot.split_with(2, |key| key.len() + 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the key `a` was assigned to slice 2, but there are 2, counted from 0; fix the function"
    );
    assert!(StateSnapshot::from_iter([("", ""); 0]).split_with(0, |_| 0).unwrap().is_empty());
    let error = KeyGroups::new(0).unwrap_err();
    assert_eq!(error.to_string(), "0 key groups were asked for, there can be 1 to 32768; 128 is a usual choice");
    assert_eq!(StateSnapshot::merge([]).unwrap().len(), 0);
    let error = GroupedImage::from_bytes(snapshot.to_bytes()).err().unwrap();
    assert!(error.to_string().contains("holds a snapshot, expected a grouped snapshot"), "{error}");
}

#[test]
fn an_entry_without_a_byte_is_in_its_group() {
    let snapshot = StateSnapshot::from_sorted([("", "")]).unwrap();
    let groups = KeyGroups::new(7).unwrap();
    let image = GroupedImage::from_bytes(grouped(&snapshot, groups, 4, ImageOptions::default())).unwrap();
    assert_eq!(image.groups().collect::<Vec<_>>(), [(groups.group_of(b""), 1)]);
    assert_eq!(image.slice(0..7).unwrap(), snapshot);
}

#[test]
fn one_group_is_read_without_the_others() {
    let snapshot = StateSnapshot::from_iter((0..2000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![7; 50])));
    let groups = KeyGroups::new(16).unwrap();
    let image = grouped(&snapshot, groups, 4, ImageOptions::new());
    let slices = snapshot.split(groups, |key| key).unwrap();
    let (watched, reads) = Watched::new(image.clone());
    let opened = GroupedImage::from_reader(watched).unwrap();
    let opening: u64 = reads.lock().unwrap().drain(..).map(|(start, end)| end - start).sum();
    assert!(opening < 2000, "{opening}");
    for (slice, group) in slices.iter().zip(0..) {
        let extent = opened.extent(group).unwrap();
        assert_eq!(&opened.group(group).unwrap(), slice);
        for (start, end) in reads.lock().unwrap().drain(..) {
            assert!(extent.start <= start && end <= extent.end.next_multiple_of(16), "{group}: {start}..{end}");
        }
    }

    // Damage in one group does not affect the others.
    let mut damaged = image;
    let extent = opened.extent(5).unwrap();
    damaged[extent.start as usize + 100] ^= 1;
    let opened = GroupedImage::from_bytes(damaged).unwrap();
    for (slice, group) in slices.iter().zip(0..) {
        match opened.group(group) {
            Ok(read) => assert_eq!(&read, slice),
            Err(error) => assert!(group == 5 && matches!(error, StateError::ChecksumMismatch { .. }), "{error}"),
        }
    }
    assert!(opened.slice(0..5).is_ok() && opened.slice(6..16).is_ok() && opened.slice(0..16).is_err());
}

#[test]
fn splitting_and_writing_take_the_memory_they_say() {
    let snapshot =
        StateSnapshot::from_sorted((0..100_000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![1; 100]))).unwrap();
    let groups = KeyGroups::new(4).unwrap();
    let (slices, allocated) = allocated_by(|| snapshot.split(groups, |key| key).unwrap());
    // A growing vector exists twice for a moment.
    assert!(
        allocated.peak_bytes < 2 * (snapshot.size_bytes() + 8 * snapshot.len()) + (4 << 20),
        "{}",
        allocated.peak_bytes
    );
    drop(slices);
    let many = KeyGroups::new(128).unwrap();
    for buffer_bytes in [1 << 20, 4 << 20, 16 << 20] {
        let options = ImageOptions::new().buffer_bytes(buffer_bytes);
        let (_, allocated) = allocated_by(|| snapshot.write_grouped(many, |key| key, options, io::sink()).unwrap());
        let allowed = 4 * buffer_bytes + 4 * 131_072 + 6 * 65_536;
        assert!(allocated.peak_bytes < allowed, "{} of {allowed}", allocated.peak_bytes);
    }
    let options = ImageOptions::new().buffer_bytes(0);
    let (_, allocated) = allocated_by(|| snapshot.write_grouped(groups, |key| key, options, io::sink()).unwrap());
    // Each entry takes two bytes in a growing vector, which exists twice for a moment.
    assert!(allocated.peak_bytes < 4 * 131_072 + 6 * (65_536 + 200), "{}", allocated.peak_bytes);
}

/// Returns the images of three groups. The middle one has two segments.
fn sound_of(version: Version, sections: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let assemble =
        |segments: &[Segment]| Parts { sections: sections.to_vec(), ..Parts::of(version, segments) }.assemble();
    let mut parts = [
        (1, assemble(&[version.segment(&[(b"a", b"1"), (b"d", b"44")])])),
        (4, assemble(&[version.segment(&[(b"b", b"22")]), Segment::with_blob(b"c", &[7; 40])])),
        (6, assemble(&[version.segment(&[(b"", b"empty"), (b"e", b"")])])),
    ];
    for (_, part) in &mut parts {
        open_forged(part).unwrap();
    }
    parts.to_vec()
}

/// Returns sound images of every version, with and without a label.
fn sound_images() -> Vec<Vec<u8>> {
    let label = label_section(b"dedup", b"clicks", &[0, 0xFF]);
    let names = label_section(b"dedup", b"clicks", b"");
    let labelled = assemble_grouped_as(Version::Two, 8, &sound_of(Version::Two, &names), &label, None);
    let mut images: Vec<_> =
        Version::ALL.map(|version| assemble_grouped_as(version, 8, &sound_of(version, &[]), &[], None)).into();
    images.push(labelled);
    images
}

fn broken_rule(image: &[u8]) -> String {
    assert_lazy_agrees(image, None);
    match StateSnapshot::from_bytes(image.to_vec()) {
        Err(StateError::Malformed { part, offset, problem, .. }) => {
            let trailer = image.len() - TRAILER;
            match part {
                "trailer" => assert_eq!(offset, trailer as u64),
                "directory" => assert_eq!(offset, get_u64(image, trailer)),
                _ => {}
            }
            problem.to_owned()
        }
        Err(error) => error.to_string(),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn each_broken_rule_of_a_grouped_image_is_named() {
    Version::ALL.into_iter().for_each(each_broken_rule_of_a_grouped_image_of_a_version_is_named);
}

fn each_broken_rule_of_a_grouped_image_of_a_version_is_named(version: Version) {
    let sound = || sound_of(version, &[]);
    let assemble_grouped = |count, parts: &[_]| assemble_grouped_as(version, count, parts, &[], None);
    let image = assemble_grouped(8, &sound());
    assert_well_formed(&StateSnapshot::from_bytes(image.clone()).unwrap());
    let footer = get_u64(&image, image.len() - TRAILER) as usize;
    let entry = |index: usize| footer + 8 + index * DIRECTORY_ENTRY;
    let forge = |at: usize, change: &dyn Fn(u64) -> u64| {
        let mut forged = image.clone();
        let number = change(get_u64(&forged, at));
        set_u64(&mut forged, at, number);
        seal_parts(&mut forged, &[], footer);
        broken_rule(&forged)
    };
    assert_eq!(forge(footer, &|_| 0), "there cannot be so many key groups");
    assert_eq!(forge(footer, &|_| 32_769), "there cannot be so many key groups");
    assert_eq!(forge(footer, &|_| 6), "a key group is beyond the last");
    assert_eq!(forge(entry(1) + 56, &|_| 1), "a key group does not follow the one before it");
    assert_eq!(forge(entry(1) + 56, &|group| group | 1 << 32), "there are other bytes where it has zeros");
    assert_eq!(forge(entry(0), &|at| at + 16), "an image does not start where the one before it ends");
    assert_eq!(forge(entry(1), &|at| at - 16), "an image does not start where the one before it ends");
    assert_eq!(forge(entry(2) + 8, &|len| len + 16), "an image does not end before the directory");
    assert_eq!(forge(entry(2) + 8, &|_| u64::MAX), "an image does not end before the directory");
    assert_eq!(forge(entry(2) + 8, &|len| len - 16), "the images do not end where it starts");
    assert_eq!(forge(entry(0) + 16, &|_| 0), "a key group with an image has no entries");
    assert_eq!(forge(entry(0) + 16, &|entries| entries + 1), "the number of entries is not true");
    assert_eq!(forge(entry(0) + 24, &|bytes| bytes + 1), "the length of all keys is not true");
    assert_eq!(forge(entry(0) + 32, &|bytes| bytes + 1), "the length of all values is not true");
    assert_eq!(forge(entry(0) + 40, &|half| half ^ 1), "the fingerprint is not that of the entries");
    assert_eq!(forge(16, &|_| 9), "its time is not that of the whole image");
    let trailer = image.len() - TRAILER;
    assert_eq!(forge(trailer + 16, &|_| 2), "it has another length than so many images ask for");
    assert_eq!(forge(trailer + 16, &|_| u64::MAX), "it has another length than so many images ask for");

    // Add more entries than the image has bytes, in the directory and in the sum.
    let mut forged = image.clone();
    for at in [entry(0) + 16, trailer + 24] {
        set_u64(&mut forged, at, get_u64(&image, at) + footer as u64);
    }
    seal_parts(&mut forged, &[], footer);
    assert_eq!(broken_rule(&forged), "there is no room for so many entries");

    // Forge two entries so that the errors cancel in the sums.
    let forge_twice = |at: usize| {
        let mut forged = image.clone();
        for (at, by) in [(entry(0) + at, 1), (entry(1) + at, u64::MAX)] {
            let number = get_u64(&forged, at).wrapping_add(by);
            set_u64(&mut forged, at, number);
        }
        seal_parts(&mut forged, &[], footer);
        broken_rule(&forged)
    };
    assert_eq!(forge_twice(16), "the number of its entries is not that in the directory");
    assert_eq!(forge_twice(24), "the size of its entries is not that in the directory");
    assert_eq!(forge_twice(32), "the size of its entries is not that in the directory");
    // Change the upper half of the 128 bits, because nothing is carried into it.
    assert_eq!(forge_twice(48), "the fingerprint of its image is not that in the directory");

    let with = |change: &dyn Fn(&mut Vec<(u32, Vec<u8>)>)| {
        let mut parts = sound();
        change(&mut parts);
        broken_rule(&assemble_grouped(8, &parts))
    };
    // Forge the padding after an image.
    let mut forged = image.clone();
    let end = (get_u64(&image, entry(0)) + get_u64(&image, entry(0) + 8)) as usize;
    assert!(end % 16 != 0);
    forged[end] = 1;
    assert_eq!(broken_rule(&forged), "there are other bytes where the padding has zeros");
    assert!(with(&|parts| parts[2].1 = parts[0].1.clone()).contains("`a`, `d`"));
    assert!(
        with(&|parts| parts[2].1 = assemble_grouped(8, &sound()))
            .contains("holds a grouped snapshot, expected a snapshot")
    );
    assert_eq!(with(&|parts| parts[1].1 = assemble(&[])), "a key group with an image has no entries");
}

#[test]
fn images_of_groups_may_be_of_another_version_than_the_whole() {
    let expected = StateSnapshot::from_bytes(assemble_grouped(8, &sound_of(Version::Two, &[]))).unwrap();
    for whole in Version::ALL {
        for which in 0..8 {
            let mut parts = sound_of(Version::One, &[]);
            for (index, part) in sound_of(Version::Two, &[]).into_iter().enumerate() {
                if which >> index & 1 == 1 {
                    parts[index] = part;
                }
            }
            let image = assemble_grouped_as(whole, 8, &parts, &[], None);
            let opened = StateSnapshot::from_bytes(image.clone()).unwrap();
            assert_eq!(opened, expected);
            assert_well_formed(&opened);
            assert_lazy_agrees(&image, Some(&expected));
        }
    }
}

fn open_within_means(image: &[u8]) {
    let owned = image.to_vec();
    let (result, allocated) = allocated_by(|| StateSnapshot::from_bytes(owned));
    // Each group takes a snapshot, a source and a head of the merge. Its directory entry alone takes 64 bytes.
    assert!(allocated.peak_bytes <= 8 * image.len() + 4096, "{} for {}", allocated.peak_bytes, image.len());
    if let Ok(snapshot) = &result {
        assert_well_formed(snapshot);
    }
    let owned = image.to_vec();
    let (_, allocated) = allocated_by(|| UnverifiedImage::from_bytes(owned));
    assert!(allocated.peak_bytes <= 8 * image.len() + 4096, "{} for {}", allocated.peak_bytes, image.len());
    assert_lazy_agrees(image, None);
}

#[test]
fn every_byte_of_a_grouped_image_is_forged() {
    sound_images().iter().for_each(|image| forge_every_byte(image));
}

fn forge_every_byte(image: &[u8]) {
    let footer = get_u64(image, image.len() - TRAILER) as usize;
    for at in 0..image.len() {
        for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF, image[at], !image[at]] {
            let mut forged = image.to_vec();
            forged[at] ^= change;
            seal_parts(&mut forged, &[], footer);
            open_within_means(&forged);
        }
    }
}

#[test]
fn every_number_of_a_directory_is_forged_to_every_extreme() {
    sound_images().iter().for_each(|image| forge_every_number(image));
}

fn forge_every_number(image: &[u8]) {
    let trailer = image.len() - TRAILER;
    let footer = get_u64(image, trailer) as usize;
    let places = (footer..trailer).step_by(8).chain((0..8).map(|i| trailer + 8 * i)).chain((8..HEADER - 8).step_by(4));
    for at in places {
        let now = get_u64(image, at);
        let near = [0, 1, now / 2, now.wrapping_sub(1), now.wrapping_add(1), now.wrapping_add(16), image.len() as u64];
        let bits = (0..64).flat_map(|bit| [1 << bit, now ^ (1 << bit)]);
        for number in near.into_iter().chain(bits).chain([u64::MAX, u64::MAX - 15]) {
            let mut forged = image.to_vec();
            set_u64(&mut forged, at, number);
            seal_parts(&mut forged, &[], footer);
            open_within_means(&forged);
        }
    }
}
