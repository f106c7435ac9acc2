//! Helpers that tests share. The unit tests of `src` include some of these files, too.

pub(crate) mod allocator;
pub(crate) mod broken;
pub(crate) mod cases;
#[cfg(not(miri))]
pub(crate) mod examples;
#[cfg(not(miri))]
pub(crate) mod flights;
pub(crate) mod forged;
pub(crate) mod images;
pub(crate) mod imports;
pub(crate) mod layout;
pub(crate) mod model;
pub(crate) mod readers;
pub(crate) mod shifted;
#[cfg(not(miri))]
pub(crate) mod stress;
