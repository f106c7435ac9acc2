//! [`reserve_one`]: room for one more element of a list that mostly stays short.

/// Reserves room for one more element: for that alone in an empty list, so that the smallest stores are small.
pub(super) fn reserve_one<T>(list: &mut Vec<T>) {
    if list.capacity() == 0 { list.reserve_exact(1) } else { list.reserve(1) }
}
