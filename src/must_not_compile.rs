//! Programs that must not compile, as doctests. Each also stands without its mistake, and then compiles.
//!
//! Unsafe code relies on these three errors. Bounds and lifetimes that are part of a signature have no case here, because
//! `tests/api.txt` lists them. Every compiler checks that the programs fail, and a nightly one the code of the error.

/// A scan borrows its store, so that nothing is written before the scan is dropped.
///
/// ```compile_fail,E0502
/// use opstate::{HotStore, StateStore, StateStoreExt};
///
/// let mut store = HotStore::new();
/// let mut scan = store.scan(..);
/// store.put(b"key", b"value").unwrap();
/// assert!(scan.next().is_none());
/// ```
///
/// ```
/// use opstate::{HotStore, StateStore, StateStoreExt};
///
/// let mut store = HotStore::new();
/// let mut scan = store.scan(..);
/// assert!(scan.next().is_none());
/// drop(scan);
/// store.put(b"key", b"value").unwrap();
/// ```
struct ScansBorrowTheStore;

/// A closure that changes a value in place cannot keep the slice it borrows.
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

/// A store can be sent to another thread, but threads cannot share it. No signature says so: auto traits decide.
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
