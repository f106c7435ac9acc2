//! Splitting a snapshot: every entry goes into one of several.
//!
//! Slices are images in memory. Entries are copied into their columns one after the other: no handle, no allocation of
//! its own for an entry, and a slice that is kept does not keep the others alive, as handles to a common buffer would.

use std::ops::ControlFlow;

use super::format::Header;
use super::write::{ImageOptions, ImageWriter};
use super::{Label, StateSnapshot};
use crate::error::shown;
use crate::{KeyGroups, StateError};

impl StateSnapshot {
    /// Splits the snapshot into one for each key group; `part` gives the part of a key that groups are told by.
    ///
    /// Computes in O(n), in one pass. Every entry is copied once, with eight bytes beside, and slices are verified as
    /// images are; they share nothing with this snapshot or each other. An empty slice costs a few hundred bytes.
    ///
    /// # Errors
    ///
    /// The errors of the medium that the snapshot lies in, if it has one that can fail.
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

    /// Splits the snapshot into `slices`; `slice_of` gives the slice of a key, counted from 0.
    ///
    /// Costs what [`split`](Self::split) does.
    ///
    /// # Errors
    ///
    /// [`StateError::NoSuchSlice`], and those of [`split`](Self::split).
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
        let writer =
            || ImageWriter::new(Header::of_snapshot(self), &Label::new(), None, ImageOptions::new(), Vec::new());
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
