//! The operators: three aggregates, each with a store of its own.
//!
//! ```text
//!                      ┌─> Airports    running totals of each origin
//!   departure ─────────┤
//!                      └─> RouteDays   one window per day, an entry per route
//!                              │
//!                              └─ window closed ─> Routes    totals of each route over the closed days
//! ```
//!
//! All sums are integers, so the order of addition does not matter. A run that crashed and resumed ends with the same
//! bytes as one that did not.

use std::ops::{AddAssign, Range};

use opstate::{Label, StateError, StateSnapshot, StateStore, StateStoreExt};
use rkyv::munge::munge;
use rkyv::seal::Seal;
use rkyv::{Archive, Deserialize, Serialize};

use crate::calendar::{Day, day_of};
use crate::events::{Airport, Departure};

/// Threshold in minutes. A flight that departs later than this counts as delayed, as in the statistics this data comes
/// from.
const DELAYED_MIN: i32 = 15;

/// Statistics of a group of departures.
#[derive(Archive, Serialize, Deserialize, Clone, Copy)]
pub(crate) struct Delays {
    pub(crate) flights: u32,
    /// Number of departures that were over 15 minutes late.
    pub(crate) delayed: u32,
    /// Sum of all delays. Early departures subtract from it.
    pub(crate) total_min: i64,
    pub(crate) worst_min: i32,
}

impl Delays {
    fn of(delay_min: i32) -> Self {
        Self {
            flights: 1,
            delayed: u32::from(delay_min > DELAYED_MIN),
            total_min: delay_min.into(),
            worst_min: delay_min,
        }
    }

    pub(crate) fn mean_min(&self) -> f64 {
        self.total_min as f64 / f64::from(self.flights)
    }

    pub(crate) fn delayed_percent(&self) -> f64 {
        100.0 * f64::from(self.delayed) / f64::from(self.flights)
    }
}

impl AddAssign for Delays {
    fn add_assign(&mut self, other: Self) {
        self.flights += other.flights;
        self.delayed += other.delayed;
        self.total_min += other.total_min;
        self.worst_min = self.worst_min.max(other.worst_min);
    }
}

/// Counts one departure under `key`. An existing entry is changed in place with a single lookup.
fn count(store: &mut dyn StateStore, key: &[u8], delay_min: i32) -> Result<(), StateError> {
    let one = Delays::of(delay_min);
    let counted = store.modify_typed::<Delays, _>(key, |delays: Seal<'_, ArchivedDelays>| {
        munge!(let ArchivedDelays { mut flights, mut delayed, mut total_min, mut worst_min } = delays);
        *flights += one.flights;
        *delayed += one.delayed;
        *total_min += one.total_min;
        *worst_min = worst_min.to_native().max(one.worst_min).into();
    })?;
    match counted {
        Some(()) => Ok(()),
        None => store.put_typed(key, &one),
    }
}

/// Running totals of each airport. Late events count too, because these totals have no windows.
///
/// Keys: `origin`.
pub(crate) struct Airports(Box<dyn StateStore>);

impl Airports {
    pub(crate) fn on_departure(&mut self, departure: &Departure) -> Result<(), StateError> {
        count(&mut self.0, &departure.origin, departure.delay_min)
    }

    pub(crate) fn totals(&self) -> Result<Vec<(Airport, Delays)>, StateError> {
        let mut totals = Vec::with_capacity(self.0.len());
        for entry in self.0.scan_typed(..) {
            let (key, delays) = entry?;
            if let Ok(airport) = Airport::try_from(&key[..]) {
                totals.push((airport, delays));
            }
        }
        Ok(totals)
    }
}

/// Windows: totals of each route on each open day.
///
/// Keys: `day | origin | destination`. The day comes first and is big-endian, so keys sort in the order in which
/// windows close. All windows that are due form one range at the start, which is scanned and then deleted in one call.
pub(crate) struct RouteDays(Box<dyn StateStore>);

impl RouteDays {
    pub(crate) fn on_departure(&mut self, departure: &Departure) -> Result<(), StateError> {
        let mut key = [0; 10];
        key[..4].copy_from_slice(&day_of(departure.scheduled).to_be_bytes());
        key[4..7].copy_from_slice(&departure.origin);
        key[7..].copy_from_slice(&departure.destination);
        count(&mut self.0, &key, departure.delay_min)
    }

    /// Closes the windows of all days before `end` and hands their contents to `emit`.
    pub(crate) fn close_before(
        &mut self,
        end: Day,
        mut emit: impl FnMut(Day, &[u8], Delays) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let due = ..end.to_be_bytes();
        for entry in self.0.scan_typed(due) {
            let (key, delays) = entry?;
            let Some((day, route)) = key.split_first_chunk() else { continue };
            emit(Day::from_be_bytes(*day), route, delays)?;
        }
        self.0.delete_range(due, usize::MAX)?;
        Ok(())
    }
}

/// Statistics of a route over the closed days.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct RouteTotal {
    pub(crate) delays: Delays,
    /// Number of days with a flight.
    pub(crate) days: u32,
    /// Day of the longest delay. If several days tie, the first of them.
    pub(crate) worst_day: Day,
}

/// Totals of each route over all closed days. They are part of the state, so a crash does not lose closed windows.
///
/// Keys: `origin | destination`.
pub(crate) struct Routes(Box<dyn StateStore>);

impl Routes {
    fn on_window_closed(&mut self, day: Day, route: &[u8], window: Delays) -> Result<(), StateError> {
        self.0.update(route, |total: &mut Option<RouteTotal>| match total {
            Some(total) => {
                if window.worst_min > total.delays.worst_min {
                    total.worst_day = day;
                }
                total.delays += window;
                total.days += 1;
            }
            None => *total = Some(RouteTotal { delays: window, days: 1, worst_day: day }),
        })
    }

    pub(crate) fn totals(&self) -> Result<Vec<([Airport; 2], RouteTotal)>, StateError> {
        let mut totals = Vec::with_capacity(self.0.len());
        for entry in self.0.scan_typed(..) {
            let (key, total) = entry?;
            let Some((&origin, destination)) = key.split_first_chunk() else { continue };
            if let Ok(destination) = Airport::try_from(destination) {
                totals.push(([origin, destination], total));
            }
        }
        Ok(totals)
    }
}

/// Snapshots of all operators, in the order of [`Operators::stores`].
pub(crate) type Slice = [StateSnapshot; Operators::COUNT];

/// All operators of the job, or a worker's slice of them.
pub(crate) struct Operators {
    pub(crate) airports: Airports,
    pub(crate) route_days: RouteDays,
    pub(crate) routes: Routes,
}

impl Operators {
    pub(crate) const COUNT: usize = 3;

    /// Names of the operators, in the order of [`stores`](Self::stores).
    pub(crate) const NAMES: [&str; Self::COUNT] = ["airports", "route days", "routes"];

    /// Position of the origin in each operator's keys. The origin decides how state is split; see `shards.rs`.
    const ORIGINS: [Range<usize>; Self::COUNT] = [0..3, 4..7, 0..3];

    pub(crate) fn new(mut new_store: impl FnMut() -> Box<dyn StateStore>) -> Self {
        Self { airports: Airports(new_store()), route_days: RouteDays(new_store()), routes: Routes(new_store()) }
    }

    pub(crate) fn stores(&self) -> [&dyn StateStore; Self::COUNT] {
        [&*self.airports.0, &*self.route_days.0, &*self.routes.0]
    }

    /// Returns the origin in a key of an operator. `operator` is an index into [`stores`](Self::stores).
    pub(crate) fn origin_in_key(operator: usize, key: &[u8]) -> &[u8] {
        key.get(Self::ORIGINS[operator].clone()).unwrap_or(key)
    }

    pub(crate) fn on_departure(&mut self, departure: &Departure, is_late: bool) -> Result<(), StateError> {
        self.airports.on_departure(departure)?;
        if is_late { Ok(()) } else { self.route_days.on_departure(departure) }
    }

    /// Moves the windows of all days before `end` from `route_days` to `routes`.
    pub(crate) fn close_windows(&mut self, end: Day) -> Result<(), StateError> {
        let Self { route_days, routes, .. } = self;
        route_days.close_before(end, |day, route, window| routes.on_window_closed(day, route, window))
    }

    /// Returns the label for snapshots of an operator. `operator` is an index into [`stores`](Self::stores).
    pub(crate) fn label(operator: usize) -> Label {
        Label::new().operator(Self::NAMES[operator])
    }

    pub(crate) fn snapshot(&self) -> Slice {
        let stores = self.stores();
        std::array::from_fn(|operator| stores[operator].snapshot().with_label(Self::label(operator)))
    }

    /// Replaces the operators' state with that of a checkpoint.
    pub(crate) fn restore(&mut self, slice: Slice) {
        let stores = [&mut self.airports.0, &mut self.route_days.0, &mut self.routes.0];
        for (store, snapshot) in stores.into_iter().zip(slice) {
            store.restore(snapshot);
        }
    }
}
