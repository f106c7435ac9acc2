//! The tests of the public contract, in one binary.

#![cfg_attr(alloc_error_hook, feature(alloc_error_hook))]

mod aligned;
mod budget;
mod conformance;
mod counted;
mod damage;
mod delta;
mod engine;
mod evolution;
mod failures;
mod flights;
mod forge;
mod golden;
mod groups;
mod history;
mod inspect;
mod layers;
mod lazy;
mod memory;
mod model;
mod snapshot;
mod source;
mod stream;
#[cfg(not(miri))]
mod stress;
mod support;
mod typed;
