//! [`StateDelta`]: the changes from one snapshot to another.
//!
//! # Design
//!
//! A delta is a list of changed keys in order, each with the kind of its change and its new value, and the fingerprints
//! of the contents before and after. The list is stored in one of three ways:
//!
//! ```text
//!   StateDelta ──> Arc<DeltaData> { timestamp, counts, changes }
//!                                                      │
//!     Between { earlier, later, comparison }  or  ImageReader ──> Bytes  or  Composed { ChangeList }
//! ```
//!
//! # Fingerprints
//!
//! A fingerprint is a sum over entries. So the fingerprint after a delta is the one before it, without the old entries
//! and with the new ones. When a delta between two snapshots in memory is taken, neither fingerprint needs to be known.
//! When one is asked for, the changes alone lead from one to the other, and both are stored in their snapshots. So a
//! chain of checkpoints that began with a written image never reads all entries again.

use std::fmt;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::change_list::{ChangeList, Copies, inconsistent};
use super::diff::{ChangeHandles, Joined, TryJoin, visit_differences};
use super::state_snapshot::StateSnapshot;
use crate::aligned::{aligned, aligned_copy};
use crate::comparison::{ChangeKind, Comparison, Counts};
use crate::error::{StateError, expect_sound};
use crate::fingerprint::Fingerprint;
use crate::handles::CowBytes;
use crate::image::backing::Backing;
use crate::image::changes::Changes;
use crate::image::format::{Base, Header, ImageKind, checksums_are_ignored};
use crate::image::label::Label;
use crate::image::options::ImageOptions;
use crate::image::reader::ImageReader;
use crate::image::writer::ImageWriter;
use crate::source::SnapshotSource as _;

/// A changed key, the kind of its change, and its new value, which is empty for a deleted key.
type Change = (Bytes, ChangeKind, Bytes);

/// The changes from one snapshot, the *base*, to another: keys put and deleted, in order.
///
/// A delta comes from two snapshots ([`StateSnapshot::delta_since`]), from the bytes of an image
/// ([`from_bytes`](Self::from_bytes)), or from two deltas, one of which follows the other ([`compose`](Self::compose)).
/// [`StateSnapshot::apply`] applies it to its base, and refuses any other snapshot.
///
/// A chain of checkpoints is one image of a snapshot and then deltas, each from the snapshot before it:
///
/// ```text
///   snapshots    S0 ────────> S1 ────────> S2 ────────> S3
///   written      image of S0  delta S0-S1  delta S1-S2  delta S2-S3
///   composed                  └─── delta S0-S2 ───┘
///   restored     S0 . apply(S0-S2) . apply(S2-S3) == S3, and gives the same image to the last byte
/// ```
///
/// # Sharing
///
/// Cloning costs O(1). A delta between two snapshots shares them and keeps both alive, with everything that they keep
/// of their store; so write it, and drop it. A delta opened from bytes reads from them in place, and its handles are
/// slices of them.
///
/// ```
/// use opstate::{HotStore, StateDelta, StateSnapshot, StateStore};
///
/// # fn main() -> Result<(), opstate::StateError> {
/// let mut store = HotStore::new();
/// store.put(b"clicks", b"1")?;
/// let first = store.snapshot();
/// let image = first.to_bytes();
/// store.put(b"clicks", b"2")?;
/// store.put(b"views", b"7")?;
/// let second = store.snapshot();
/// let delta = second.delta_since(&first).to_bytes();
///
/// // In another process, at any time later:
/// let restored = StateSnapshot::from_bytes(image)?.apply(&StateDelta::from_bytes(delta)?)?;
/// assert_eq!(restored, second);
/// assert_eq!(restored.to_bytes(), second.to_bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StateDelta {
    data: Arc<DeltaData>,
}

/// The shared part of a delta.
struct DeltaData {
    timestamp_ns: u64,
    label: Label,
    counts: Counts,
    changes: Stored,
    /// The sums that lead from the fingerprint of the base to that of the result: removed entries, then added entries.
    difference: OnceLock<(Fingerprint, Fingerprint)>,
}

/// The changes of a delta, wherever they are stored.
enum Stored {
    /// The differences between two snapshots.
    Between { earlier: StateSnapshot, later: StateSnapshot, comparison: Arc<dyn Comparison> },
    /// A verified image.
    Image { image: Box<ImageReader>, image_len: usize, base: Base },
    /// A list of changes.
    Composed { changes: ChangeList, base: Fingerprint, result: Fingerprint },
}

const _: () = {
    const fn is_shareable<T: Send + Sync + Clone + 'static>() {}
    is_shareable::<StateDelta>();
};

impl StateDelta {
    fn new(timestamp_ns: u64, label: Label, counts: Counts, changes: Stored) -> Self {
        Self { data: Arc::new(DeltaData { timestamp_ns, label, counts, changes, difference: OnceLock::new() }) }
    }

    /// Creates the delta from `earlier` to `later`, given their differences.
    pub(crate) fn between(earlier: &StateSnapshot, later: &StateSnapshot, comparison: Arc<dyn Comparison>) -> Self {
        let (earlier, later) = (earlier.clone(), later.clone());
        let (timestamp_ns, label) = (later.timestamp_ns(), later.label().clone());
        Self::new(timestamp_ns, label, comparison.counts(), Stored::Between { earlier, later, comparison })
    }

    /// Opens the image of a delta.
    ///
    /// Everything is verified that can be without the base; [`StateSnapshot::apply`] verifies the rest. The delta reads
    /// from `bytes` in place; they are copied only if they do not start at a multiple of 16 in memory. If they are a part
    /// of a larger buffer, all of that is kept alive.
    ///
    /// Computes in O(n). Allocates less than the length of the bytes and a few hundred, or twice that if they are
    /// copied.
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`]; [`StateError::UnexpectedKind`] for the image of a snapshot.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        let backing = Backing::of_bytes(bytes.into())?;
        let image_len = backing.len() as usize;
        let image = ImageReader::open(ImageKind::Delta, backing)?;
        image.verify()?;
        let base = image.base().expect("the footer of a delta has a base");
        let (len, inserts, deletes) = (image.len(), base.inserts as usize, base.deletes as usize);
        let counts = Counts { inserts, deletes, updates: len - inserts - deletes, size_bytes: image.size_bytes() };
        Ok(Self::new(
            image.timestamp_ns(),
            image.label().clone(),
            counts,
            Stored::Image { image: Box::new(image), image_len, base },
        ))
    }

    /// Opens a copy of the image of a delta. Works like [`from_bytes`](Self::from_bytes), for borrowed bytes.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes).
    pub fn from_slice(bytes: &[u8]) -> Result<Self, StateError> {
        Self::from_bytes(aligned_copy(bytes))
    }

    /// Returns the delta as an image. Costs O(n), and the cost of [`base_fingerprint`](Self::base_fingerprint).
    ///
    /// Equal changes between equal contents give equal bytes, except for the time in the header.
    #[track_caller]
    pub fn to_bytes(&self) -> Bytes {
        // The capacity covers the changes, nine bytes for each, about eight to align its value, and a little for each
        // segment.
        let mut image = Vec::with_capacity(self.size_bytes() + self.size_bytes() / 256 + 17 * self.len() + 640);
        // A `Vec` takes all bytes, so only reading the entries can fail.
        expect_sound(self.write_to(&mut image));
        image.shrink_to_fit();
        image.into()
    }

    /// Writes the delta as an image, segment by segment, and returns the number of bytes written.
    ///
    /// Time and memory are those of [`StateSnapshot::write_to`] for as many entries as there are changes, and the cost
    /// of [`base_fingerprint`](Self::base_fingerprint).
    ///
    /// # Errors
    ///
    /// [`StateError::Io`]. The bytes written until then are an incomplete image, which cannot be opened.
    pub fn write_to(&self, out: impl Write) -> Result<u64, StateError> {
        self.write_with(ImageOptions::new(), out)
    }

    /// Writes the delta as an image, with options. Otherwise works like [`write_to`](Self::write_to).
    ///
    /// # Errors
    ///
    /// The errors of [`write_to`](Self::write_to).
    pub fn write_with(&self, options: ImageOptions, out: impl Write) -> Result<u64, StateError> {
        self.know_one_end()?;
        let DeltaData { timestamp_ns, label, counts, changes, difference } = &*self.data;
        let known = difference.get().map(|&(_, added)| added);
        let mut writer = ImageWriter::new(Header::new(ImageKind::Delta, *timestamp_ns), label, known, options, out)?;
        let (mut removed, mut result) = (Fingerprint::EMPTY, Ok(()));
        self.visit_kinds(&mut |key, change, old, new| {
            if let (None, Some(old)) = (known, old) {
                removed.add(key, old);
            }
            result = writer.push(key, new, Some(change));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        result?;
        if let Stored::Between { .. } = changes {
            let _ = difference.set((removed, writer.fingerprint()));
        }
        let (fingerprint, result) = self.try_ends()?;
        let base = Base { fingerprint, result, inserts: counts.inserts as u64, deletes: counts.deletes as u64 };
        Ok(writer.finish(Some(base))?.len)
    }

    /// Returns the number of changes. O(1).
    pub fn len(&self) -> usize {
        self.data.counts.len()
    }

    /// Returns `true` if nothing changes. O(1).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of keys that get a value, whether they are new or not. O(1).
    pub fn puts(&self) -> usize {
        self.inserts() + self.updates()
    }

    /// Returns the number of new keys. O(1).
    pub fn inserts(&self) -> usize {
        self.data.counts.inserts
    }

    /// Returns the number of keys whose value is replaced. O(1).
    pub fn updates(&self) -> usize {
        self.data.counts.updates
    }

    /// Returns the number of deleted keys. O(1).
    pub fn deletes(&self) -> usize {
        self.data.counts.deletes
    }

    /// Returns the sum of the lengths of all changed keys and their new values, in bytes. O(1).
    pub fn size_bytes(&self) -> usize {
        self.data.counts.size_bytes
    }

    /// Returns when the later snapshot was taken, in nanoseconds since the start of 1970 (UTC).
    pub fn timestamp_ns(&self) -> u64 {
        self.data.timestamp_ns
    }

    /// Returns the operator and the job that the later snapshot belongs to.
    pub fn label(&self) -> &Label {
        &self.data.label
    }

    /// Returns the fingerprint of the contents that the delta can be applied to.
    ///
    /// O(1) on an opened or composed delta. Between snapshots, the first call costs time for the changes if one of the
    /// two snapshots knows its fingerprint. It does if it was opened or written, or if the delta at its other side was.
    /// Otherwise the first call is O(n).
    pub fn base_fingerprint(&self) -> Fingerprint {
        self.ends().0
    }

    /// Returns the fingerprint of the contents after the delta.
    ///
    /// The cost is that of [`base_fingerprint`](Self::base_fingerprint).
    pub fn result_fingerprint(&self) -> Fingerprint {
        self.ends().1
    }

    /// Iterates over the changes, in the order of keys.
    pub fn iter(&self) -> Changes<'_> {
        Changes::new(self.changes().map(|(key, change, value)| (key, (change != ChangeKind::Delete).then_some(value))))
    }

    /// Calls `f` with every changed key and its new value, in order of keys, until `f` returns [`ControlFlow::Break`].
    ///
    /// The value is `None` for a deleted key. Creates no handles.
    pub fn visit(&self, mut f: impl FnMut(&[u8], Option<&[u8]>) -> ControlFlow<()>) {
        self.visit_kinds(&mut |key, change, _, value| f(key, (change != ChangeKind::Delete).then_some(value)));
    }

    /// Returns one delta with the effect of this one followed by `next`, without needing their base. O(n) in both.
    ///
    /// Changes of opened deltas stay in their images, and others are copied, 64 to a buffer. Changes that are left of an
    /// image or a buffer of which less than half is used are copied, too, so that a chain keeps what is left of it.
    ///
    /// The result has the time and the label of `next`. A key that one inserts and the other deletes is not in it. The
    /// result depends only on the contents of the two deltas, not on where they come from.
    ///
    /// With one exception, the result equals the delta taken directly from the first base to the last contents, to the
    /// last byte of its image. The exception is a key in the base to which `next` gives back the value it had there.
    /// The composed delta puts that value, because neither delta shows that it is the old one. (Deleting a key and
    /// inserting it again is such a case.) Applying the composed delta gives the same contents.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongBase`] if `next` was not taken against the contents after this one, and
    /// [`StateError::InconsistentDelta`] for forged deltas.
    ///
    /// ```
    /// use opstate::{StateDelta, StateSnapshot};
    ///
    /// # fn main() -> Result<(), opstate::StateError> {
    /// let [a, b, c] = [[("x", "1")], [("y", "1")], [("y", "2")]].map(StateSnapshot::from_iter);
    /// let composed = b.delta_since(&a).compose(&c.delta_since(&b))?;
    /// assert_eq!(composed, c.delta_since(&a));
    /// assert_eq!(a.apply(&composed)?, c);
    /// # Ok(())
    /// # }
    /// ```
    pub fn compose(&self, next: &Self) -> Result<Self, StateError> {
        let (base, found) = self.try_ends()?;
        let (expected, result) = next.try_ends()?;
        check_fingerprint(found, expected)?;
        let mut changes = match &self.data.changes {
            Stored::Composed { changes, .. } => ChangeList::compose(changes, next.to_list()),
            _ => ChangeList::compose(&self.to_list(), next.to_list()),
        }?;
        changes.compact();
        let mut counts = Counts::default();
        let mut added = Fingerprint::EMPTY;
        for (key, change) in changes.iter() {
            let was_there = (change.kind != ChangeKind::Insert).then_some(0);
            counts.add(key.len(), was_there, change.new_value().map(Bytes::len));
            if was_there.is_none() {
                added.add(key, &change.value);
            }
        }
        if counts.inserts == changes.len() && base.plus(added) != result && !checksums_are_ignored() {
            return Err(inconsistent("the fingerprints do not differ by that of the insertions", &[]));
        }
        let (timestamp_ns, label) = (next.timestamp_ns(), next.label().clone());
        Ok(Self::new(timestamp_ns, label, counts, Stored::Composed { changes, base, result }))
    }

    /// Returns the fingerprints before and after the delta. Panics if the medium of a snapshot fails.
    fn ends(&self) -> (Fingerprint, Fingerprint) {
        expect_sound(self.try_ends())
    }

    /// Returns the fingerprints before and after the delta, and stores them in the two snapshots.
    pub(crate) fn try_ends(&self) -> Result<(Fingerprint, Fingerprint), StateError> {
        let (earlier, later) = match &self.data.changes {
            Stored::Between { earlier, later, .. } => (earlier, later),
            Stored::Image { base, .. } => return Ok((base.fingerprint, base.result)),
            Stored::Composed { base, result, .. } => return Ok((*base, *result)),
        };
        self.know_one_end()?;
        let (removed, added) = *self.data.difference.get_or_init(|| self.find_difference());
        Ok(match (earlier.known_fingerprint(), later.known_fingerprint()) {
            (Some(base), _) => {
                let result = base.minus(removed).plus(added);
                later.set_fingerprint(result);
                (base, result)
            }
            (None, later) => {
                let result = later.expect("one end is known by now");
                let base = result.minus(added).plus(removed);
                earlier.set_fingerprint(base);
                (base, result)
            }
        })
    }

    /// Computes the fingerprint of the smaller of the two snapshots, unless one is known.
    fn know_one_end(&self) -> Result<(), StateError> {
        if let Stored::Between { earlier, later, .. } = &self.data.changes {
            if earlier.known_fingerprint().is_none() && later.known_fingerprint().is_none() {
                let smaller = if earlier.size_bytes() <= later.size_bytes() { earlier } else { later };
                smaller.try_fingerprint()?;
            }
        }
        Ok(())
    }

    /// Computes the fingerprints of the removed and the added entries.
    fn find_difference(&self) -> (Fingerprint, Fingerprint) {
        let (mut removed, mut added) = (Fingerprint::EMPTY, Fingerprint::EMPTY);
        self.visit_kinds(&mut |key, change, old, new| {
            if let Some(old) = old {
                removed.add(key, old);
            }
            if change != ChangeKind::Delete {
                added.add(key, new);
            }
            ControlFlow::Continue(())
        });
        (removed, added)
    }

    /// Iterates over the changes as handles.
    fn changes(&self) -> Box<dyn Iterator<Item = Change> + '_> {
        match &self.data.changes {
            Stored::Between { comparison, .. } => {
                let handles = ChangeHandles::new(Arc::clone(comparison), false);
                Box::new(handles.map(|(key, change, _, new)| (key, change, new.unwrap_or_default())))
            }
            Stored::Image { image, .. } => {
                Box::new(image.changes().map(|(key, change, value)| (key, change, aligned(value))))
            }
            Stored::Composed { changes, .. } => {
                Box::new(changes.iter().map(|(key, change)| (key.clone(), change.kind, change.value.clone())))
            }
        }
    }

    /// Returns the changes as a list. Copies them, unless they are most of an image or in a list already.
    pub(super) fn to_list(&self) -> ChangeList {
        match &self.data.changes {
            Stored::Between { .. } => {
                let mut copies = Copies::empty();
                self.visit_kinds(&mut |key, change, _, new| {
                    copies.push(key, change, new);
                    ControlFlow::Continue(())
                });
                copies.finish()
            }
            Stored::Image { image, image_len, .. } => ChangeList::of_image(image.changes(), *image_len),
            Stored::Composed { changes, .. } => changes.clone(),
        }
    }

    /// Calls `f` with the key, kind, old value if it is known, and new value of every change, until `f` breaks.
    fn visit_kinds(&self, f: &mut dyn FnMut(&[u8], ChangeKind, Option<&[u8]>, &[u8]) -> ControlFlow<()>) {
        match &self.data.changes {
            Stored::Between { comparison, .. } => visit_differences(&**comparison, &mut |(key, old, new)| {
                let Some(change) = ChangeKind::between(old.as_ref(), new.as_ref()) else { return true };
                let (old, new) =
                    (old.as_ref().map(CowBytes::as_slice), new.as_ref().map_or(&[][..], CowBytes::as_slice));
                f(key.as_slice(), change, old, new).is_continue()
            }),
            Stored::Image { image, .. } => image.visit_changes(&mut |key, change, value| f(key, change, None, value)),
            Stored::Composed { changes, .. } => {
                let _ = changes.iter().try_for_each(|(key, change)| f(key, change.kind, None, &change.value));
            }
        }
    }
}

/// Checks the fingerprint of the contents that a delta is applied to.
pub(crate) fn check_fingerprint(found: Fingerprint, expected: Fingerprint) -> Result<(), StateError> {
    if found == expected || checksums_are_ignored() {
        return Ok(());
    }
    Err(StateError::WrongBase { found, expected })
}

impl<'a> IntoIterator for &'a StateDelta {
    type Item = (Bytes, Option<Bytes>);
    type IntoIter = Changes<'a>;

    fn into_iter(self) -> Changes<'a> {
        self.iter()
    }
}

/// Compares the changes and the contents they apply to, but not times. O(1) for clones.
///
/// Otherwise costs O(n) and the cost of [`base_fingerprint`](StateDelta::base_fingerprint).
impl PartialEq for StateDelta {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.data, &other.data)
            || (self.data.counts == other.data.counts
                && self.ends() == other.ends()
                && self.changes().eq(other.changes()))
    }
}

impl Eq for StateDelta {}

impl fmt::Debug for StateDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateDelta")
            .field("inserts", &self.inserts())
            .field("updates", &self.updates())
            .field("deletes", &self.deletes())
            .field("size_bytes", &self.size_bytes())
            .field("timestamp_ns", &self.timestamp_ns())
            .finish_non_exhaustive()
    }
}

impl StateSnapshot {
    /// Returns the delta from `earlier` to this snapshot.
    ///
    /// For two snapshots of one [`HotStore`](crate::HotStore), it costs time for the entries that the store wrote
    /// between them. This holds if the earlier one was alive when the later one was taken, and the store wrote less
    /// than a quarter of its entries. Otherwise, two snapshots of one `HotStore` cost the entries written and O(n /
    /// 64). Anything else is O(n). The result does not depend on the way.
    ///
    /// The delta shares both snapshots and keeps them alive. `earlier` may also have been taken after this snapshot;
    /// then the delta leads back. The comparison panics if the medium of a snapshot fails.
    ///
    /// ```
    /// use opstate::{HotStore, StateStore};
    ///
    /// # fn main() -> Result<(), opstate::StateError> {
    /// let mut store = HotStore::new();
    /// store.put(b"a", b"1")?;
    /// store.put(b"b", b"1")?;
    /// let earlier = store.snapshot();
    /// store.delete(b"a")?;
    /// store.put(b"b", b"2")?;
    /// let later = store.snapshot();
    ///
    /// let delta = later.delta_since(&earlier);
    /// assert_eq!((delta.len(), delta.deletes(), delta.puts()), (2, 1, 1));
    /// assert_eq!(earlier.apply(&delta)?, later);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn delta_since(&self, earlier: &Self) -> StateDelta {
        let comparison = self.compare(earlier).unwrap_or_else(|| {
            let differences = TryJoin::new(&**earlier.source(), &**self.source());
            Arc::new(Joined::new(differences.map(expect_sound)))
        });
        StateDelta::between(earlier, self, comparison)
    }
}
