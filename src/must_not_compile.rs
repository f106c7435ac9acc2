//! Programs that must not compile, as doctests. Each is there twice: with the mistake, and without, to show that the compiler
//! refuses nothing else.
//!
//! A stable compiler checks that they fail, a nightly one the code of the error, too.

/// A scan borrows the store that it goes through: there is no write until it is dropped.
///
/// ```compile_fail,E0502
/// use opstate::{HotStore, StateStore};
///
/// let mut store = HotStore::new();
/// let mut scan = store.prefix_scan(b"");
/// store.put(b"key", b"value").unwrap();
/// assert!(scan.next().is_none());
/// ```
///
/// ```
/// use opstate::{HotStore, StateStore};
///
/// let mut store = HotStore::new();
/// let mut scan = store.prefix_scan(b"");
/// assert!(scan.next().is_none());
/// drop(scan);
/// store.put(b"key", b"value").unwrap();
/// ```
struct ScansBorrowTheStore;

/// A scan does not outlive the store.
///
/// ```compile_fail,E0505
/// use opstate::{HotStore, StateStore};
///
/// let store = HotStore::new();
/// let mut scan = store.prefix_scan(b"");
/// drop(store);
/// assert!(scan.next().is_none());
/// ```
///
/// ```
/// use opstate::{HotStore, StateStore};
///
/// let store = HotStore::new();
/// let mut scan = store.prefix_scan(b"");
/// assert!(scan.next().is_none());
/// ```
struct ScansDoNotOutliveTheStore;

/// Nor do the entries of a snapshot outlive that.
///
/// ```compile_fail,E0505
/// use opstate::StateSnapshot;
///
/// let snapshot = StateSnapshot::from_iter([("key", "value")]);
/// let mut entries = snapshot.iter();
/// drop(snapshot);
/// assert!(entries.next().is_some());
/// ```
///
/// ```
/// use opstate::StateSnapshot;
///
/// let snapshot = StateSnapshot::from_iter([("key", "value")]);
/// let mut entries = snapshot.iter();
/// assert!(entries.next().is_some());
/// ```
struct EntriesDoNotOutliveTheSnapshot;

/// A visited store is not written to.
///
/// ```compile_fail,E0502
/// use std::ops::{Bound, ControlFlow};
///
/// use opstate::{HotStore, StateStore};
///
/// let mut store = HotStore::new();
/// store.visit_range((Bound::Unbounded, Bound::Unbounded), &mut |_key, _value| {
///     store.clear();
///     ControlFlow::Continue(())
/// });
/// store.clear();
/// ```
///
/// ```
/// use std::ops::{Bound, ControlFlow};
///
/// use opstate::{HotStore, StateStore};
///
/// let mut store = HotStore::new();
/// store.visit_range((Bound::Unbounded, Bound::Unbounded), &mut |_key, _value| {
///     ControlFlow::Continue(())
/// });
/// store.clear();
/// ```
struct VisitedStoresAreNotWrittenTo;

/// A value that is read in place stays there.
///
/// ```compile_fail,E0521
/// use opstate::{HotStore, StateStore};
///
/// let store = HotStore::new();
/// let mut kept: Option<&[u8]> = None;
/// store.read(b"key", &mut |value| kept = Some(value));
/// assert!(kept.is_none());
/// ```
///
/// ```
/// use opstate::{HotStore, StateStore};
///
/// let store = HotStore::new();
/// let mut kept: Option<&[u8]> = None;
/// store.read(b"key", &mut |value| assert!(value.len() < 9));
/// assert!(kept.is_none());
/// ```
struct ReadValuesStayInPlace;

/// A value that is changed in place stays there, too.
///
/// ```compile_fail,E0521
/// use opstate::{HotStore, StateStore};
///
/// let mut store = HotStore::new();
/// let mut kept: Option<&mut [u8]> = None;
/// store.modify(b"key", &mut |value| kept = Some(value)).unwrap();
/// assert!(kept.is_none());
/// ```
///
/// ```
/// use opstate::{HotStore, StateStore};
///
/// let mut store = HotStore::new();
/// let mut kept: Option<&mut [u8]> = None;
/// store.modify(b"key", &mut |value| value.fill(0)).unwrap();
/// assert!(kept.is_none());
/// ```
struct ModifiedValuesStayInPlace;

/// A store has one owner: it can be sent to another thread, but not be shared with one.
///
/// ```compile_fail,E0277
/// use opstate::HotStore;
///
/// fn needs<T: Sync>() {}
/// needs::<HotStore>();
/// ```
///
/// ```
/// use opstate::HotStore;
///
/// fn needs<T: Send>() {}
/// needs::<HotStore>();
/// ```
struct StoresAreNotShared;

/// Snapshots are shared; a scan of one is not sent.
///
/// ```compile_fail,E0277
/// use opstate::{Entries, StateSnapshot};
///
/// fn needs_send<T: Send>() {}
/// needs_send::<Entries<'static>>();
/// ```
///
/// ```
/// use opstate::{Entries, StateSnapshot};
///
/// fn needs_send<T: Send>() {}
/// needs_send::<StateSnapshot>();
/// ```
struct ScansAreNotSent;

/// A store that cannot be sent is none.
///
/// ```compile_fail,E0277
/// use std::ops::Range;
/// use std::rc::Rc as Counter;
///
/// use opstate::bytes::Bytes;
/// use opstate::{Entries, InMemoryStore, StateError, StateSnapshot, StateStore};
///
/// struct Shared(Counter<u64>, InMemoryStore);
///
/// impl StateStore for Shared {
///     fn get(&self, key: &[u8]) -> Option<Bytes> {
///         self.1.get(key)
///     }
///     fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
///         self.1.put(key, value)
///     }
///     fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
///         self.1.delete(key)
///     }
///     fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
///         self.1.prefix_scan(prefix)
///     }
///     fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
///         self.1.range_scan(range)
///     }
///     fn size_bytes(&self) -> usize {
///         self.1.size_bytes()
///     }
///     fn len(&self) -> usize {
///         self.1.len()
///     }
///     fn snapshot(&self) -> StateSnapshot {
///         self.1.snapshot()
///     }
///     fn restore(&mut self, snapshot: StateSnapshot) {
///         self.1.restore(snapshot);
///     }
///     fn clear(&mut self) {
///         self.1.clear();
///     }
/// }
/// ```
///
/// ```
/// use std::ops::Range;
/// use std::sync::Arc as Counter;
///
/// use opstate::bytes::Bytes;
/// use opstate::{Entries, InMemoryStore, StateError, StateSnapshot, StateStore};
///
/// struct Shared(Counter<u64>, InMemoryStore);
///
/// impl StateStore for Shared {
///     fn get(&self, key: &[u8]) -> Option<Bytes> {
///         self.1.get(key)
///     }
///     fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
///         self.1.put(key, value)
///     }
///     fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
///         self.1.delete(key)
///     }
///     fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Entries<'a> {
///         self.1.prefix_scan(prefix)
///     }
///     fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Entries<'a> {
///         self.1.range_scan(range)
///     }
///     fn size_bytes(&self) -> usize {
///         self.1.size_bytes()
///     }
///     fn len(&self) -> usize {
///         self.1.len()
///     }
///     fn snapshot(&self) -> StateSnapshot {
///         self.1.snapshot()
///     }
///     fn restore(&mut self, snapshot: StateSnapshot) {
///         self.1.restore(snapshot);
///     }
///     fn clear(&mut self) {
///         self.1.clear();
///     }
/// }
/// ```
struct StoresAreSent;

/// A snapshot is read on any thread, and so must its reader be.
///
/// ```compile_fail,E0277
/// use std::io::{Cursor, Read, Result, Seek, SeekFrom};
/// use std::rc::Rc as Counter;
///
/// use opstate::UnverifiedImage;
///
/// struct Reader(Cursor<Vec<u8>>, Counter<u64>);
///
/// impl Read for Reader {
///     fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
///         self.0.read(bytes)
///     }
/// }
/// impl Seek for Reader {
///     fn seek(&mut self, to: SeekFrom) -> Result<u64> {
///         self.0.seek(to)
///     }
/// }
/// assert!(UnverifiedImage::from_reader(Reader(Cursor::default(), Counter::new(0))).is_err());
/// ```
///
/// ```
/// use std::io::{Cursor, Read, Result, Seek, SeekFrom};
/// use std::sync::Arc as Counter;
///
/// use opstate::UnverifiedImage;
///
/// struct Reader(Cursor<Vec<u8>>, Counter<u64>);
///
/// impl Read for Reader {
///     fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
///         self.0.read(bytes)
///     }
/// }
/// impl Seek for Reader {
///     fn seek(&mut self, to: SeekFrom) -> Result<u64> {
///         self.0.seek(to)
///     }
/// }
/// assert!(UnverifiedImage::from_reader(Reader(Cursor::default(), Counter::new(0))).is_err());
/// ```
struct ReadersAreSent;

/// The reader of an image that is opened lazily is kept, so it owns what it reads.
///
/// ```compile_fail,E0597
/// use std::io::Cursor;
///
/// use opstate::{StateSnapshot, UnverifiedImage};
///
/// let image = StateSnapshot::from_iter([("key", "value")]).to_bytes();
/// let opened = UnverifiedImage::from_reader(Cursor::new(&image[..])).unwrap();
/// assert_eq!(opened.len(), 1);
/// ```
///
/// ```
/// use std::io::Cursor;
///
/// use opstate::{StateSnapshot, UnverifiedImage};
///
/// let image = StateSnapshot::from_iter([("key", "value")]).to_bytes();
/// let opened = UnverifiedImage::from_reader(Cursor::new(image.clone())).unwrap();
/// assert_eq!(opened.len(), 1);
/// ```
struct ReadersOwnWhatTheyRead;

/// There may be more errors in a later version.
///
/// ```compile_fail,E0004
/// use opstate::{StateError, StateSnapshot};
///
/// match StateSnapshot::from_bytes(&b"no image"[..]).unwrap_err() {
///     StateError::KeyTooLong { .. }
///     | StateError::ValueTooLong { .. }
///     | StateError::OverBudget { .. }
///     | StateError::WrongType { .. }
///     | StateError::NotSerializable { .. }
///     | StateError::NotSorted { .. }
///     | StateError::NotAnImage { .. }
///     | StateError::UnsupportedVersion { .. }
///     | StateError::Truncated { .. }
///     | StateError::MissingTrailer { .. }
///     | StateError::ChecksumMismatch { .. }
///     | StateError::Malformed { .. }
///     | StateError::InvalidKeyGroupCount { .. }
///     | StateError::NoSuchSlice { .. }
///     | StateError::ConflictingKeys { .. }
///     | StateError::Cancelled { .. }
///     | StateError::UnexpectedKind { .. }
///     | StateError::WrongBase { .. }
///     | StateError::InconsistentDelta { .. }
///     | StateError::UnknownSection { .. }
///     | StateError::UnknownCodec { .. }
///     | StateError::WrongLabel { .. }
///     | StateError::ImageChanged
///     | StateError::BeyondAddressSpace
///     | StateError::File { .. }
///     | StateError::Io(_)
///     | StateError::Store(_) => {}
/// }
/// ```
///
/// ```
/// use opstate::{StateError, StateSnapshot};
///
/// match StateSnapshot::from_bytes(&b"no image"[..]).unwrap_err() {
///     StateError::KeyTooLong { .. }
///     | StateError::ValueTooLong { .. }
///     | StateError::OverBudget { .. }
///     | StateError::WrongType { .. }
///     | StateError::NotSerializable { .. }
///     | StateError::NotSorted { .. }
///     | StateError::NotAnImage { .. }
///     | StateError::UnsupportedVersion { .. }
///     | StateError::Truncated { .. }
///     | StateError::MissingTrailer { .. }
///     | StateError::ChecksumMismatch { .. }
///     | StateError::Malformed { .. }
///     | StateError::InvalidKeyGroupCount { .. }
///     | StateError::NoSuchSlice { .. }
///     | StateError::ConflictingKeys { .. }
///     | StateError::Cancelled { .. }
///     | StateError::UnexpectedKind { .. }
///     | StateError::WrongBase { .. }
///     | StateError::InconsistentDelta { .. }
///     | StateError::Io(_)
///     | StateError::Store(_) => {}
///     _ => {}
/// }
/// ```
struct ErrorsMayBecomeMore;
