//! Errors of typed access: the text is equal in every build, is complete, and does not change from run to run.

use std::any::type_name;
use std::error::Error;
use std::fmt;

use opstate::{HotStore, InMemoryStore, StateError, StateSnapshot, StateStore, StateStoreExt};
use rkyv::rancor::{self, Fallible};
use rkyv::{Archive, Place, Serialize};

use super::{Longer, Window};

/// Checks the text of an error, and that the error contains nothing else.
fn assert_text(error: &StateError, expected: &str) {
    assert_eq!(error.to_string(), expected);
    assert!(error.source().is_none());
    for text in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
        assert!(!text.contains("0x") && !text.contains("pointer:"), "{text}");
    }
}

fn stores() -> [Box<dyn StateStore>; 2] {
    [Box::new(HotStore::new()), Box::new(InMemoryStore::new())]
}

#[test]
fn a_wrong_type_is_said_in_the_same_words_by_every_build() {
    let long_key = [b'k'; 40];
    let long = "k".repeat(32);
    let invalid = "its bytes are no valid archive of that type, or one nested more than 512 levels deep";
    for (key, shown, value) in [
        (&b"k"[..], "k", &b""[..]),
        (b"", "", b"x"),
        (b"k\n\xFF`", "k\\n\\xff`", &[0xFF; 40]),
        (&long_key, &long, &[0x80; 200]),
    ] {
        let expected = format!(
            "the value (bytes: {}) of the key `{shown}` (bytes: {}) cannot be read as `main::typed::Window`: {invalid}; read it \
             as the type it was written as",
            value.len(),
            key.len(),
        );
        for mut store in stores() {
            store.put(key, value).unwrap();
            let ignored = |_: &mut Option<Window>| ();
            let errors = [
                store.get_typed::<Window>(key).unwrap_err(),
                store.view::<Window, _>(key, |_| ()).unwrap_err(),
                store.modify_typed::<Window, _>(key, |_| ()).unwrap_err(),
                store.update(key, ignored).unwrap_err(),
                store.take_typed::<Window>(key).unwrap_err(),
                store.scan_typed::<Window>(..).next().unwrap().unwrap_err(),
                store.snapshot().get_typed::<Window>(key).unwrap_err(),
            ];
            errors.iter().for_each(|error| assert_text(error, &expected));
        }
    }
}

#[test]
fn what_is_wrong_with_a_value_is_said_in_the_same_words_by_every_build() {
    let mut store = InMemoryStore::new();
    store.put_typed(b"k", &Longer { old: 1, new: 2 }).unwrap();
    assert_text(
        &store.get_typed::<u64>(b"k").unwrap_err(),
        "the value (bytes: 16) of the key `k` (bytes: 1) cannot be read as `u64`: bytes at its start belong to no archive of \
         that type; read it as the type it was written as",
    );
    // This archive is valid, but cannot be deserialized, because it holds a damaged image.
    store.put_typed(b"s", &StateSnapshot::from_iter([("a", "1")])).unwrap();
    let mut value = store.get(b"s").unwrap().to_vec();
    value[40] ^= 1;
    store.put(b"s", &value).unwrap();
    assert!(store.view::<StateSnapshot, _>(b"s", |archived| archived.as_image().len() > 120).unwrap().unwrap());
    assert_text(
        &store.get_typed::<StateSnapshot>(b"s").unwrap_err(),
        &format!(
            "the value (bytes: {}) of the key `s` (bytes: 1) cannot be read as `{}`: it is such an archive, but no value can \
             be made of it; read it as the type it was written as",
            value.len(),
            type_name::<StateSnapshot>(),
        ),
    );
}

/// A type without an archive.
struct Secret;

#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused at {self:p}")
    }
}

impl Error for Refused {}

impl Archive for Secret {
    type Archived = ();
    type Resolver = ();

    fn resolve(&self, (): (), _: Place<()>) {}
}

impl<S: Fallible<Error: rancor::Source> + ?Sized> Serialize<S> for Secret {
    fn serialize(&self, _: &mut S) -> Result<(), S::Error> {
        Err(rancor::Source::new(Refused))
    }
}

#[test]
fn a_value_that_cannot_be_written_is_named_in_the_same_words_by_every_build() {
    for mut store in stores() {
        store.put(b"k\0", b"before").unwrap();
        let error = store.put_typed(b"k\0", &vec![Secret]).unwrap_err();
        assert!(matches!(&error, StateError::NotSerializable { key, key_len: 2, .. } if key == "k\\x00"), "{error:?}");
        assert_text(
            &error,
            "the value for the key `k\\x00` (bytes: 2) cannot be written, because `Serialize` of \
             `alloc::vec::Vec<main::typed::errors::Secret>` failed; look for a part of it that can fail, such as a snapshot \
             beyond 2 GiB or a cycle of shared pointers",
        );
        assert_eq!(store.get(b"k\0").as_deref(), Some(&b"before"[..]));
        // The thread's buffer is still usable.
        store.put_typed(b"k\0", &7_u64).unwrap();
        assert_eq!(store.get_typed::<u64>(b"k\0").unwrap(), Some(7));
    }
}
