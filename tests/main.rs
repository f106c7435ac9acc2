//! The tests of the public contract, in one binary.
