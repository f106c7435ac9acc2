//! Deduplication: the first bid of each bidder for an auction within thirty seconds.
//!
//! Keys: `d | bidder | auction` holds the time of the bid. `t | time | bidder | auction` is empty and serves expiry.

use opstate::{StateError, StateStore, StateStoreExt};

use super::stream::{Event, Kind, Time, Watermark};
use super::windows::two;
use super::{Operator, Results};

const KEPT: Time = 30_000;

pub(super) struct FirstBids<'a> {
    events: &'a [Event],
    watermark: Watermark,
}

impl<'a> FirstBids<'a> {
    pub(super) fn new(events: &'a [Event]) -> Self {
        Self { events, watermark: Watermark::new() }
    }
}

impl Operator for FirstBids<'_> {
    fn on_event(&mut self, number: usize, store: &mut dyn StateStore, results: &mut Results) -> Result<(), StateError> {
        let Event { time, kind } = &self.events[number];
        if let Kind::Bid { auction, bidder, price } = kind {
            let pair = two(*bidder, *auction);
            let key = [&b"d"[..], &pair].concat();
            if !store.contains(&key) {
                results.add(&[*bidder, *auction, *price]);
                store.put(&key, &time.to_be_bytes())?;
                store.put(&[&b"t"[..], &time.to_be_bytes(), &pair].concat(), &[])?;
            }
        }
        let watermark = self.watermark.after(*time);
        if number.is_multiple_of(1_000) && watermark > KEPT {
            let end = [&b"t"[..], &(watermark - KEPT).to_be_bytes()].concat();
            let old: Vec<_> = store.range_scan(b"t"..&end).map(|(key, _)| key).collect();
            for key in old {
                store.delete(&[&b"d"[..], &key[9..]].concat())?;
            }
            store.delete_range(&b"t"[..]..&end[..], usize::MAX)?;
        }
        Ok(())
    }
}
