//! Mistakes with typed values. The compiler must explain each in terms of `opstate`, not of rkyv's internals.

#![allow(dead_code)]

use opstate::{HotStore, StateStoreExt};

struct Plain;

#[derive(rkyv::Archive)]
struct OnlyArchive(u64);

#[derive(rkyv::Archive, rkyv::Serialize)]
struct WriteOnly(u64);

fn a_type_that_derives_nothing_is_put(store: &mut HotStore) {
    let _ = store.put_typed(b"key", &Plain);
}

fn a_type_that_is_not_serialized_is_put(store: &mut HotStore) {
    let _ = store.put_typed(b"key", &OnlyArchive(1));
}

fn a_type_that_is_not_deserialized_is_got(store: &HotStore) {
    let _ = store.get_typed::<WriteOnly>(b"key");
}

fn a_type_that_is_not_deserialized_is_updated(store: &mut HotStore) {
    let _ = store.update(b"key", |_: &mut Option<WriteOnly>| ());
}

fn a_generic_value_without_a_bound_is_put<T>(store: &mut HotStore, value: &T) {
    let _ = store.put_typed(b"key", value);
}
