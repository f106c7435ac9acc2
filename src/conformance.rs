//! Checks that any implementation of [`StateStore`](crate::StateStore) can run against itself.
