//! [`Changes`]: an iterator over the changes of a delta, or over the entries of a segment of any image.

use bytes::Bytes;

use crate::scan::opaque;

/// An iterator over changes in the order of keys: each key with its new value, or `None` if it was deleted.
///
/// Created by [`StateDelta::iter`](crate::StateDelta::iter) and [`SegmentInfo::read`](crate::SegmentInfo::read).
#[must_use = "iterators are lazy"]
pub struct Changes<'a> {
    changes: Box<dyn Iterator<Item = (Bytes, Option<Bytes>)> + 'a>,
}

impl<'a> Changes<'a> {
    /// Creates an iterator over changes in order of keys.
    pub(crate) fn new(changes: impl Iterator<Item = (Bytes, Option<Bytes>)> + 'a) -> Self {
        Self { changes: Box::new(changes) }
    }
}

impl Iterator for Changes<'_> {
    type Item = (Bytes, Option<Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        self.changes.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.changes.size_hint()
    }
}

opaque! {
    ['a] Changes<'a>;
}
