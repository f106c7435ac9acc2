//! Number and sum of the bids for each auction in tumbling windows.
//!
//! Keys: `end of the window | auction`. Values: count and sum.

use opstate::{StateError, StateStore, StateStoreExt};

use super::stream::{Event, Kind, Time, Watermark};
use super::{Operator, Results};

const WINDOW: Time = 10_000;

pub(super) struct BidsByAuction<'a> {
    events: &'a [Event],
    watermark: Watermark,
    /// End of the closed windows. Every window that ends before this time is closed.
    closed: Time,
}

impl<'a> BidsByAuction<'a> {
    pub(super) fn new(events: &'a [Event]) -> Self {
        Self { events, watermark: Watermark::new(), closed: 0 }
    }
}

impl Operator for BidsByAuction<'_> {
    fn on_event(&mut self, number: usize, store: &mut dyn StateStore, results: &mut Results) -> Result<(), StateError> {
        let Event { time, kind } = &self.events[number];
        let end = (time / WINDOW + 1) * WINDOW;
        if let Kind::Bid { auction, price, .. } = kind {
            count(store, end, *auction, *price)?;
        }
        close(store, WINDOW, &mut self.closed, self.watermark.after(*time), results)
    }
}

/// Adds one event to a window.
pub(super) fn count(store: &mut dyn StateStore, end: Time, group: u64, amount: u64) -> Result<(), StateError> {
    let key = two(end, group);
    let counted = store.modify(&key, &mut |value| {
        let (count, sum) = halves(value);
        value.copy_from_slice(&two(count + 1, sum + amount));
    })?;
    if counted { Ok(()) } else { store.put(&key, &two(1, amount)) }
}

/// Closes the windows that end at or before the watermark. All windows have the same length.
pub(super) fn close(
    store: &mut dyn StateStore,
    window: Time,
    closed: &mut Time,
    watermark: Time,
    results: &mut Results,
) -> Result<(), StateError> {
    if watermark < *closed + window {
        return Ok(());
    }
    *closed = watermark / window * window;
    let end = two(*closed + 1, 0);
    for (key, value) in store.range_scan(&[]..&end) {
        let ((end, group), (count, sum)) = (halves(&key), halves(&value));
        results.add(&[end, group, count, sum]);
    }
    store.delete_range(..end, usize::MAX)?;
    Ok(())
}

/// Encodes two numbers so that the bytes sort as the numbers do.
pub(super) fn two(first: u64, second: u64) -> [u8; 16] {
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

pub(super) fn halves(bytes: &[u8]) -> (u64, u64) {
    let both = u128::from_be_bytes(bytes.try_into().expect("two numbers"));
    ((both >> 64) as u64, both as u64)
}
