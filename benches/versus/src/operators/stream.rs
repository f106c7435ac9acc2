//! A generated stream of an auction house, after the proportions of NEXMark (Tucker, Tufte, Papadimos, Maier, 2008): of 50
//! events three open an auction and 46 are bids (the one in which a person signs up is left out). Half of the bids go to a
//! few hot auctions. Events come out of order, by up to two seconds.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Milliseconds since the stream began.
pub(crate) type Time = u64;

/// Nothing comes later than this, behind the latest event so far.
pub(crate) const LATENESS: Time = 2_000;

pub(crate) struct Event {
    pub(crate) time: Time,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Auction { id: u64, expires: Time },
    Bid { auction: u64, bidder: u64, price: u64 },
}

/// The time up to which everything has come, after an event.
pub(crate) struct Watermark {
    latest: Time,
}

impl Watermark {
    pub(crate) fn new() -> Self {
        Self { latest: 0 }
    }

    pub(crate) fn after(&mut self, time: Time) -> Time {
        self.latest = self.latest.max(time);
        self.latest.saturating_sub(LATENESS)
    }
}

/// So many events, the same every time.
pub(crate) fn events(count: usize) -> Vec<Event> {
    let mut random = SmallRng::seed_from_u64(11);
    let mut auctions = 0;
    let mut next = |place: usize| {
        // Ten events a millisecond.
        let time = LATENESS + place as Time / 10 - random.random_range(0..LATENESS);
        let kind = if place % 49 < 3 || auctions == 0 {
            auctions += 1;
            Kind::Auction { id: auctions, expires: time + random.random_range(5_000..60_000) }
        } else {
            let oldest = auctions.saturating_sub(20_000) + 1;
            let is_hot = random.random_bool(0.5);
            let auction = if is_hot { auctions - auctions % 100 + 1 } else { random.random_range(oldest..=auctions) };
            Kind::Bid {
                auction: auction.min(auctions),
                bidder: random.random_range(0..50_000),
                price: random.random_range(100..1_000_000),
            }
        };
        Event { time, kind }
    };
    (0..count).map(&mut next).collect()
}
