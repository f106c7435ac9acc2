//! The tests of the public contract, in one binary.

#![cfg_attr(alloc_error_hook, feature(alloc_error_hook))]

mod budget;
mod conformance;
mod counting;
mod damage;
mod delta;
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
mod stream;
mod typed;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::FileFailurePersistence;

/// Runs that many cases; those that ever failed are kept beside the test's source and run first.
fn cases(cases: u32) -> ProptestConfig {
    let kept = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { cases, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}
