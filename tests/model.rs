//! All stores against the [model](crate::support::model).
//!
//! `OPSTATE_MODEL_CASES` sets the number of cases. The long form is 100,000 of them for every store:
//!
//! ```sh
//! OPSTATE_MODEL_CASES=100000 cargo test --release --lib --test main the_model -- --test-threads 1
//! ```
//!
//! That runs the model in the unit tests, too, on a `HotStore` whose parts are tiny and validated after every operation.

use opstate::{HotStore, InMemoryStore, StateStore};
use proptest::prelude::*;

use crate::support::cases::cases;
use crate::support::model::{any_ops, model_cases, run};

proptest! {
    #![proptest_config(cases(model_cases()))]

    #[test]
    fn in_memory_store_agrees_with_the_model(ops in any_ops()) {
        run(InMemoryStore::new, |_| {}, ops);
    }

    #[test]
    fn hot_store_agrees_with_the_model(ops in any_ops()) {
        run(HotStore::new, |_| {}, ops);
    }

    #[test]
    fn hot_store_of_tiny_chunks_agrees_with_the_model(ops in any_ops()) {
        run(|| Box::new(HotStore::builder().chunk_bytes(64, 256).build()) as Box<dyn StateStore>, |_| {}, ops);
    }
}

#[test]
#[cfg(target_pointer_width = "64")]
fn entries_have_the_longest_lengths_they_may_have() {
    use opstate::{MAX_KEY_LEN, MAX_VALUE_LEN, StateError, check_entry_len};
    // Pages of zeros that are never touched.
    let zeros = vec![0; MAX_VALUE_LEN + 1];
    assert!(check_entry_len(&zeros[..MAX_KEY_LEN], &zeros[..MAX_VALUE_LEN]).is_ok());
    let error = InMemoryStore::new().put(b"", &zeros).unwrap_err();
    assert!(matches!(error, StateError::ValueTooLong { len: 4_294_967_296, limit: 4_294_967_295 }), "{error}");
    let error = InMemoryStore::new().put(&zeros[..=MAX_KEY_LEN], b"").unwrap_err();
    assert!(matches!(error, StateError::KeyTooLong { len: 65_536, limit: 65_535 }), "{error}");
}
