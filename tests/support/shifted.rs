//! [`Shifted`]: a store whose values lie at any address.

use std::ops::Range;

use bytes::Bytes;
use opstate::{InMemoryStore, StateError, StateSnapshot, StateStore};

/// A store that hands out values at a chosen distance from a multiple of 16.
pub(crate) struct Shifted {
    pub(crate) inner: InMemoryStore,
    pub(crate) shift: usize,
}

impl Shifted {
    /// Returns a buffer that contains the value, and the value's range in it.
    fn shifted(&self, value: &[u8]) -> (Vec<u8>, Range<usize>) {
        let mut buffer = vec![0; value.len() + 32];
        let start = buffer.as_ptr().addr().next_multiple_of(16) - buffer.as_ptr().addr() + self.shift;
        buffer[start..start + value.len()].copy_from_slice(value);
        (buffer, start..start + value.len())
    }
}

impl StateStore for Shifted {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.inner.get(key)
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.inner.put(key, value)
    }
    fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        self.inner.delete(key)
    }
    fn prefix_scan<'a>(&'a self, prefix: &'a [u8]) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        self.inner.prefix_scan(prefix)
    }
    fn range_scan<'a>(&'a self, range: Range<&'a [u8]>) -> Box<dyn Iterator<Item = (Bytes, Bytes)> + 'a> {
        self.inner.range_scan(range)
    }
    fn size_bytes(&self) -> usize {
        self.inner.size_bytes()
    }
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn snapshot(&self) -> StateSnapshot {
        self.inner.snapshot()
    }
    fn restore(&mut self, snapshot: StateSnapshot) {
        self.inner.restore(snapshot);
    }
    fn clear(&mut self) {
        self.inner.clear();
    }
    fn read(&self, key: &[u8], f: &mut dyn FnMut(&[u8])) -> bool {
        let Some(value) = self.inner.get(key) else { return false };
        let (buffer, range) = self.shifted(&value);
        f(&buffer[range]);
        true
    }
    fn modify(&mut self, key: &[u8], f: &mut dyn FnMut(&mut [u8])) -> Result<bool, StateError> {
        let Some(value) = self.inner.get(key) else { return Ok(false) };
        let (mut buffer, range) = self.shifted(&value);
        f(&mut buffer[range.clone()]);
        self.inner.put(key, &buffer[range])?;
        Ok(true)
    }
}
