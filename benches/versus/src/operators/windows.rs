//! Number and sum of the bids for each auction, in tumbling windows.
//!
//! Keys: the end of the window, the auction. Values: count and sum.

use opstate::{StateError, StateStore};

use super::stream::{Event, Kind, Time, Watermark};
use super::{Operator, Results};

const WINDOW: Time = 10_000;

pub(super) struct BidsByAuction<'a> {
    events: &'a [Event],
    watermark: Watermark,
    /// The windows that end before this are closed.
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

/// Counts one more in a window.
pub(super) fn count(store: &mut dyn StateStore, end: Time, group: u64, amount: u64) -> Result<(), StateError> {
    let key = two(end, group);
    let counted = store.modify(&key, &mut |value| {
        let (count, sum) = halves(value);
        value.copy_from_slice(&two(count + 1, sum + amount));
    })?;
    if counted { Ok(()) } else { store.put(&key, &two(1, amount)) }
}

/// Closes the windows, all as long, that end up to the watermark.
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
    store.delete_range(&[]..&end)?;
    Ok(())
}

/// Two numbers that sort as bytes do.
pub(super) fn two(first: u64, second: u64) -> [u8; 16] {
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

pub(super) fn halves(bytes: &[u8]) -> (u64, u64) {
    let both = u128::from_be_bytes(bytes.try_into().expect("two numbers"));
    ((both >> 64) as u64, both as u64)
}
