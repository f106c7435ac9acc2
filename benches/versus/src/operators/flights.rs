//! Departures and delays of each route, in windows of a day: the events of the example `flights`, played many times, one
//! period after the other.
//!
//! Keys: the end of the day, in minutes, the route. Values: count and sum of delays.

use std::ops::Range;

use opstate::{StateError, StateStore};

use super::stream::Time;
use super::windows::{close, count};
use super::{Operator, Results};

pub(super) const EVENTS: usize = 400_000;
const DAY: Time = 24 * 60;
/// How late, in minutes, an event may come.
const LATENESS: Time = 360;

/// A departure as it arrives: its schedule and delay in minutes, and its route.
pub(super) struct Departure {
    scheduled: Time,
    delay: Time,
    route: u64,
}

/// The departures of the file in the order of their arrival.
pub(super) fn departures() -> Vec<Departure> {
    let file = include_str!("../../../../examples/data/flights-20k.csv");
    let mut departures: Vec<Departure> = file.lines().skip(1).map(parse).collect();
    departures.sort_by_key(|departure| departure.scheduled + departure.delay);
    departures
}

fn parse(line: &str) -> Departure {
    let columns: Vec<&str> = line.split(',').collect();
    let [time, delay, _, origin, destination] = columns[..] else { panic!("five columns: {line}") };
    let number = |range: Range<usize>| time[range].parse::<Time>().expect("digits");
    // Months of 31 days: only the order counts, and that days differ.
    let days = (number(0..4) * 12 + number(5..7)) * 31 + number(8..10);
    let scheduled = days * DAY + number(11..13) * 60 + number(14..16);
    let airports = origin.bytes().chain(destination.bytes()).fold(0, |route, byte| route << 8 | u64::from(byte));
    // Those that left early left on time.
    Departure { scheduled, delay: delay.parse::<i64>().expect("minutes").max(0).unsigned_abs(), route: airports }
}

pub(super) struct Routes<'a> {
    departures: &'a [Departure],
    period: Time,
    latest: Time,
    closed: Time,
}

impl<'a> Routes<'a> {
    pub(super) fn new(departures: &'a [Departure]) -> Self {
        let times = || departures.iter().map(|departure| departure.scheduled);
        let (first, last) = (times().min().unwrap_or(0), times().max().unwrap_or(0));
        Self { departures, period: (last - first).div_ceil(DAY) * DAY + 7 * DAY, latest: 0, closed: 0 }
    }
}

impl Operator for Routes<'_> {
    fn on_event(&mut self, number: usize, store: &mut dyn StateStore, results: &mut Results) -> Result<(), StateError> {
        let Departure { scheduled, delay, route } = self.departures[number % self.departures.len()];
        let scheduled = scheduled + (number / self.departures.len()) as Time * self.period;
        let end = (scheduled / DAY + 1) * DAY;
        if end > self.closed {
            count(store, end, route, delay)?;
        } else {
            // Too late for its window.
            results.add(&[scheduled, delay, route]);
        }
        self.latest = self.latest.max(scheduled + delay);
        close(store, DAY, &mut self.closed, self.latest.saturating_sub(LATENESS), results)
    }
}
