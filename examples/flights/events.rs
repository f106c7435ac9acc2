//! The source: departures read from a CSV file and replayed in the order in which they happened.

use std::fs;
use std::path::Path;

use csv::{ReaderBuilder, StringRecord};
use indicatif::HumanCount;
use twox_hash::XxHash3_64;

use crate::Result;
use crate::calendar::{Minute, parse_minute};

/// An airport by its IATA code, as in `*b"DTW"`.
pub(crate) type Airport = [u8; 3];

/// The longest delay that is taken for one; more is a mistake in the file.
const MAX_DELAY_MIN: i32 = 7 * 24 * 60;

const COLUMNS: [&str; 4] = ["departure", "delay_min", "origin", "destination"];

/// One event.
pub(crate) struct Departure {
    /// The event time: when the flight was to leave.
    pub(crate) scheduled: Minute,
    /// How much later it left. Flights that left early have a negative delay.
    pub(crate) delay_min: i32,
    pub(crate) origin: Airport,
    pub(crate) destination: Airport,
}

impl Departure {
    /// When the flight left and the event came into being.
    fn arrival(&self) -> Minute {
        self.scheduled + Minute::from(self.delay_min)
    }
}

/// All events of a file, in the order of their arrival.
pub(crate) struct Source {
    pub(crate) departures: Vec<Departure>,
    /// Stands for the contents of the file, so that a checkpoint can tell which input its position is in.
    pub(crate) hash: u64,
}

impl Source {
    /// Reads the whole file, so that the event loop waits for nothing and the figures it reports are its own.
    ///
    /// The file is sorted by schedule. Arrival is another order: a flight that leaves five hours late is reported five
    /// hours late, behind flights that were scheduled after it. That makes real events that are out of order, and some
    /// that come when their day's window has closed.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let mut departures = parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        // Stable: flights that left in the same minute stay in the order of the file, so every run is the same.
        departures.sort_by_key(Departure::arrival);
        Ok(Self { departures, hash: XxHash3_64::oneshot(&bytes) })
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Departure>> {
    let mut reader = ReaderBuilder::new().from_reader(bytes);
    let header = reader.headers()?.clone();
    let mut columns = [0; COLUMNS.len()];
    for (column, name) in columns.iter_mut().zip(COLUMNS) {
        *column = header.iter().position(|found| found == name).ok_or_else(|| {
            format!("there is no column {name:?} in the header line, only {:?}", header.iter().collect::<Vec<_>>())
        })?;
    }

    let mut departures = Vec::new();
    let mut row = StringRecord::new();
    while reader.read_record(&mut row)? {
        let line = row.position().map_or(0, csv::Position::line);
        let departure = parse_row(columns.map(|column| &row[column]));
        departures.push(departure.map_err(|problem| format!("line {line}: {problem}"))?);
    }
    Ok(departures)
}

fn parse_row([departure, delay, origin, destination]: [&str; COLUMNS.len()]) -> Result<Departure, String> {
    let delay_min =
        delay.parse().ok().filter(|minutes| (-MAX_DELAY_MIN..=MAX_DELAY_MIN).contains(minutes)).ok_or_else(|| {
            let most = HumanCount(MAX_DELAY_MIN.unsigned_abs().into());
            format!("delay_min is {delay:?}, expected whole minutes, at most {most} (a week)")
        })?;
    let scheduled = parse_minute(departure)
        .ok_or_else(|| format!("departure is {departure:?}, expected a time since 1970 such as 2001-01-31 23:59"))?;
    Ok(Departure { scheduled, delay_min, origin: parse_airport(origin)?, destination: parse_airport(destination)? })
}

fn parse_airport(text: &str) -> Result<Airport, String> {
    let code = Airport::try_from(text.as_bytes()).ok().filter(|code| code.iter().all(u8::is_ascii_uppercase));
    code.ok_or_else(|| format!("the airport is {text:?}, expected three capital letters"))
}
