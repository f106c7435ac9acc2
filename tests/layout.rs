//! The image format written a second time, from its description alone: takes an image apart and puts parts together with
//! whatever a forger wants in them, checksums included.

use opstate::{StateDelta, StateError, StateSnapshot};
use rkyv::rancor;
use twox_hash::XxHash3_64;

pub(crate) const HEADER: usize = 32;
pub(crate) const DESCRIPTOR: usize = 40;
pub(crate) const TRAILER: usize = 88;
pub(crate) const BASE: usize = 48;

/// A segment's columns, as rkyv archives them.
#[derive(rkyv::Archive, rkyv::Serialize, Clone, Default)]
pub(crate) struct Columns {
    pub(crate) values: Vec<u8>,
    pub(crate) value_ends: Vec<u32>,
    pub(crate) keys: Vec<u8>,
    pub(crate) key_ends: Vec<u32>,
}

impl Columns {
    pub(crate) fn of(entries: &[(&[u8], &[u8])]) -> Self {
        let mut columns = Self::default();
        for (key, value) in entries {
            columns.keys.extend_from_slice(key);
            columns.values.extend_from_slice(value);
            columns.key_ends.push(columns.keys.len() as u32);
            columns.value_ends.push(columns.values.len() as u32);
        }
        columns
    }
}

/// The columns of a delta's segment.
#[derive(rkyv::Archive, rkyv::Serialize, Clone, Default)]
struct ChangeColumns {
    entries: Columns,
    changes: Vec<u8>,
}

/// What the footer of a delta ends with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Base {
    pub(crate) fingerprint: u128,
    pub(crate) result: u128,
    pub(crate) inserts: u64,
    pub(crate) deletes: u64,
}

/// A segment with all that its descriptor says of it, to be forged at will.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) columns: Columns,
    /// Of a delta: 0 for what is deleted, 1 inserted, 2 updated.
    pub(crate) changes: Vec<u8>,
    pub(crate) blob: Vec<u8>,
    pub(crate) entries: u32,
    pub(crate) first_key: Vec<u8>,
}

impl Segment {
    pub(crate) fn of(entries: &[(&[u8], &[u8])]) -> Self {
        let first_key = entries.first().map_or(vec![], |(key, _)| key.to_vec());
        Self { columns: Columns::of(entries), changes: vec![], blob: vec![], entries: entries.len() as u32, first_key }
    }

    /// A segment of a delta.
    pub(crate) fn of_changes(changes: &[(&[u8], u8, &[u8])]) -> Self {
        let entries: Vec<_> = changes.iter().map(|&(key, _, value)| (key, value)).collect();
        Self { changes: changes.iter().map(|&(_, change, _)| change).collect(), ..Self::of(&entries) }
    }

    pub(crate) fn with_blob(key: &[u8], value: &[u8]) -> Self {
        Self { blob: value.to_vec(), ..Self::of(&[(key, b"")]) }
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
}

pub(crate) fn set_u64(bytes: &mut [u8], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Puts an image together, with true sums and checksums but whatever fingerprint is right for the entries as they stand.
pub(crate) fn assemble(segments: &[Segment]) -> Vec<u8> {
    assemble_as(segments, None)
}

/// As [`assemble`], for a delta if there is a base.
pub(crate) fn assemble_as(segments: &[Segment], base: Option<Base>) -> Vec<u8> {
    let mut image = b"\x89OPST8\r\n\x01\x00\x01\x00\x00\x00\x00\x00".to_vec();
    image[10] = if base.is_some() { 2 } else { 1 };
    image.resize(HEADER, 0);
    let (mut descriptors, mut first_keys) = (Vec::new(), Vec::new());
    let (mut entries, mut key_bytes, mut value_bytes) = (0, 0, 0);
    for segment in segments {
        let Segment { columns, changes, .. } = segment.clone();
        let archive = match base {
            None => rkyv::to_bytes::<rancor::Error>(&columns).unwrap(),
            Some(_) => rkyv::to_bytes::<rancor::Error>(&ChangeColumns { entries: columns, changes }).unwrap(),
        };
        let offset = image.len();
        image.extend_from_slice(&archive);
        pad(&mut image);
        image.extend_from_slice(&segment.blob);
        pad(&mut image);

        let mut descriptor = [0; DESCRIPTOR];
        set_u64(&mut descriptor, 0, offset as u64);
        set_u64(&mut descriptor, 16, segment.blob.len() as u64);
        descriptor[24..28].copy_from_slice(&(archive.len() as u32).to_le_bytes());
        descriptor[28..32].copy_from_slice(&segment.entries.to_le_bytes());
        descriptor[32..34].copy_from_slice(&(segment.first_key.len() as u16).to_le_bytes());
        descriptors.extend_from_slice(&descriptor);
        first_keys.extend_from_slice(&segment.first_key);
        entries += u64::from(segment.entries);
        key_bytes += segment.columns.keys.len() as u64;
        value_bytes += (segment.columns.values.len() + segment.blob.len()) as u64;
    }
    let footer_offset = image.len() as u64;
    image.append(&mut descriptors);
    image.append(&mut first_keys);
    if let Some(base) = base {
        image.extend_from_slice(&base.fingerprint.to_le_bytes());
        image.extend_from_slice(&base.result.to_le_bytes());
        image.extend_from_slice(&base.inserts.to_le_bytes());
        image.extend_from_slice(&base.deletes.to_le_bytes());
    }
    let mut trailer = [0; TRAILER];
    let footer_len = image.len() as u64 - footer_offset;
    for (index, number) in
        [footer_offset, footer_len, segments.len() as u64, entries, key_bytes, value_bytes].into_iter().enumerate()
    {
        set_u64(&mut trailer, 8 * index, number);
    }
    trailer[80..].copy_from_slice(b"OPST8END");
    image.extend_from_slice(&trailer);
    seal(&mut image);
    image
}

/// Where the segments lie, by the descriptors of a sound image.
pub(crate) fn extents(image: &[u8]) -> Vec<(usize, usize)> {
    let trailer = &image[image.len() - TRAILER..];
    let (footer, count) = (get_u64(trailer, 0) as usize, get_u64(trailer, 16) as usize);
    let starts = (0..count).map(|i| get_u64(image, footer + i * DESCRIPTOR) as usize);
    let ends = starts.clone().skip(1).chain([footer]);
    starts.zip(ends).collect()
}

/// Makes every checksum right for the bytes as they are, with the parts where they are in a sound image.
pub(crate) fn seal(image: &mut [u8]) {
    let end = image.len();
    let trailer = end - TRAILER;
    let footer = get_u64(image, trailer) as usize;
    seal_parts(image, &extents(image), footer);
}

/// As [`seal`], with the places of the parts from elsewhere, for an image that lies about them.
pub(crate) fn seal_parts(image: &mut [u8], extents: &[(usize, usize)], footer: usize) {
    let trailer = image.len() - TRAILER;
    let header_sum = XxHash3_64::oneshot(&image[..24]);
    set_u64(image, 24, header_sum);
    for (index, &(start, end)) in extents.iter().enumerate() {
        let sum = XxHash3_64::oneshot(&image[start..end]);
        set_u64(image, footer + index * DESCRIPTOR + 8, sum);
    }
    let footer_sum = XxHash3_64::oneshot(&image[footer..trailer]);
    set_u64(image, trailer + 64, footer_sum);
    seal_trailer(image);
}

fn seal_trailer(image: &mut [u8]) {
    let trailer = image.len() - TRAILER;
    let sum = XxHash3_64::oneshot(&[&image[..HEADER], &image[trailer..trailer + 72]].concat());
    set_u64(image, trailer + 72, sum);
}

/// Opens a forged image the way a forger would get it past the fingerprint: the error says what it should be.
pub(crate) fn open_forged(image: &mut [u8]) -> Result<StateSnapshot, StateError> {
    open_forged_by(image, StateSnapshot::from_bytes)
}

/// As [`open_forged`], for a delta.
pub(crate) fn open_forged_delta(image: &mut [u8]) -> Result<StateDelta, StateError> {
    open_forged_by(image, StateDelta::from_bytes)
}

fn open_forged_by<T>(image: &mut [u8], open: impl Fn(Vec<u8>) -> Result<T, StateError>) -> Result<T, StateError> {
    let trailer = image.len() - TRAILER;
    let mut result = open(image.to_vec());
    for at in [48, 56] {
        match result {
            Err(StateError::Malformed { problem, found, expected, .. }) if problem.contains("fingerprint is not") => {
                let at = if get_u64(image, trailer + 48) == found { 48 } else { at };
                set_u64(image, trailer + at, expected);
                seal_trailer(image);
                result = open(image.to_vec());
            }
            _ => return result,
        }
    }
    result
}

/// Checks that a delta is what every delta has to be, whatever bytes it came from.
pub(crate) fn assert_well_formed_delta(delta: &StateDelta) {
    let changes: Vec<_> = delta.iter().collect();
    assert!(changes.is_sorted_by(|(a, _), (b, _)| a < b));
    assert_eq!((delta.len(), delta.puts() + delta.deletes()), (changes.len(), changes.len()));
    assert_eq!(delta.puts(), changes.iter().filter(|(_, new)| new.is_some()).count());
    let size = |new: &Option<bytes::Bytes>| new.as_ref().map_or(0, |new| new.len());
    assert_eq!(delta.size_bytes(), changes.iter().map(|(key, new)| key.len() + size(new)).sum::<usize>());
    let again = StateDelta::from_bytes(delta.to_bytes()).unwrap();
    assert_eq!(&again, delta);
    assert_eq!(again.to_bytes(), delta.to_bytes());
    // Whatever it says of itself, it does to no contents what it does not say.
    for base in [StateSnapshot::from_iter([("", "")]), StateSnapshot::from_iter(Vec::<(Vec<u8>, Vec<u8>)>::new())] {
        if let Ok(applied) = base.apply(delta) {
            assert_eq!(applied.fingerprint(), delta.fingerprint());
            assert_well_formed(&applied);
        }
    }
    let _ = delta.merge(&again).map(|merged| StateDelta::from_bytes(merged.to_bytes()).unwrap());
}

/// Checks that a snapshot is what every snapshot has to be, whatever bytes it came from.
pub(crate) fn assert_well_formed(snapshot: &StateSnapshot) {
    let entries: Vec<_> = snapshot.iter().collect();
    assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
    assert_eq!(snapshot.len(), entries.len());
    assert_eq!(snapshot.size_bytes(), entries.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
    for (key, value) in &entries {
        assert!(key.len() <= opstate::MAX_KEY_LEN);
        assert_eq!(snapshot.get(key).as_ref(), Some(value));
    }
    let copy = StateSnapshot::from_sorted(entries).unwrap();
    assert_eq!(copy.fingerprint(), snapshot.fingerprint());
    assert_eq!(StateSnapshot::from_bytes(snapshot.to_bytes()).unwrap(), copy);
}

/// The length of an entry of the directory of a grouped image.
pub(crate) const DIRECTORY_ENTRY: usize = 64;

/// Puts a grouped image together from complete images of groups, with true sums and checksums.
pub(crate) fn assemble_grouped(count: u64, parts: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut image = b"\x89OPST8\r\n\x01\x00\x03\x00\x00\x00\x00\x00".to_vec();
    image.resize(HEADER, 0);
    if let Some((_, part)) = parts.first() {
        image[16..24].copy_from_slice(&part[16..24]);
    }
    let mut directory = count.to_le_bytes().to_vec();
    let mut sums = [0; 3];
    let mut fingerprint = 0_u128;
    for (group, part) in parts {
        let trailer = &part[part.len() - TRAILER..];
        let mut entry = [0; DIRECTORY_ENTRY];
        set_u64(&mut entry, 0, image.len() as u64);
        set_u64(&mut entry, 8, part.len() as u64);
        for (index, sum) in sums.iter_mut().enumerate() {
            let number = get_u64(trailer, 24 + 8 * index);
            set_u64(&mut entry, 16 + 8 * index, number);
            *sum += number;
        }
        entry[40..56].copy_from_slice(&trailer[48..64]);
        fingerprint = fingerprint.wrapping_add(u128::from_le_bytes(trailer[48..64].try_into().unwrap()));
        entry[56..60].copy_from_slice(&group.to_le_bytes());
        directory.extend_from_slice(&entry);
        image.extend_from_slice(part);
        pad(&mut image);
    }
    let mut trailer = [0; TRAILER];
    let numbers = [image.len() as u64, directory.len() as u64, parts.len() as u64, sums[0], sums[1], sums[2]];
    for (index, number) in numbers.into_iter().enumerate() {
        set_u64(&mut trailer, 8 * index, number);
    }
    trailer[48..64].copy_from_slice(&fingerprint.to_le_bytes());
    trailer[80..].copy_from_slice(b"OPST8END");
    let footer = image.len();
    image.append(&mut directory);
    image.extend_from_slice(&trailer);
    seal_parts(&mut image, &[], footer);
    image
}

/// Opens an image without reading it, from memory and from a reader, and reads all of it; checks that this agrees with
/// opening it whole, and that what is readable of a damaged image is what `sound`, if given, has.
pub(crate) fn assert_lazy_agrees(image: &[u8], sound: Option<&StateSnapshot>) {
    let whole = StateSnapshot::from_bytes(image.to_vec());
    let bytes = StateSnapshot::from_bytes_lazily(image.to_vec());
    let reader = StateSnapshot::from_reader(std::io::Cursor::new(image.to_vec()));
    for lazy in [bytes, reader] {
        let Ok(lazy) = lazy else {
            assert!(whole.is_err(), "refused although it is sound");
            continue;
        };
        for entry in lazy.try_scan(..) {
            let Ok((key, value)) = entry else { continue };
            if let Some(sound) = sound {
                assert_eq!(sound.get(&key).as_ref(), Some(&value), "another entry than was written");
            }
            // Reads of a sound segment find what a scan finds.
            assert_eq!(lazy.try_get(&key).unwrap_or_else(|_| Some(value.clone())), Some(value));
        }
        match lazy.verify() {
            Err(_) => assert!(whole.is_err(), "does not verify although it is sound"),
            Ok(()) => {
                let whole = whole.as_ref().expect("verifies although it is not sound");
                assert_eq!(&lazy, whole);
                assert_eq!(lazy.fingerprint(), whole.fingerprint());
                assert_eq!((lazy.len(), lazy.size_bytes()), (whole.len(), whole.size_bytes()));
                assert_eq!(lazy.timestamp_ns(), whole.timestamp_ns());
            }
        }
    }
}
