//! Join of two streams: each closed auction with the highest bid made while it was open.
//!
//! Keys: `b | auction | time | number` holds the price of a bid. `e | end of the auction | auction` is empty.

use opstate::{StateError, StateStore, StateStoreExt};

use super::stream::{Event, Kind, Watermark};
use super::windows::two;
use super::{Operator, Results};

pub(super) struct WinningBids<'a> {
    events: &'a [Event],
    watermark: Watermark,
}

impl<'a> WinningBids<'a> {
    pub(super) fn new(events: &'a [Event]) -> Self {
        Self { events, watermark: Watermark::new() }
    }
}

fn key(kind: u8, first: u64, second: u64) -> [u8; 17] {
    let mut key = [kind; 17];
    key[1..].copy_from_slice(&two(first, second));
    key
}

impl Operator for WinningBids<'_> {
    fn on_event(&mut self, number: usize, store: &mut dyn StateStore, results: &mut Results) -> Result<(), StateError> {
        let Event { time, kind } = &self.events[number];
        match kind {
            Kind::Auction { id, expires } => store.put(&key(b'e', *expires, *id), &[])?,
            Kind::Bid { auction, price, .. } => {
                // The number orders bids of the same millisecond.
                let moment = time << 24 | number as u64 & 0xFF_FFFF;
                store.put(&key(b'b', *auction, moment), &price.to_be_bytes())?;
            }
        }
        let watermark = self.watermark.after(*time);
        if !number.is_multiple_of(1_000) {
            return Ok(());
        }
        let (start, end) = (key(b'e', 0, 0), key(b'e', watermark, 0));
        let ended: Vec<_> = store.range_scan(&start..&end).map(|(key, _)| key).collect();
        for ended in ended {
            let (expires, auction) = super::windows::halves(&ended[1..]);
            let (first, last) = (key(b'b', auction, 0), key(b'b', auction, u64::MAX));
            let limit = expires << 24;
            let (mut bids, mut best) = (0, 0);
            for (key, price) in store.range_scan(&first..&last) {
                if super::windows::halves(&key[1..]).1 < limit {
                    bids += 1;
                    best = best.max(u64::from_be_bytes(price[..].try_into().expect("a price")));
                }
            }
            results.add(&[auction, expires, bids, best]);
            store.delete_range(first..last, usize::MAX)?;
        }
        store.delete_range(start..end, usize::MAX)?;
        Ok(())
    }
}
