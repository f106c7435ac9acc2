//! Typed access: a stored value is read back unchanged at any alignment, and nothing else passes as that value.

#![allow(unsafe_code, reason = "rkyv's `munge!` expands to it")]

mod deep;
mod errors;

use opstate::{InMemoryStore, StateError, StateStore, StateStoreExt, StateValue, UnverifiedImage};
use rkyv::munge::munge;
use rkyv::rancor::BoxedError;
use rkyv::{Archive, Deserialize, Serialize};

use crate::support::allocator::allocated_by;
use crate::support::shifted::Shifted;

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Window {
    count: u64,
    sum: i128,
    route: String,
    delays: Vec<u128>,
    last: Option<Box<i128>>,
}

fn window() -> Window {
    Window { count: 7, sum: i128::MIN, route: "DTW-LAS".into(), delays: vec![1, u128::MAX], last: Some(Box::new(-5)) }
}

#[test]
fn values_come_back_at_every_alignment() {
    for shift in 0..17 {
        let mut store: Box<dyn StateStore> = Box::new(Shifted { inner: InMemoryStore::new(), shift });
        assert_eq!(store.get_typed::<Window>(b"w").unwrap(), None);
        assert_eq!(store.view::<Window, _>(b"w", |_| panic!("there is no value")).unwrap(), None::<()>);
        assert!(store.modify_typed::<Window, _>(b"w", |_| panic!("there is no value")).unwrap().is_none());

        store.put_typed(b"w", &window()).unwrap();
        assert_eq!(store.get_typed::<Window>(b"w").unwrap(), Some(window()));
        let viewed = store.view::<Window, _>(b"w", |w| (w.delays[1].to_native(), w.route.to_string())).unwrap();
        assert_eq!(viewed, Some((u128::MAX, "DTW-LAS".to_owned())));
        let before = store.snapshot();
        let old = store.modify_typed::<Window, _>(b"w", |archived| {
            munge!(let ArchivedWindow { mut count, delays, .. } = archived);
            let old = count.to_native();
            *count = 8.into();
            *rkyv::vec::ArchivedVec::as_slice_seal(delays).index(0) = 5.into();
            old
        });
        assert_eq!(old.unwrap(), Some(7));
        let expected = Window { count: 8, delays: vec![5, u128::MAX], ..window() };
        assert_eq!(store.get_typed::<Window>(b"w").unwrap(), Some(expected.clone()));

        store
            .update(b"w", |current: &mut Option<Window>| {
                assert_eq!(*current, Some(expected));
                current.as_mut().unwrap().route = "longer than it was before, by far".into();
            })
            .unwrap();
        assert_eq!(store.view::<Window, _>(b"w", |w| w.route.len()).unwrap(), Some(33));
        store.update(b"w", |current: &mut Option<Window>| *current = None).unwrap();
        assert!(store.is_empty());
        assert_eq!(store.take_typed::<Window>(b"w").unwrap(), None);
        store.restore(before.clone());
        let failed = store.try_update(b"w", |current: &mut Option<Window>| {
            *current = None;
            Err::<(), _>(StateError::store("on second thoughts"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the store failed: on second thoughts");
        assert_eq!(store.get_typed::<Window>(b"w").unwrap(), Some(window()));
        assert_eq!(before.view::<Window, _>(b"w", |w| w.route.len()).unwrap(), Some(7));
        assert_eq!(before.view::<Window, _>(b"x", |_| panic!("there is no value")).unwrap(), None::<()>);
        let all: Result<Vec<_>, _> = store.scan_typed::<Window>(b"v"..).rev().collect();
        assert_eq!(all.unwrap(), [(b"w"[..].into(), window())]);
        assert_eq!(store.take_typed::<Window>(b"w").unwrap(), Some(window()));
        assert!(store.is_empty());
    }
}

/// Checks forged values whose parts are aligned for their type only at some start addresses.
#[test]
fn a_verdict_does_not_depend_on_where_a_value_lies() {
    let boxed = rkyv::to_bytes::<BoxedError>(&Box::new(5_u128)).unwrap();
    for gap in 0..40 {
        let value = [&vec![0; gap][..], &boxed].concat();
        for shift in 0..16 {
            let mut store = Shifted { inner: InMemoryStore::new(), shift };
            store.put(b"k", &value).unwrap();
            let got = store.get_typed::<Box<u128>>(b"k");
            let is_valid = gap % 8 == 0;
            assert_eq!(got.is_ok(), is_valid, "{gap} bytes before a value at {shift}");
            assert_eq!(got.ok(), is_valid.then(|| Some(Box::new(5))));
            assert_eq!(store.view::<Box<u128>, _>(b"k", |_| ()).is_ok(), is_valid);
            assert_eq!(store.modify_typed::<Box<u128>, _>(b"k", |_| ()).is_ok(), is_valid);
            assert_eq!(store.scan_typed::<Box<u128>>(..).next().unwrap().is_ok(), is_valid);
        }
    }
}

#[test]
fn a_wrong_type_is_an_error_that_names_it() {
    for shift in [0, 1, 4, 8] {
        let mut store = Shifted { inner: InMemoryStore::new(), shift };
        for (i, bytes) in [&b""[..], b"x", &[0xFF; 40], &[0xFF; 200], &[0x80; 111]].into_iter().enumerate() {
            let key = vec![b'k'; i + 1];
            store.put(&key, bytes).unwrap();
            let check = |error: StateError| {
                let text = error.to_string();
                let StateError::WrongType { key: shown, key_len, value_len, type_name, .. } = error else {
                    panic!("{text}")
                };
                assert_eq!((shown.as_bytes(), key_len, value_len), (&key[..], key.len(), bytes.len()));
                assert!(type_name.ends_with("typed::Window") && text.contains("typed::Window"), "{text}");
            };
            check(store.get_typed::<Window>(&key).unwrap_err());
            check(store.view::<Window, _>(&key, |_| panic!("not valid")).map(|_: Option<()>| ()).unwrap_err());
            check(store.update(&key, |_: &mut Option<Window>| panic!("not valid")).map(|_: ()| ()).unwrap_err());
            let untouched = |_: rkyv::seal::Seal<'_, ArchivedWindow>| -> () { panic!("not valid") };
            check(store.modify_typed::<Window, _>(&key, untouched).unwrap_err());
            check(store.take_typed::<Window>(&key).unwrap_err());
            check(store.scan_typed::<Window>(&key[..]..).next().unwrap().unwrap_err());
            check(store.scan_typed::<Window>(..=&key[..]).next_back().unwrap().unwrap_err());
            let snapshot = store.snapshot();
            check(snapshot.get_typed::<Window>(&key).unwrap_err());
            check(snapshot.view::<Window, _>(&key, |_| panic!("not valid")).map(|_: Option<()>| ()).unwrap_err());
            check(snapshot.scan_typed::<Window>(&key[..]..).next().unwrap().unwrap_err());
            let image = UnverifiedImage::from_bytes(snapshot.to_bytes()).unwrap();
            check(image.get_typed::<Window>(&key).unwrap_err());
            check(image.view::<Window, _>(&key, |_| panic!("not valid")).map(|_: Option<()>| ()).unwrap_err());
            check(image.scan_typed::<Window>(&key[..]..).next().unwrap().unwrap_err());
            assert_eq!(store.get(&key).as_deref(), Some(bytes));
        }
    }
}

#[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
struct Longer {
    old: u64,
    new: u64,
}

#[test]
fn a_part_of_a_longer_value_is_not_taken_for_a_shorter_type() {
    for shift in [0, 4, 5] {
        let mut store = Shifted { inner: InMemoryStore::new(), shift };
        store.put_typed(b"k", &Longer { old: 1, new: 2 }).unwrap();
        let check = |error: StateError| {
            assert!(error.to_string().contains("bytes at its start belong to no archive of that type"), "{error}");
        };
        check(store.get_typed::<u64>(b"k").unwrap_err());
        check(store.get_typed::<bool>(b"k").map(drop).err().unwrap_or_else(|| panic!("a bool")));
        check(store.modify_typed::<u64, _>(b"k", |_| ()).unwrap_err());
        check(store.snapshot().get_typed::<u32>(b"k").unwrap_err());
        check(store.scan_typed::<u64>(..).next().unwrap().unwrap_err());
        assert_eq!(store.get_typed::<Longer>(b"k").unwrap(), Some(Longer { old: 1, new: 2 }));
    }
}

#[test]
fn valid_values_of_all_shapes_use_all_their_bytes() {
    fn round_trip<T: StateValue + PartialEq + std::fmt::Debug>(value: T) {
        let mut store = InMemoryStore::new();
        store.put_typed(b"k", &value).unwrap();
        assert_eq!(store.get_typed::<T>(b"k").unwrap().as_ref(), Some(&value));
        assert_eq!(store.snapshot().get_typed::<T>(b"k").unwrap().as_ref(), Some(&value));
        assert_eq!(store.scan_typed::<T>(..).next().unwrap().unwrap().1, value);
    }
    round_trip(());
    round_trip(7_u8);
    round_trip(Vec::<u64>::new());
    round_trip(vec![(); 5]);
    round_trip(vec![Vec::<u8>::new(), vec![], vec![1]]);
    round_trip((Vec::<u128>::new(), 3_u8, String::new()));
    round_trip(String::from("short"));
    round_trip(String::from("a string that does not fit inline"));
    round_trip((Some(Box::new(5_u64)), None::<Box<u64>>));
    round_trip(None::<Box<u128>>);
    round_trip(std::collections::BTreeMap::<u32, String>::new());
    round_trip(std::collections::BTreeMap::from([
        (1_u32, String::from("one")),
        (2, String::from("a longer second one")),
    ]));
    round_trip(std::collections::HashMap::<u32, u32>::new());
    round_trip([window(), window()]);
}

#[test]
fn every_flipped_bit_of_a_value_is_an_error_or_a_value() {
    let mut store = InMemoryStore::new();
    store.put_typed(b"w", &window()).unwrap();
    let bytes = store.get(b"w").unwrap();
    let mut errors = 0;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        store.put(b"w", &flipped).unwrap();
        errors += usize::from(store.get_typed::<Window>(b"w").is_err());
    }
    assert!(errors > 50, "{errors}");
}

#[test]
fn typed_access_to_small_values_allocates_nothing() {
    let mut store: Box<dyn StateStore> = Box::new(InMemoryStore::new());
    let mut cycle = |i: u64| {
        store.put_typed(b"counter", &(i, i as u32)).unwrap();
        store.view::<(u64, u32), _>(b"counter", |counter| assert_eq!(counter.0, i)).unwrap().unwrap();
        store
            .modify_typed::<(u64, u32), _>(b"counter", |counter| {
                munge!(let rkyv::tuple::ArchivedTuple2(mut first, _) = counter);
                *first = (i + 1).into();
            })
            .unwrap()
            .unwrap();
        store.update(b"counter", |counter: &mut Option<(u64, u32)>| counter.as_mut().unwrap().0 += 1).unwrap();
        assert_eq!(store.get_typed::<(u64, u32)>(b"counter").unwrap(), Some((i + 2, i as u32)));
    };
    // The first call fills the thread's buffers.
    cycle(0);
    let ((), allocated) = allocated_by(|| (1..100).for_each(cycle));
    assert_eq!(allocated.calls, 0);
}

#[test]
fn a_view_is_in_place_where_the_value_is_aligned() {
    let mut store = InMemoryStore::new();
    store.put_typed(b"w", &window()).unwrap();
    let value = store.get(b"w").unwrap().as_ptr_range();
    let seen = store.view::<Window, _>(b"w", |w| std::ptr::from_ref(w).cast::<u8>()).unwrap().unwrap();
    assert!(value.contains(&seen));
}

#[test]
fn typed_calls_nest() {
    let mut outer = InMemoryStore::new();
    let mut inner = InMemoryStore::new();
    outer.put_typed(b"k", &1_u64).unwrap();
    inner.put_typed(b"k", &2_u64).unwrap();
    let shifted = Shifted { inner: outer, shift: 1 };
    let sum = shifted.view::<u64, _>(b"k", |a| inner.view::<u64, _>(b"k", |b| a.to_native() + b.to_native()));
    assert_eq!(sum.unwrap().unwrap().unwrap(), Some(3));
}
