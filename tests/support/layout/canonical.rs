//! Complete images from their contents, byte for byte as the library writes them.

use std::collections::BTreeMap;

use super::{
    Base, Parts, Segment, TRAILER, Version, assemble_grouped_as, get_u64, hash_entry, label_section, seal_parts,
    set_u64,
};

/// Settings that determine the bytes of an image, in addition to its contents.
#[derive(Clone)]
pub(crate) struct Canonical {
    pub(crate) version: Version,
    pub(crate) segment_bytes: usize,
    pub(crate) timestamp_ns: u64,
    /// Names of operator and job, and the user's bytes.
    pub(crate) label: [Vec<u8>; 3],
}

/// An entry, or a change of a delta, with the kind of change.
type Entry<'a> = (&'a [u8], u8, &'a [u8]);

impl Canonical {
    pub(crate) fn new(version: Version, segment_bytes: usize, timestamp_ns: u64) -> Self {
        Self { version, segment_bytes, timestamp_ns, label: Default::default() }
    }

    fn sections(&self) -> Vec<u8> {
        let [operator, job, user] = &self.label;
        label_section(operator, job, user)
    }

    /// Cuts entries into segments. An entry stands alone if its value is as long as a segment.
    fn cut(&self, entries: &[Entry<'_>]) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut open: Vec<Entry<'_>> = Vec::new();
        let mut cost = 0;
        for &(key, change, value) in entries {
            let is_large = value.len() >= self.segment_bytes;
            if is_large && !open.is_empty() {
                segments.push(self.version.changes(&std::mem::take(&mut open)));
                cost = 0;
            }
            if is_large {
                segments.push(Segment { blob: value.to_vec(), ..self.version.changes(&[(key, change, b"")]) });
                continue;
            }
            open.push((key, change, value));
            let value_cost = match self.version {
                Version::One => value.len(),
                Version::Two => value.len().next_multiple_of(16),
            };
            cost += key.len() + value_cost + 8;
            if cost >= self.segment_bytes {
                segments.push(self.version.changes(&std::mem::take(&mut open)));
                cost = 0;
            }
        }
        if !open.is_empty() {
            segments.push(self.version.changes(&open));
        }
        segments
    }

    fn parts(&self, entries: &[Entry<'_>]) -> Parts {
        let there = entries.iter().filter(|(_, change, _)| *change != 0);
        let fingerprint = there.fold(0, |sum: u128, (key, _, value)| sum.wrapping_add(hash_entry(key, value)));
        let (timestamp_ns, sections) = (self.timestamp_ns, self.sections());
        Parts { timestamp_ns, fingerprint, sections, ..Parts::of(self.version, &self.cut(entries)) }
    }

    /// Returns the image of a snapshot.
    pub(crate) fn image<'a>(&self, entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
        let entries: Vec<_> = entries.into_iter().map(|(key, value)| (key, 1, value)).collect();
        self.parts(&entries).assemble()
    }

    /// Returns the image of a delta. `fingerprint` is that of the base.
    pub(crate) fn delta(&self, changes: &[Entry<'_>], fingerprint: u128, result: u128) -> Vec<u8> {
        let count = |of: u8| changes.iter().filter(|(_, change, _)| *change == of).count() as u64;
        let base = Base { fingerprint, result, inserts: count(1), deletes: count(0) };
        Parts { base: Some(base), ..self.parts(changes) }.assemble()
    }

    /// Returns the image of key groups, given by their numbers.
    pub(crate) fn grouped(&self, count: u32, groups: &BTreeMap<u32, Vec<(&[u8], &[u8])>>) -> Vec<u8> {
        // The images of groups have the label's names, but no user bytes.
        let [operator, job, _] = self.label.clone();
        let of_group = Self { label: [operator, job, vec![]], ..*self };
        let image = |(group, entries): (&u32, &Vec<(&[u8], &[u8])>)| (*group, of_group.image(entries.iter().copied()));
        let parts: Vec<_> = groups.iter().map(image).collect();
        let mut image = assemble_grouped_as(self.version, count.into(), &parts, &self.sections(), None);
        // Without groups, no image gives the timestamp.
        set_u64(&mut image, 16, self.timestamp_ns);
        let footer = get_u64(&image, image.len() - TRAILER) as usize;
        seal_parts(&mut image, &[], footer);
        image
    }
}
