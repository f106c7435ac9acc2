//! The room of lists: [`reserve_one`] for lists that mostly stay short, [`give_back`] for those that were long.

/// Reserves room for one more element: for that alone in an empty list, so that the smallest stores are small.
pub(super) fn reserve_one<T>(list: &mut Vec<T>) {
    if list.capacity() == 0 { list.reserve_exact(1) } else { list.reserve(1) }
}

/// Gives the allocator most of the memory that a vector does not use, if that is three quarters or more.
///
/// Keeps it where there is no memory to move the vector to. So this cannot fail.
pub(super) fn give_back<T>(vec: &mut Vec<T>) {
    let mut smaller = Vec::new();
    if vec.len() <= vec.capacity() / 4 && smaller.try_reserve_exact(vec.len()).is_ok() {
        smaller.append(vec);
        *vec = smaller;
    }
}
