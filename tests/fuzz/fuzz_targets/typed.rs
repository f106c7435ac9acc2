//! Fuzzes typed reads of arbitrary bytes. The first byte selects the type. The second is the length of the key, which
//! shifts the value in memory.

#![no_main]

use std::collections::BTreeMap;
use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use opstate::{HotStore, InMemoryStore, StateError, StateSnapshot, StateStore, StateStoreExt, StateValue};
use rkyv::munge::munge;
use rkyv::seal::Seal;
use rkyv::vec::ArchivedVec;
use rkyv::{Archive, Deserialize, Serialize};

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Window {
    count: u64,
    sum: i128,
    route: String,
    is_open: bool,
    delays: Vec<u16>,
    first: Option<Box<char>>,
}

#[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
enum Versions {
    V1(Box<u32>),
    V2(Box<Window>),
    Empty,
}

/// A user's checkpoint that contains a snapshot.
#[derive(Archive, Serialize, Deserialize, Debug, PartialEq)]
struct Checkpoint {
    position: u64,
    state: StateSnapshot,
}

/// Reads the value of `key` as a `T` in every way. All must agree and change nothing. Returns the value.
fn read<T: StateValue + PartialEq + Debug>(store: &mut dyn StateStore, key: &[u8]) -> Option<T> {
    let before = store.get(key);
    let got = store.get_typed::<T>(key);
    let mut scanned = store.scan_typed::<T>(..);
    match (&got, scanned.next().expect("there is an entry")) {
        (Ok(got), Ok((_, scanned))) => assert_eq!(got.as_ref(), Some(&scanned)),
        (Err(StateError::WrongType { .. }), Err(StateError::WrongType { .. })) => {}
        (got, scanned) => panic!("{got:?} and {scanned:?}"),
    }
    assert!(scanned.next().is_none());
    drop(scanned);

    // A value that cannot be deserialized may still be valid. An invalid value can never be deserialized.
    let is_valid = store.view::<T, _>(key, |_| ()).is_ok();
    assert!(is_valid || got.is_err());
    assert_eq!(store.modify_typed::<T, _>(key, |_| ()).is_ok(), is_valid);
    let mut is_called = false;
    let update = store.update(key, |_: &mut Option<T>| is_called = true);
    assert_eq!((update.is_ok(), is_called), (got.is_ok(), got.is_ok()));
    match got {
        // The value may have been written again, as other bytes of the same meaning.
        Ok(got) => {
            assert_eq!(store.get_typed::<T>(key).unwrap(), got);
            store.put(key, before.as_deref().expect("there is a value")).unwrap();
            got
        }
        Err(_) => {
            assert_eq!(store.get(key), before);
            None
        }
    }
}

/// Changes a window in place and reads it again.
fn modify(store: &mut dyn StateStore, key: &[u8], window: &mut Window) {
    let change = |archived: Seal<'_, ArchivedWindow>| {
        munge!(let ArchivedWindow { mut count, delays, .. } = archived);
        *count = (count.to_native() ^ 1).into();
        let mut delays = ArchivedVec::as_slice_seal(delays);
        for i in 0..delays.len() {
            *delays.as_mut().index(i) = 9.into();
        }
    };
    store.modify_typed::<Window, _>(key, change).unwrap().expect("there is a value");
    window.count ^= 1;
    window.delays.fill(9);
    assert_eq!(store.get_typed::<Window>(key).unwrap().as_ref(), Some(&*window));
}

fn same<T: StateValue + PartialEq + Debug>(stores: &mut [Box<dyn StateStore>; 2], key: &[u8]) -> Option<T> {
    let [first, second] = stores.each_mut().map(|store| read::<T>(&mut **store, key));
    assert_eq!(first, second);
    first
}

fuzz_target!(|input: &[u8]| {
    let Some((&[which, key_len], value)) = input.split_first_chunk() else { return };
    let key = &[b'k'; 255][..usize::from(key_len)];
    let mut stores: [Box<dyn StateStore>; 2] = [Box::new(HotStore::new()), Box::new(InMemoryStore::new())];
    stores.iter_mut().for_each(|store| store.put(key, value).unwrap());
    match which % 9 {
        0 => drop(same::<u8>(&mut stores, key)),
        1 => drop(same::<char>(&mut stores, key)),
        2 => drop(same::<[u32; 3]>(&mut stores, key)),
        3 => drop(same::<String>(&mut stores, key)),
        4 => drop(same::<Vec<String>>(&mut stores, key)),
        5 => drop(same::<Versions>(&mut stores, key)),
        6 => drop(same::<BTreeMap<u16, String>>(&mut stores, key)),
        7 => drop(same::<Checkpoint>(&mut stores, key)),
        _ => {
            if let Some(window) = same::<Window>(&mut stores, key) {
                stores.iter_mut().for_each(|store| modify(&mut **store, key, &mut window.clone()));
            }
        }
    }
});
