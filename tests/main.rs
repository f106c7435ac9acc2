//! The tests of the public contract, in one binary.

#![cfg_attr(alloc_error_hook, feature(alloc_error_hook))]

mod aligned;
mod budget;
mod conformance;
mod counting;
mod damage;
mod delta;
mod engine;
mod evolution;
mod examples;
mod failures;
mod flights;
mod forge;
mod golden;
mod groups;
mod inspect;
mod layout;
mod lazy;
mod memory;
mod model;
mod snapshot;
mod source;
mod stream;
mod typed;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::FileFailurePersistence;

/// Returns a configuration with this many cases. Failed cases are stored beside the test's source and run first.
fn cases(cases: u32) -> ProptestConfig {
    let kept = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { cases, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}
