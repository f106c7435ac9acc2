//! Bytes, times and lengths as people read them.

use std::fmt::{self, Write};

use indicatif::{BinaryBytes, HumanCount};

/// How keys and values are printed.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    pub(crate) hex: bool,
    /// Of a line, in columns; 0 if nothing is to be cut.
    pub(crate) width: usize,
}

impl Style {
    /// Bytes on one line, cut to `width` columns, and never within an escape.
    pub(crate) fn show(self, bytes: &[u8], width: usize) -> String {
        let mut shown = Cut { text: String::new(), columns: 0, width, short: 0 };
        // Stops where it does not fit, so that a long value is not all made readable to be cut.
        let fits = if self.hex {
            bytes.iter().all(|byte| shown.push(format_args!("{byte:02x}")))
        } else {
            bytes.utf8_chunks().all(|chunk| {
                chunk.valid().chars().all(|char| match char {
                    '"' | '\'' => shown.push(format_args!("{char}")),
                    '\0'..='\x1f' | '\x7f' => shown.push(format_args!("{}", (char as u8).escape_ascii())),
                    _ => shown.push(format_args!("{}", char.escape_debug())),
                }) && chunk.invalid().iter().all(|byte| shown.push(format_args!("\\x{byte:02x}")))
            })
        };
        if !fits {
            shown.text.truncate(shown.short);
            shown.text.push_str("...");
        }
        shown.text
    }

    /// One line: a sign in front, if there is one, then columns that share the width.
    pub(crate) fn line(self, sign: Option<char>, columns: &[&[u8]]) -> String {
        let mut line: String = sign.into_iter().collect();
        if self.width == 0 {
            for (place, column) in columns.iter().enumerate() {
                line.push_str(if place > 0 || sign.is_some() { "\t" } else { "" });
                line.push_str(&self.show(column, usize::MAX));
            }
            return line;
        }
        let width = (self.width / columns.len().max(1)).saturating_sub(2).max(8);
        for (place, column) in columns.iter().enumerate() {
            line.push_str(match (place, sign) {
                (0, None) => "",
                (0, Some(_)) => " ",
                _ => "  ",
            });
            let shown = self.show(column, width);
            let is_last = place + 1 == columns.len();
            let padding = if is_last { 0 } else { width.saturating_sub(shown.chars().count()) };
            line.push_str(&shown);
            line.extend(std::iter::repeat_n(' ', padding));
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Text that grows until it does not fit.
struct Cut {
    text: String,
    columns: usize,
    width: usize,
    /// How many bytes of the text leave room for three dots.
    short: usize,
}

impl Cut {
    /// Adds a character or an escape, and returns whether all still fits.
    fn push(&mut self, piece: fmt::Arguments<'_>) -> bool {
        let start = self.text.len();
        let _ = self.text.write_fmt(piece);
        self.columns += self.text[start..].chars().count();
        if self.columns.saturating_add(3) <= self.width {
            self.short = self.text.len();
        }
        self.columns <= self.width
    }
}

/// A number of bytes with a unit.
pub(crate) fn bytes(count: u64) -> String {
    if count < 1024 { format!("{count} B") } else { BinaryBytes(count).to_string() }
}

/// A number of something, with its name.
pub(crate) fn counted(count: u64, what: &str) -> String {
    let plural = match what {
        "entry" => "entries",
        "segment" => "segments",
        "change" => "changes",
        "byte" => "bytes",
        "key group" => "key groups",
        other => other,
    };
    format!("{} {}", HumanCount(count), if count == 1 { what } else { plural })
}

/// A time as date and time of day (UTC), by the proleptic Gregorian calendar.
pub(crate) fn time(timestamp_ns: u64) -> String {
    let (seconds, ns) = (timestamp_ns / 1_000_000_000, timestamp_ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the leap day is a year's last. Howard Hinnant, "chrono-Compatible Low-Level Date
    // Algorithms", `civil_from_days`.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ns:09} UTC")
}
