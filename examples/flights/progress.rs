//! Where in the stream the job is, and what time it is there.

use rkyv::{Archive, Deserialize, Serialize};

use crate::calendar::{Day, Minute, day_of};
use crate::events::Departure;

/// With the operators' state, all that the results depend on.
///
/// It is kept where the stream is one, before it is split over workers: whether an event is late, and how many days are
/// over, must not depend on how many workers there are.
#[derive(Archive, Serialize, Deserialize, Clone)]
pub(crate) struct Progress {
    /// How many events of the source have been taken in.
    pub(crate) position: u64,
    /// No event before this time is expected any more. It never goes back.
    watermark: Minute,
    /// How many events came when their window had closed.
    pub(crate) late: u64,
    /// How many days are over.
    pub(crate) windows_closed: u64,
    /// The days that have a window and are not over: one or two.
    open_days: Vec<Day>,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { position: 0, watermark: Minute::MIN, late: 0, windows_closed: 0, open_days: Vec::new() }
    }

    /// Takes in an event, and returns whether it comes too late for its window.
    pub(crate) fn on_departure(&mut self, departure: &Departure) -> bool {
        self.position += 1;
        let day = day_of(departure.scheduled);
        let is_late = day < day_of(self.watermark);
        if is_late {
            self.late += 1;
        } else if !self.open_days.contains(&day) {
            self.open_days.push(day);
        }
        is_late
    }

    /// Moves the watermark; returns the first day that is not over, if another one is over now.
    pub(crate) fn advance_watermark(&mut self, to: Minute) -> Option<Day> {
        let from = self.watermark;
        self.watermark = to.max(from);
        // Most events are on the same day as the one before: nothing to close, and no scan to find that out.
        let end = Some(day_of(to)).filter(|&end| end > day_of(from))?;
        let open = self.open_days.len();
        self.open_days.retain(|&day| day >= end);
        self.windows_closed += (open - self.open_days.len()) as u64;
        Some(end)
    }
}
