//! Value types that change: enums of boxed versions, as the documentation of `StateStoreExt` describes.

use opstate::{HotStore, InMemoryStore, StateError, StateSnapshot, StateStore, StateStoreExt};
use proptest::prelude::*;
use rkyv::{Archive, Deserialize, Serialize};

use crate::support::cases::cases;

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct V1 {
    count: u64,
    route: String,
}

/// The second version: one field more, with another alignment.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct V2 {
    count: u64,
    route: String,
    sum: i128,
}

/// The third version: one field less, and another field of a different type.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct V3 {
    count: u32,
    delays: Vec<u16>,
}

/// Value types of successive programs.
mod program {
    use super::{Archive, Deserialize, Serialize, V1, V2, V3};

    #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
    pub(super) enum First {
        V1(Box<V1>),
    }

    #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
    pub(super) enum Second {
        V1(Box<V1>),
        V2(Box<V2>),
    }

    #[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
    pub(super) enum Third {
        V1(Box<V1>),
        V2(Box<V2>),
        V3(Box<V3>),
    }
}

use program::{First, Second, Third};

impl From<Third> for V3 {
    fn from(value: Third) -> Self {
        match value {
            Third::V1(old) => Self { count: old.count as u32, delays: vec![] },
            Third::V2(old) => Self { count: old.count as u32, delays: vec![old.sum as u16] },
            Third::V3(value) => *value,
        }
    }
}

fn any_v1() -> impl Strategy<Value = V1> {
    (any::<u64>(), ".{0,20}").prop_map(|(count, route)| V1 { count, route })
}

fn any_v2() -> impl Strategy<Value = V2> {
    (any::<u64>(), ".{0,20}", any::<i128>()).prop_map(|(count, route, sum)| V2 { count, route, sum })
}

fn any_v3() -> impl Strategy<Value = V3> {
    (any::<u32>(), proptest::collection::vec(any::<u16>(), 0..9)).prop_map(|(count, delays)| V3 { count, delays })
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn new_programs_read_old_values_and_old_ones_refuse_new_values(v1 in any_v1(), v2 in any_v2(), v3 in any_v3()) {
        let mut store = HotStore::new();
        store.put_typed(b"1", &First::V1(Box::new(v1.clone()))).unwrap();
        store.put_typed(b"2", &Second::V2(Box::new(v2.clone()))).unwrap();
        store.put_typed(b"3", &Third::V3(Box::new(v3.clone()))).unwrap();
        let before = store.snapshot();

        prop_assert_eq!(store.get_typed::<Second>(b"1").unwrap(), Some(Second::V1(Box::new(v1.clone()))));
        prop_assert_eq!(store.get_typed::<Third>(b"1").unwrap(), Some(Third::V1(Box::new(v1.clone()))));
        prop_assert_eq!(store.get_typed::<Third>(b"2").unwrap(), Some(Third::V2(Box::new(v2.clone()))));
        // An old program can read an old version that a new program wrote.
        store.put_typed(b"1", &Third::V1(Box::new(v1.clone()))).unwrap();
        prop_assert_eq!(store.get_typed::<First>(b"1").unwrap(), Some(First::V1(Box::new(v1))));

        let refused = [
            store.get_typed::<First>(b"2").map(drop),
            store.get_typed::<First>(b"3").map(drop),
            store.get_typed::<Second>(b"3").map(drop),
            store.view::<First, _>(b"2", |_| ()).map(drop),
            store.modify_typed::<Second, _>(b"3", |_| ()).map(drop),
            store.update(b"3", |_: &mut Option<First>| panic!("another version")),
            store.snapshot().get_typed::<First>(b"2").map(drop),
        ];
        for result in refused {
            prop_assert!(matches!(result, Err(StateError::WrongType { .. })), "{:?}", result);
        }
        prop_assert_eq!(store.snapshot(), before);

        // Upgrade value by value.
        for key in [b"1", b"2", b"3"] {
            store
                .update(key, |value: &mut Option<Third>| {
                    *value = value.take().map(|value| Third::V3(Box::new(V3::from(value))));
                })
                .unwrap();
        }
        prop_assert_eq!(store.get_typed::<Third>(b"3").unwrap(), Some(Third::V3(Box::new(v3))));
        let counts: Vec<_> = store.scan_typed::<Third>(..).map(|entry| V3::from(entry.unwrap().1).delays.len()).collect();
        prop_assert_eq!(&counts[..2], &[0, 1]);
    }
}

#[test]
fn values_written_by_the_first_program_stay_readable() {
    let bytes: [u8; 24] = [
        7, 0, 0, 0, 0, 0, 0, 0, // The count.
        b'a', b' ', b'r', b'o', b'u', b't', b'e', 0xFF, // The text, which is short enough to stand here.
        0, 0, 0, 0, 0xEC, 0xFF, 0xFF, 0xFF, // The tag, and how far back the version starts: 20 bytes.
    ];
    let mut store = InMemoryStore::new();
    store.put(b"key", &bytes).unwrap();
    let expected = V1 { count: 7, route: "a route".into() };
    assert_eq!(store.get_typed::<Third>(b"key").unwrap(), Some(Third::V1(Box::new(expected.clone()))));
    store.put_typed(b"again", &Third::V1(Box::new(expected))).unwrap();
    assert_eq!(store.get(b"again").as_deref(), Some(&bytes[..]));
}

#[test]
fn plain_values_are_brought_over_once() {
    let mut old = InMemoryStore::new();
    for i in 0..100_u64 {
        old.put_typed(&i.to_be_bytes(), &V1 { count: i, route: format!("route {i}") }).unwrap();
    }
    let image = old.snapshot().to_bytes();

    let snapshot = StateSnapshot::from_bytes(image).unwrap();
    let mut store = HotStore::new();
    for (key, _) in &snapshot {
        let value = snapshot.get_typed::<V1>(&key).unwrap().unwrap();
        store.put_typed(&key, &Third::V1(Box::new(value))).unwrap();
    }
    assert_eq!(store.len(), 100);
    for i in 0..100_u64 {
        let value = store.get_typed::<Third>(&i.to_be_bytes()).unwrap().unwrap();
        assert_eq!(value, Third::V1(Box::new(V1 { count: i, route: format!("route {i}") })));
    }
}
