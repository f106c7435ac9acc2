//! What comes out: tables for people, and a CSV file of the results for comparison.

use std::cmp::Reverse;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use indicatif::{HumanBytes, HumanCount};

use crate::Result;
use crate::calendar::{day_of, format_day};
use crate::directory::Kind;
use crate::events::{Airport, Source};
use crate::operators::{Delays, Operators, RouteTotal};
use crate::reactor::Reactor;
use crate::worker::{self, Worker};
use crate::writer::Outcome;

/// How many routes and airports are listed.
const LISTED: usize = 10;

/// Writes everything the job has computed. Equal results give equal bytes.
pub(crate) fn write_results(path: &Path, reactor: &Reactor) -> Result<()> {
    let mut csv = csv::Writer::from_path(path)?;
    csv.write_record(["of", "name", "flights", "delayed", "total_min", "worst_min", "days", "worst_day"])?;
    for (route, total) in route_totals(reactor)? {
        let [flights, delayed, total_min, worst_min] = fields(total.delays);
        let (days, worst_day) = (total.days.to_string(), format_day(total.worst_day));
        let row = ["route".into(), route_name(route), flights, delayed, total_min, worst_min, days, worst_day];
        csv.write_record(row)?;
    }
    for (airport, delays) in airport_totals(reactor)? {
        let [flights, delayed, total_min, worst_min] = fields(delays);
        let none = String::new;
        let row = ["airport".into(), airport_name(airport), flights, delayed, total_min, worst_min, none(), none()];
        csv.write_record(row)?;
    }
    let progress = &reactor.progress;
    let (events, late, days) = (progress.position, progress.late, progress.windows_closed);
    csv.write_record(["all", "events", &events.to_string(), "", "", "", &days.to_string(), ""])?;
    csv.write_record(["all", "late", &late.to_string(), "", "", "", "", ""])?;
    csv.flush()?;
    Ok(())
}

/// The totals of all workers, in the order of one.
fn route_totals(reactor: &Reactor) -> Result<Vec<([Airport; 2], RouteTotal)>> {
    let mut totals = Vec::new();
    for worker in &reactor.workers {
        totals.extend(worker.operators.routes.totals()?);
    }
    totals.sort_by_key(|&(route, _)| route);
    Ok(totals)
}

fn airport_totals(reactor: &Reactor) -> Result<Vec<(Airport, Delays)>> {
    let mut totals = Vec::new();
    for worker in &reactor.workers {
        totals.extend(worker.operators.airports.totals()?);
    }
    totals.sort_by_key(|&(airport, _)| airport);
    Ok(totals)
}

fn fields(delays: Delays) -> [String; 4] {
    let Delays { flights, delayed, total_min, worst_min } = delays;
    [flights.to_string(), delayed.to_string(), total_min.to_string(), worst_min.to_string()]
}

/// The tables at the end of a run.
pub(crate) struct Report<'a> {
    pub(crate) source: &'a Source,
    pub(crate) reactor: &'a Reactor,
    pub(crate) outcome: &'a Outcome,
    pub(crate) min_flights: u32,
}

impl Report<'_> {
    pub(crate) fn render(&self) -> Result<String> {
        let mut out = String::from("\n");
        side_by_side(&mut out, &self.routes()?, &self.airports()?);
        writeln!(
            out,
            " Delays in minutes. Routes of {} or more. Delayed: by more than 15 minutes.\n",
            counted(self.min_flights.into(), "flight")
        )?;
        side_by_side(&mut out, &self.state(), &self.checkpoints());
        writeln!(
            out,
            " Slowest event: of each stretch from barrier to barrier. It may close a day's windows and,\n \
             after a snapshot, copy state that the snapshot still shares.\n \
             Wait: at a checkpoint, until the one before it is on disk.\n"
        )?;
        self.summary(&mut out)?;
        Ok(out)
    }

    fn routes(&self) -> Result<Table> {
        let mut routes = route_totals(self.reactor)?;
        routes.retain(|(_, total)| total.delays.flights >= self.min_flights);
        routes.sort_by(|(_, a), (_, b)| b.delays.mean_min().total_cmp(&a.delays.mean_min()));

        let mut table = table(["Worst routes", "Flights", "Mean", "Delayed", "Worst", "on"]);
        for (route, total) in routes.into_iter().take(LISTED) {
            let Delays { flights, worst_min, .. } = total.delays;
            table.add_row(vec![
                Cell::new(route_name(route)),
                Cell::new(flights),
                Cell::new(format!("{:.1}", total.delays.mean_min())),
                Cell::new(format!("{:.0} %", total.delays.delayed_percent())),
                Cell::new(worst_min),
                Cell::new(format_day(total.worst_day)),
            ]);
        }
        Ok(table)
    }

    fn airports(&self) -> Result<Table> {
        let mut airports = airport_totals(self.reactor)?;
        airports.sort_by_key(|(_, delays)| Reverse(delays.flights));

        let mut table = table(["Busiest", "Flights", "Mean", "Delayed"]);
        for (airport, delays) in airports.into_iter().take(LISTED) {
            table.add_row(vec![
                Cell::new(airport_name(airport)),
                Cell::new(HumanCount(delays.flights.into())),
                Cell::new(format!("{:.1}", delays.mean_min())),
                Cell::new(format!("{:.0} %", delays.delayed_percent())),
            ]);
        }
        Ok(table)
    }

    fn state(&self) -> Table {
        let mut table = table(["State", "Entries", "Bytes", "Peak"]);
        let workers = &self.reactor.workers;
        for (operator, name) in Operators::NAMES.into_iter().enumerate() {
            let sum = |of: &dyn Fn(&Worker) -> usize| workers.iter().map(of).sum::<usize>() as u64;
            table.add_row([
                name.into(),
                HumanCount(sum(&|worker| worker.operators.stores()[operator].len())).to_string(),
                HumanBytes(sum(&|worker| worker.operators.stores()[operator].size_bytes())).to_string(),
                HumanBytes(sum(&|worker| worker.metrics.peak_bytes[operator])).to_string(),
            ]);
        }
        table
    }

    fn checkpoints(&self) -> Table {
        let workers = &self.reactor.workers;
        let of_workers = |list: fn(&worker::Metrics) -> &[Duration]| {
            workers.iter().flat_map(move |worker| list(&worker.metrics)).copied()
        };
        let mut table = table(["Checkpoints", "Median", "Longest"]);
        for (name, times) in [
            ("snapshot, on a worker", of_workers(|metrics| &metrics.pauses).collect()),
            ("wait for the writer", self.reactor.metrics.waits.clone()),
            ("write, off the loop", self.outcome.times.clone()),
            ("slowest event after one", of_workers(|metrics| &metrics.slowest_after_snapshot).collect()),
            ("slowest event otherwise", of_workers(|metrics| &metrics.slowest_otherwise).collect()),
        ] {
            let [median, longest] = median_and_longest(times).map(|time| time.map_or("-".into(), human));
            table.add_row([name.into(), median, longest]);
        }
        table
    }

    fn summary(&self, out: &mut String) -> Result<()> {
        let (progress, metrics) = (&self.reactor.progress, &self.reactor.metrics);
        let days = || self.source.departures.iter().map(|departure| day_of(departure.scheduled));
        write!(out, " {}", counted(progress.position, "event"))?;
        if let (Some(first), Some(last)) = (days().min(), days().max()) {
            write!(out, " from {} to {}", format_day(first), format_day(last))?;
        }
        let (late, closed) = (HumanCount(progress.late), counted(progress.windows_closed, "day"));
        writeln!(out, ": {late} dropped as late, {closed} closed")?;

        write!(out, " {} in this run in {}", counted(metrics.events, "event"), human(metrics.time))?;
        if !metrics.waits.is_empty() {
            write!(out, ", {} of it waiting for the writer", human(metrics.waits.iter().sum()))?;
        }
        if metrics.events > 0 {
            let rate = metrics.events as f64 / metrics.time.as_secs_f64().max(1e-9);
            write!(out, ": {} events/s", HumanCount(rate as u64))?;
        }
        writeln!(out)?;

        let written = &self.outcome.written;
        let bytes = HumanBytes(written.iter().map(|written| written.bytes).sum());
        write!(out, " {} written, {bytes} in all", counted(written.len() as u64, "checkpoint"))?;
        if metrics.skipped > 0 {
            write!(out, "; {} skipped, as the writer was busy", HumanCount(metrics.skipped))?;
        }
        if self.outcome.failed > 0 {
            write!(out, "; {} failed", HumanCount(self.outcome.failed))?;
        }
        writeln!(out)?;
        for (kind, name) in [(Kind::Full, "in full"), (Kind::Delta, "of what changed")] {
            let bytes: Vec<u64> = written.iter().filter(|written| written.kind == kind).map(|it| it.bytes).collect();
            let (count, sum) = (bytes.len() as u64, bytes.iter().sum::<u64>());
            if let Some(mean) = sum.checked_div(count) {
                let (count, mean, sum) = (HumanCount(count), HumanCount(mean), HumanCount(sum));
                writeln!(out, "   {count} {name}: {mean} bytes on average, {sum} in all")?;
            }
        }
        Ok(())
    }
}

/// Returns a count with its noun, as in `1 day` or `1,234 days`.
pub(crate) fn counted(number: u64, one: &str) -> String {
    format!("{} {one}{}", HumanCount(number), if number == 1 { "" } else { "s" })
}

/// Returns an empty table. Its first column is for names, the others are for numbers.
fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─'))).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn side_by_side(out: &mut String, left: &Table, right: &Table) {
    let (left, right): (Vec<_>, Vec<_>) = (left.lines().collect(), right.lines().collect());
    // The line below the header has no invisible characters, so it is as wide as it looks.
    let blank = " ".repeat(left.get(1).map_or(0, |line| line.chars().count()));
    for row in 0..left.len().max(right.len()) {
        let (left, right) = (left.get(row).unwrap_or(&blank), right.get(row).map_or("", String::as_str));
        out.push_str(format!("{left}   {right}").trim_end());
        out.push('\n');
    }
}

fn median_and_longest(mut times: Vec<Duration>) -> [Option<Duration>; 2] {
    times.sort_unstable();
    [times.get(times.len() / 2).copied(), times.last().copied()]
}

/// A duration in the unit that leaves at most three digits before the point, also when rounded.
fn human(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..9.95 => format!("{micros:.1} µs"),
        ..999.5 => format!("{micros:.0} µs"),
        ..999_950.0 => format!("{:.1} ms", micros / 1e3),
        _ => format!("{:.1} s", micros / 1e6),
    }
}

fn airport_name(airport: Airport) -> String {
    String::from_utf8_lossy(&airport).into_owned()
}

fn route_name([origin, destination]: [Airport; 2]) -> String {
    format!("{}-{}", airport_name(origin), airport_name(destination))
}
