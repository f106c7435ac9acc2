//! Code that the benchmarks share: workloads, timed operations, and the stores to compare.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod compare;
pub(crate) mod contender;
pub(crate) mod footprint;
pub(crate) mod glued;
pub(crate) mod operations;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) mod pauses;
pub(crate) mod workload;
