//! Deeply nested values, up to the limit and beyond: each is read or refused, on a stack of 2 MiB.

use std::thread;

use opstate::{
    HotStore, InMemoryStore, MAX_VALUE_DEPTH, StateError, StateSnapshot, StateStore, StateStoreExt, UnverifiedImage,
};
use rkyv::rancor;
use rkyv::{Archive, Deserialize, Serialize};

use crate::support::shifted::Shifted;

#[derive(Archive, Serialize, Deserialize)]
#[rkyv(
    serialize_bounds(__S: rkyv::ser::Writer, __S::Error: rancor::Source),
    deserialize_bounds(__D::Error: rancor::Source),
    bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rancor::Source)),
)]
struct Deep(#[rkyv(omit_bounds)] Option<Box<Deep>>);

impl Deep {
    /// Creates a value with `depth` pointers from the outermost to the innermost level.
    fn of(depth: usize) -> Self {
        (0..depth).fold(Self(None), |inner, _| Self(Some(Box::new(inner))))
    }

    fn depth(&self) -> usize {
        std::iter::successors(self.0.as_deref(), |inner| inner.0.as_deref()).count()
    }
}

impl ArchivedDeep {
    fn depth(&self) -> usize {
        std::iter::successors(self.0.as_deref(), |inner| inner.0.as_deref()).count()
    }
}

/// Returns the archive of a [`Deep`], made without recursion. The innermost level comes first. Each further level has a
/// tag, and a pointer from its second half to the level before.
fn archive(depth: usize) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    for _ in 0..depth {
        bytes.extend_from_slice(&[1, 0, 0, 0]);
        bytes.extend_from_slice(&(-12_i32).to_le_bytes());
    }
    bytes
}

/// A node with a vector of children, beside fields of some size.
#[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
#[rkyv(
    serialize_bounds(__S: rkyv::ser::Writer + rkyv::ser::Allocator, __S::Error: rancor::Source),
    deserialize_bounds(__D::Error: rancor::Source),
    bytecheck(bounds(__C: rkyv::validation::ArchiveContext, __C::Error: rancor::Source)),
)]
struct Tree {
    sums: [i128; 4],
    name: String,
    #[rkyv(omit_bounds)]
    children: Vec<Tree>,
}

/// Returns a tree with `depth` pointers from the root to the innermost level. The pointer of the innermost empty vector
/// counts.
fn tree(depth: usize) -> Tree {
    let node = |children| Tree { sums: [7; 4], name: "short".into(), children };
    (1..depth).fold(node(vec![]), |inner, _| node(vec![inner]))
}

fn on_two_mib(f: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(2 << 20).spawn(f).unwrap().join().unwrap();
}

fn stores() -> Vec<Box<dyn StateStore>> {
    let shifted = |shift| Box::new(Shifted { inner: InMemoryStore::new(), shift }) as Box<dyn StateStore>;
    vec![Box::new(HotStore::new()), Box::new(InMemoryStore::new()), shifted(1), shifted(8)]
}

#[test]
fn the_archive_made_by_hand_is_that_of_rkyv() {
    for depth in [0, 1, 2, 50] {
        assert_eq!(rkyv::to_bytes::<rancor::Error>(&Deep::of(depth)).unwrap().to_vec(), archive(depth));
    }
}

#[test]
fn a_value_of_the_greatest_depth_is_read() {
    on_two_mib(|| {
        for depth in [1, 100, MAX_VALUE_DEPTH - 1, MAX_VALUE_DEPTH] {
            for mut store in stores() {
                store.put(b"k", &archive(depth)).unwrap();
                assert_eq!(store.get_typed::<Deep>(b"k").unwrap().unwrap().depth(), depth);
                assert_eq!(store.view::<Deep, _>(b"k", ArchivedDeep::depth).unwrap(), Some(depth));
                let found = store.modify_typed::<Deep, _>(b"k", |deep| deep.unseal_ref().depth());
                assert_eq!(found.unwrap(), Some(depth));
                assert_eq!(store.scan_typed::<Deep>(..).next().unwrap().unwrap().1.depth(), depth);
                store
                    .update(b"k", |deep: &mut Option<Deep>| assert_eq!(deep.as_ref().unwrap().depth(), depth))
                    .unwrap();
                let snapshot = store.snapshot();
                assert_eq!(snapshot.get_typed::<Deep>(b"k").unwrap().unwrap().depth(), depth);
                assert_eq!(snapshot.view::<Deep, _>(b"k", ArchivedDeep::depth).unwrap(), Some(depth));
                assert_eq!(store.take_typed::<Deep>(b"k").unwrap().unwrap().depth(), depth);
                store.put_typed(b"k", &tree(depth)).unwrap();
                assert_eq!(store.get_typed::<Tree>(b"k").unwrap().unwrap(), tree(depth));
            }
        }
    });
}

/// Checks that every way to read the value as a `Deep` fails.
fn assert_too_deep(bytes: Vec<u8>) {
    on_two_mib(move || {
        let check = |error: StateError| {
            let text = error.to_string();
            let StateError::WrongType { value_len, type_name, problem, .. } = error else { panic!("{text}") };
            assert_eq!(value_len, bytes.len());
            assert!(type_name.ends_with("deep::Deep"), "{text}");
            assert!(problem.contains("nested more than 512 levels deep"), "{text}");
        };
        for mut store in stores() {
            store.put(b"k", &bytes).unwrap();
            check(store.get_typed::<Deep>(b"k").map(drop).unwrap_err());
            check(store.view::<Deep, _>(b"k", |_| ()).unwrap_err());
            check(store.modify_typed::<Deep, _>(b"k", |_| ()).unwrap_err());
            check(store.update(b"k", |_: &mut Option<Deep>| ()).unwrap_err());
            check(store.take_typed::<Deep>(b"k").map(drop).unwrap_err());
            check(store.scan_typed::<Deep>(..).next().unwrap().map(drop).unwrap_err());
            check(store.scan_typed::<Deep>(..).next_back().unwrap().map(drop).unwrap_err());
            let snapshot = store.snapshot();
            check(snapshot.get_typed::<Deep>(b"k").map(drop).unwrap_err());
            check(snapshot.view::<Deep, _>(b"k", |_| ()).unwrap_err());
            check(snapshot.scan_typed::<Deep>(..).next().unwrap().map(drop).unwrap_err());
            let image = UnverifiedImage::from_bytes(snapshot.to_bytes()).unwrap();
            check(image.get_typed::<Deep>(b"k").map(drop).unwrap_err());
            check(image.view::<Deep, _>(b"k", |_| ()).unwrap_err());
            assert_eq!(store.get(b"k").as_deref(), Some(&bytes[..]));
        }
        let snapshot = StateSnapshot::from_iter([("k", bytes.clone())]);
        check(snapshot.get_typed::<Deep>(b"k").map(drop).unwrap_err());
    });
}

#[test]
fn a_value_one_level_deeper_is_no_value_of_that_type() {
    assert_too_deep(archive(MAX_VALUE_DEPTH + 1));
    on_two_mib(|| {
        let mut store = InMemoryStore::new();
        store.put_typed(b"k", &tree(MAX_VALUE_DEPTH + 1)).unwrap();
        let error = store.get_typed::<Tree>(b"k").unwrap_err();
        assert!(matches!(error, StateError::WrongType { .. }), "{error}");
        // Writing has no depth limit.
        assert!(store.contains(b"k"));
    });
}

#[test]
fn a_value_of_any_depth_overflows_no_stack() {
    assert_too_deep(archive(200_000));
}

/// Checks values that point in a circle or into themselves. No serializer makes them.
#[test]
fn a_value_that_points_to_itself_is_no_value() {
    for offset in [-4_i32, 4, 0] {
        let mut bytes = archive(3);
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&offset.to_le_bytes());
        let mut store = HotStore::new();
        store.put(b"k", &bytes).unwrap();
        let error = store.get_typed::<Deep>(b"k").map(drop).unwrap_err();
        assert!(matches!(error, StateError::WrongType { .. }), "{error}");
    }
}
