//! What the benchmarks share: what stores are given and asked, every operation that is timed, and the stores.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod compare;
pub(crate) mod contender;
pub(crate) mod footprint;
pub(crate) mod glued;
pub(crate) mod operations;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) mod pauses;
pub(crate) mod plot;
pub(crate) mod workload;
