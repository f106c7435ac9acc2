//! Splitting a snapshot into several, each with a part of the entries.
//!
//! The parts, called slices, are images in memory. Every entry is copied into the columns of its slice, so it needs no
//! handle and no allocation of its own. A slice that is kept does not keep the others alive, as handles to a common
//! buffer would.

use std::ops::ControlFlow;

use super::state_snapshot::StateSnapshot;
use crate::error::{StateError, shown};
use crate::image::format::{Header, ImageKind};
use crate::image::label::Label;
use crate::image::options::ImageOptions;
use crate::image::writer::ImageWriter;
use crate::key_group::KeyGroups;

impl StateSnapshot {
    /// Splits the snapshot into one slice for each key group. `part` returns the part of a key that selects its group.
    ///
    /// Computes in O(n), in one pass. Every entry is copied once, with eight bytes beside it, and slices are verified
    /// like images. They share nothing with this snapshot or each other. An empty slice costs 900 bytes.
    ///
    /// # Errors
    ///
    /// The errors of the medium that the snapshot lies in.
    ///
    /// ```
    /// use opstate::{KeyGroups, StateSnapshot};
    ///
    /// let snapshot = StateSnapshot::from_iter((0..1000).map(|i| (format!("user-{}/{i}", i % 50), "value")));
    /// // All keys of a user are in one group.
    /// let groups = KeyGroups::new(16)?;
    /// let user = |key: &[u8]| key.split(|&byte| byte == b'/').next().unwrap_or(key).len();
    /// let slices = snapshot.split(groups, |key| &key[..user(key)])?;
    ///
    /// let seven = &slices[groups.group_of(b"user-7") as usize];
    /// assert_eq!(seven.prefix_scan(b"user-7/").count(), 20);
    /// assert_eq!(StateSnapshot::merge(slices)?, snapshot);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn split(&self, groups: KeyGroups, part: impl Fn(&[u8]) -> &[u8]) -> Result<Vec<Self>, StateError> {
        self.split_with(groups.count() as usize, |key| groups.group_of(part(key)) as usize)
    }

    /// Splits the snapshot into `slices` slices. `slice_of` returns the slice of a key, counted from 0.
    ///
    /// The cost is that of [`split`](Self::split).
    ///
    /// # Errors
    ///
    /// [`StateError::NoSuchSlice`], and the errors of [`split`](Self::split).
    ///
    /// ```
    /// use opstate::{KeyGroups, StateSnapshot};
    ///
    /// // For three workers, each with its range of 128 groups.
    /// let snapshot = StateSnapshot::from_iter((0..1000).map(|i| (format!("key-{i}"), "value")));
    /// let groups = KeyGroups::new(128)?;
    /// let slices = snapshot.split_with(3, |key| groups.worker_of(groups.group_of(key), 3) as usize)?;
    /// assert_eq!(slices.iter().map(StateSnapshot::len).sum::<usize>(), 1000);
    /// # Ok::<(), opstate::StateError>(())
    /// ```
    pub fn split_with(&self, slices: usize, mut slice_of: impl FnMut(&[u8]) -> usize) -> Result<Vec<Self>, StateError> {
        let header = Header::new(ImageKind::Snapshot, self.timestamp_ns());
        let writer = || ImageWriter::new(header, &Label::new(), None, ImageOptions::new(), Vec::new());
        let mut writers = (0..slices).map(|_| writer()).collect::<Result<Vec<_>, _>>()?;
        let mut result = Ok(());
        self.try_visit_range(.., |key, value| {
            let slice = slice_of(key);
            result = match writers.get_mut(slice) {
                Some(writer) => writer.push(key, value, None).map_err(StateError::from),
                None => Err(StateError::NoSuchSlice { key: shown(key), slice, slices }),
            };
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
        writers
            .into_iter()
            .map(|writer| {
                let mut image = writer.finish(None)?.out;
                image.shrink_to_fit();
                Ok(Self::from_bytes(image)?.with_label(self.label().clone()))
            })
            .collect()
    }
}
