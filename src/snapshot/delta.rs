//! [`StateDelta`]: what changed from one snapshot to another.
//!
//! # Design
//!
//! A delta is a list of changed keys in order, each with what became of it and its new value, and two fingerprints: that
//! of the contents before and that of the contents after. There are three ways for the list to lie in memory:
//!
//! ```text
//!   StateDelta ──> Arc<Shared> { timestamp, counts, changes }
//!                                                      │
//!     Between { earlier, later, comparison }  or  Image ──> Bytes  or  Composed { vector of handles }
//! ```
//!
//! # Fingerprints
//!
//! A fingerprint is a sum over entries, so that what is taken away and what is added lead from one end of a delta to
//! the other. Between two snapshots in memory, neither end need be known when the delta is taken. Once one is asked for,
//! one end is worked out from the other by the changes alone, and remembered in the snapshot it is of: a chain of
//! checkpoints that began with a written image never passes over all entries again.

use std::cmp::Ordering;
use std::fmt;
use std::io::Write;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::comparison::{Handed, visit_differences};
use super::format::{Base, checksums_are_ignored};
use super::image::Image;
use super::overlay::{Overlay, find_all};
use super::segment::ChangeKind;
use super::{
    Comparison, Counts, Fingerprint, ImageOptions, Label, Shared as SharedSnapshot, Source, StateSnapshot,
    expect_sound, write,
};
use crate::StateError;
use crate::aligned::{aligned, aligned_copy};
use crate::error::shown;
use crate::handles::Part;
use crate::scan::opaque;

/// An iterator over changes in the order of keys: each key with its new value, or `None` if it was deleted.
///
/// It comes from [`StateDelta::iter`] and [`SegmentInfo::read`](super::SegmentInfo::read).
#[must_use = "iterators are lazy"]
pub struct Changes<'a> {
    changes: Box<dyn Iterator<Item = (Bytes, Option<Bytes>)> + 'a>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(changes: impl Iterator<Item = (Bytes, Option<Bytes>)> + 'a) -> Self {
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

/// A key, what became of it, and its new value, which is empty if there is none.
type Change = (Bytes, ChangeKind, Bytes);

/// The changes from one snapshot, the *base*, to another: keys put and deleted, in order.
///
/// A delta comes from two snapshots ([`StateSnapshot::delta_since`]), from the bytes of an image
/// ([`from_bytes`](Self::from_bytes)), or from two deltas, one of which follows the other ([`compose`](Self::compose)).
/// [`StateSnapshot::apply`] applies it to its base, and refuses any other.
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
/// Cloning costs O(1). A delta between two snapshots shares them and keeps both alive, and with them what they keep of
/// their store; write it, and drop it. Opened from bytes, it answers from those as they are, and handles are slices of
/// them.
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
    shared: Arc<Shared>,
}

struct Shared {
    timestamp_ns: u64,
    label: Label,
    counts: Counts,
    changes: Stored,
    /// The sums that are taken away from the fingerprint of the base and added to it.
    difference: OnceLock<(Fingerprint, Fingerprint)>,
}

/// Where the changes lie.
enum Stored {
    Between {
        earlier: StateSnapshot,
        later: StateSnapshot,
        comparison: Arc<dyn Comparison>,
    },
    Image {
        image: Image,
        base: Base,
    },
    /// In strictly ascending order of keys.
    Composed {
        changes: Vec<Change>,
        base: Fingerprint,
        result: Fingerprint,
    },
}

const _: () = {
    const fn is_shareable<T: Send + Sync + Clone + 'static>() {}
    is_shareable::<StateDelta>();
};

impl StateDelta {
    fn new(timestamp_ns: u64, label: Label, counts: Counts, changes: Stored) -> Self {
        Self { shared: Arc::new(Shared { timestamp_ns, label, counts, changes, difference: OnceLock::new() }) }
    }

    /// The delta from `earlier` to `later`, given what differs.
    pub(super) fn between(earlier: &StateSnapshot, later: &StateSnapshot, comparison: Arc<dyn Comparison>) -> Self {
        let (earlier, later) = (earlier.clone(), later.clone());
        let (timestamp_ns, label) = (later.timestamp_ns(), later.label().clone());
        Self::new(timestamp_ns, label, comparison.counts(), Stored::Between { earlier, later, comparison })
    }

    /// Opens a delta that was written.
    ///
    /// All of it is verified, but for what only its base can tell; [`StateSnapshot::apply`] does that. The delta
    /// answers from `bytes` as they are; they are copied only if they do not start at a multiple of 16 in memory.
    /// Computes in O(n), and allocates less than the bytes' own length and a few hundred (twice that where they are copied).
    ///
    /// # Errors
    ///
    /// The errors of [`StateSnapshot::from_bytes`]; [`StateError::UnexpectedKind`] for the image of a snapshot.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StateError> {
        let (image, ends, base) = Image::open_delta(bytes.into())?;
        let (len, inserts, deletes) = (image.len(), base.inserts as usize, base.deletes as usize);
        let counts = Counts { inserts, deletes, updates: len - inserts - deletes, size_bytes: image.size_bytes() };
        Ok(Self::new(ends.timestamp_ns, ends.label, counts, Stored::Image { image, base }))
    }

    /// Opens a copy of a delta that was written. Does what [`from_bytes`](Self::from_bytes) does, for bytes that are
    /// borrowed.
    ///
    /// # Errors
    ///
    /// The errors of [`from_bytes`](Self::from_bytes).
    pub fn from_slice(bytes: &[u8]) -> Result<Self, StateError> {
        Self::from_bytes(aligned_copy(bytes))
    }

    /// Returns the delta as an image of its own kind. O(n), and what [`base_fingerprint`](Self::base_fingerprint) costs.
    ///
    /// Equal changes between equal contents give equal bytes, but for the time in the header.
    #[track_caller]
    pub fn to_bytes(&self) -> Bytes {
        // Nine bytes a change, about eight to align its value, and a little for each segment come to what the changes are
        // themselves.
        let mut image = Vec::with_capacity(self.size_bytes() + self.size_bytes() / 256 + 17 * self.len() + 640);
        // A `Vec` takes all bytes, so only reading the entries can fail.
        expect_sound(self.write_to(&mut image));
        image.into()
    }

    /// Writes the delta as an image, as it goes, and returns the number of bytes written.
    ///
    /// Costs and memory are those of [`StateSnapshot::write_to`] for as many entries as there are changes, and what
    /// [`base_fingerprint`](Self::base_fingerprint) costs.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`]. What was written until then is an incomplete image, which cannot be opened.
    pub fn write_to(&self, out: impl Write) -> Result<u64, StateError> {
        self.write_with(ImageOptions::new(), out)
    }

    /// Writes as [`write_to`](Self::write_to) does, with options for the layout of the image.
    ///
    /// # Errors
    ///
    /// The errors of [`write_to`](Self::write_to).
    pub fn write_with(&self, options: ImageOptions, out: impl Write) -> Result<u64, StateError> {
        let (fingerprint, result) = self.try_ends()?;
        let Counts { inserts, deletes, .. } = self.shared.counts;
        let base = Base { fingerprint, result, inserts: inserts as u64, deletes: deletes as u64 };
        let added = self.shared.difference.get().map(|&(_, added)| added);
        write::write_delta(self, base, added, options, out)
    }

    /// Returns the number of changes. O(1).
    pub fn len(&self) -> usize {
        self.shared.counts.len()
    }

    /// Returns `true` if nothing changes. O(1).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many keys get a value, be they new or not. O(1).
    pub fn puts(&self) -> usize {
        self.inserts() + self.updates()
    }

    /// Returns how many keys are new. O(1).
    pub fn inserts(&self) -> usize {
        self.shared.counts.inserts
    }

    /// Returns how many keys get another value. O(1).
    pub fn updates(&self) -> usize {
        self.shared.counts.updates
    }

    /// Returns how many keys are deleted. O(1).
    pub fn deletes(&self) -> usize {
        self.shared.counts.deletes
    }

    /// Returns the sum of the lengths of all changed keys and their new values, in bytes. O(1).
    pub fn size_bytes(&self) -> usize {
        self.shared.counts.size_bytes
    }

    /// Returns when the snapshot was taken that the delta leads to, in nanoseconds since the start of 1970 (UTC).
    pub fn timestamp_ns(&self) -> u64 {
        self.shared.timestamp_ns
    }

    /// Returns the label: which operator and job the contents belong to that the delta leads to.
    pub fn label(&self) -> &Label {
        &self.shared.label
    }

    /// Returns the fingerprint of the contents that the delta can be applied to.
    ///
    /// O(1) on an opened or composed delta. Between snapshots it costs, once, what changed if one of the two knows its
    /// fingerprint, for it was opened, or written, or the end of another delta that was; otherwise O(n).
    pub fn base_fingerprint(&self) -> Fingerprint {
        self.ends().0
    }

    /// Returns the fingerprint of the contents that the delta leads to. Costs what
    /// [`base_fingerprint`](Self::base_fingerprint) does.
    pub fn result_fingerprint(&self) -> Fingerprint {
        self.ends().1
    }

    /// Iterates over the changes, in the order of keys.
    pub fn iter(&self) -> Changes<'_> {
        Changes::new(self.changes().map(|(key, change, value)| (key, (change != ChangeKind::Delete).then_some(value))))
    }

    /// Calls `f` with every changed key and its new value, `None` if it was deleted, in the order of keys and without
    /// handles, until it returns [`ControlFlow::Break`].
    pub fn visit(&self, mut f: impl FnMut(&[u8], Option<&[u8]>) -> ControlFlow<()>) {
        self.visit_kinds(&mut |key, change, value| f(key, (change != ChangeKind::Delete).then_some(value)));
    }

    /// Returns one delta that does what this one and then `next` do, without their base. O(n) in both.
    ///
    /// It has the time and the label of `next`, and no change of a key that is inserted by one and deleted by the other.
    /// It equals the delta taken directly from the first base to the last contents, to the last byte of its image, but
    /// for one thing: where a key was there in the base, and `next` gives it the very value back that it had there, the
    /// composed delta puts that value, because nothing in the two tells that it is the old one. (To delete a key and
    /// insert it again is such a case, too.) Applied, it gives the same contents nevertheless. The result depends on the
    /// two deltas' contents alone, not on where they come from.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongBase`] if `next` was not taken against the contents that this one leads to, and
    /// [`StateError::InconsistentDelta`] for deltas that someone forged.
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
        let mut counts = Counts::default();
        let mut added = Fingerprint::EMPTY;
        let mut changes = Vec::with_capacity(self.len().max(next.len()));
        let composition = Composition { first: self.changes().peekable(), second: next.changes().peekable() };
        for change in composition {
            let (key, change, value) = change?;
            let is_there = |is_there: bool, len: usize| is_there.then_some(len);
            counts.add(
                key.len(),
                is_there(change != ChangeKind::Insert, 0),
                is_there(change != ChangeKind::Delete, value.len()),
            );
            if change == ChangeKind::Insert {
                added.add(&key, &value);
            }
            changes.push((key, change, value));
        }
        if counts.inserts == changes.len() && base.plus(added) != result && !checksums_are_ignored() {
            return Err(inconsistent("the fingerprints do not differ by that of the insertions", &[]));
        }
        changes.shrink_to_fit();
        let (timestamp_ns, label) = (next.timestamp_ns(), next.label().clone());
        Ok(Self::new(timestamp_ns, label, counts, Stored::Composed { changes, base, result }))
    }

    /// The fingerprints before and after.
    fn ends(&self) -> (Fingerprint, Fingerprint) {
        expect_sound(self.try_ends())
    }

    fn try_ends(&self) -> Result<(Fingerprint, Fingerprint), StateError> {
        let (earlier, later) = match &self.shared.changes {
            Stored::Between { earlier, later, .. } => (&*earlier.shared, &*later.shared),
            Stored::Image { base, .. } => return Ok((base.fingerprint, base.result)),
            Stored::Composed { base, result, .. } => return Ok((*base, *result)),
        };
        let known = |snapshot: &SharedSnapshot| snapshot.fingerprint.get().copied();
        if known(earlier).is_none() && known(later).is_none() {
            self.set_one_end()?;
        }
        let (removed, added) = *self.shared.difference.get_or_init(|| self.find_difference());
        Ok(match (known(earlier), known(later)) {
            (Some(base), _) => {
                // Another thread may have been first; it found the same.
                let result = base.minus(removed).plus(added);
                let _ = later.fingerprint.set(result);
                (base, result)
            }
            (None, later) => {
                let result = later.expect("one end is known by now");
                let base = result.minus(added).plus(removed);
                let _ = earlier.fingerprint.set(base);
                (base, result)
            }
        })
    }

    /// Makes the fingerprint of one end known, of whichever has less to walk over.
    fn set_one_end(&self) -> Result<(), StateError> {
        if let Stored::Between { earlier, later, .. } = &self.shared.changes {
            let cheaper = if earlier.size_bytes() <= later.size_bytes() { earlier } else { later };
            cheaper.try_fingerprint()?;
        }
        Ok(())
    }

    fn find_difference(&self) -> (Fingerprint, Fingerprint) {
        let (mut removed, mut added) = (Fingerprint::EMPTY, Fingerprint::EMPTY);
        if let Stored::Between { comparison, .. } = &self.shared.changes {
            visit_differences(&**comparison, &mut |(key, old, new)| {
                if let Some(old) = old {
                    removed.add(key.as_slice(), old.as_slice());
                }
                if let Some(new) = new {
                    added.add(key.as_slice(), new.as_slice());
                }
                true
            });
        }
        (removed, added)
    }

    /// The changes as handles.
    fn changes(&self) -> Box<dyn Iterator<Item = Change> + '_> {
        match &self.shared.changes {
            Stored::Between { comparison, .. } => {
                let handed = Handed::new(Arc::clone(comparison), false);
                Box::new(handed.map(|(key, change, _, new)| (key, change, new.unwrap_or_default())))
            }
            Stored::Image { image, .. } => {
                let bytes = image.bytes();
                Box::new(
                    image.changes().map(|(key, change, value)| (bytes.slice(key), change, aligned(bytes.slice(value)))),
                )
            }
            Stored::Composed { changes, .. } => Box::new(changes.iter().cloned()),
        }
    }

    /// Calls `f` with every change until it breaks.
    pub(super) fn visit_kinds(&self, f: &mut dyn FnMut(&[u8], ChangeKind, &[u8]) -> ControlFlow<()>) {
        match &self.shared.changes {
            Stored::Between { comparison, .. } => visit_differences(&**comparison, &mut |(key, old, new)| {
                let Some(change) = ChangeKind::between(old.as_ref(), new.as_ref()) else { return true };
                f(key.as_slice(), change, new.as_ref().map_or(&[], Part::as_slice)).is_continue()
            }),
            Stored::Image { image, .. } => {
                let bytes = image.bytes();
                let _ = image.changes().try_for_each(|(key, change, value)| f(&bytes[key], change, &bytes[value]));
            }
            Stored::Composed { changes, .. } => {
                let _ = changes.iter().try_for_each(|(key, change, value)| f(key, *change, value));
            }
        }
    }
}

/// Applies `delta` to `base`; see [`StateSnapshot::apply`].
pub(super) fn apply(base: &StateSnapshot, delta: &StateDelta) -> Result<StateSnapshot, StateError> {
    // The base may be a third-party source that has not been verified.
    base.verify()?;
    let mut fingerprint = base.try_fingerprint()?;
    check_fingerprint(fingerprint, delta.try_ends()?.0)?;
    let (kinds, changes): (Vec<ChangeKind>, Vec<(Bytes, Option<Bytes>)>) = delta
        .changes()
        .map(|(key, change, value)| (change, (key, (change != ChangeKind::Delete).then_some(value))))
        .unzip();
    let source = base.source();
    let (mut len, mut size) = (source.len(), source.size_bytes());
    let mut result = Ok(());
    find_all(&**source, &changes, &mut |place, old| {
        let (key, new) = &changes[place];
        result = check_kind(key, kinds[place], old.is_some());
        if result.is_err() {
            return ControlFlow::Break(());
        }
        if let Some(old) = old {
            let mut removed = Fingerprint::EMPTY;
            removed.add(key, old);
            fingerprint = fingerprint.minus(removed);
            size -= key.len() + old.len();
            len -= 1;
        }
        if let Some(new) = new {
            fingerprint.add(key, new);
            size += key.len() + new.len();
            len += 1;
        }
        ControlFlow::Continue(())
    })?;
    result?;
    check_result(fingerprint, delta)?;
    let overlay = Overlay::new(Arc::clone(source), changes, len, size);
    Ok(StateSnapshot::opened(delta.timestamp_ns(), delta.label().clone(), Some(fingerprint), Arc::new(overlay)))
}

/// Checks the fingerprint of what a delta is applied to.
fn check_fingerprint(found: Fingerprint, expected: Fingerprint) -> Result<(), StateError> {
    if found == expected || checksums_are_ignored() {
        return Ok(());
    }
    Err(StateError::WrongBase { found, expected })
}

/// Checks what a change says of its key against what there is.
fn check_kind(key: &[u8], change: ChangeKind, is_there: bool) -> Result<(), StateError> {
    match (change, is_there) {
        (ChangeKind::Insert, true) => Err(inconsistent("it inserts a key that is there", key)),
        (ChangeKind::Update, false) => Err(inconsistent("it updates a key that is not there", key)),
        (ChangeKind::Delete, false) => Err(inconsistent("it deletes a key that is not there", key)),
        _ => Ok(()),
    }
}

fn check_result(found: Fingerprint, delta: &StateDelta) -> Result<(), StateError> {
    if found == delta.result_fingerprint() || checksums_are_ignored() {
        return Ok(());
    }
    let mut last = Bytes::new();
    delta.visit(|key, _| {
        last = Bytes::copy_from_slice(key);
        ControlFlow::Continue(())
    });
    Err(inconsistent("it does not lead to the contents that it says it leads to", &last))
}

fn inconsistent(problem: &'static str, key: &[u8]) -> StateError {
    StateError::InconsistentDelta { problem, key: shown(key), key_len: key.len() }
}

/// Walks two lists of changes, the second of which follows the first, and yields what both together do.
struct Composition<A: Iterator, B: Iterator> {
    first: Peekable<A>,
    second: Peekable<B>,
}

impl<A: Iterator<Item = Change>, B: Iterator<Item = Change>> Iterator for Composition<A, B> {
    type Item = Result<Change, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.first.peek(), self.second.peek()) {
                (Some((a, ..)), Some((b, ..))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            match order {
                Ordering::Less => return self.first.next().map(Ok),
                Ordering::Greater => return self.second.next().map(Ok),
                Ordering::Equal => {}
            }
            let ((_, before, _), (key, after, value)) = self.first.next().zip(self.second.next())?;
            if let Err(error) = check_kind(&key, after, before != ChangeKind::Delete) {
                return Some(Err(error));
            }
            let was_there = before != ChangeKind::Insert;
            match (was_there, after != ChangeKind::Delete) {
                (false, false) => {}
                (false, true) => return Some(Ok((key, ChangeKind::Insert, value))),
                (true, true) => return Some(Ok((key, ChangeKind::Update, value))),
                (true, false) => return Some(Ok((key, ChangeKind::Delete, value))),
            }
        }
    }
}

impl<'a> IntoIterator for &'a StateDelta {
    type Item = (Bytes, Option<Bytes>);
    type IntoIter = Changes<'a>;

    fn into_iter(self) -> Changes<'a> {
        self.iter()
    }
}

/// Compares what is done to which contents, not times. O(1) for clones, else O(n) and what
/// [`base_fingerprint`](StateDelta::base_fingerprint) costs.
impl PartialEq for StateDelta {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
            || (self.shared.counts == other.shared.counts
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
