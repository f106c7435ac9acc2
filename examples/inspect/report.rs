//! The report on one file: its metadata, segments, contents and damage.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanCount;
use opstate::{ImageInfo, ImageKind, SegmentInfo};

use crate::text::{Style, bytes, counted, time};
use crate::{Part, Result, images, of_file, open, verify};

#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) style: Style,
    /// Number of segments to list in addition to damaged ones. 0 lists all of them.
    pub(crate) segments: usize,
    pub(crate) prefix_bytes: Option<usize>,
}

/// Maximum width of a first key or a prefix.
const KEY_WIDTH: usize = 32;
/// Maximum width of an operator's or a job's name.
const NAME_WIDTH: usize = 80;
/// Maximum number of listed prefixes.
const PREFIXES: usize = 12;
/// Maximum number of counted prefixes. There may be as many prefixes as keys.
const COUNTED_PREFIXES: usize = 1 << 16;
/// Maximum length of a histogram bar.
const BAR: u64 = 30;

/// Prints the report. Returns `true` if the file is sound.
pub(crate) fn print(path: &Path, options: Options, out: &mut dyn Write) -> Result<bool> {
    let info = ImageInfo::from_reader(open(path)?).map_err(of_file(path))?;
    let kind = info.kind();
    print_head(path, &info, options.style, out)?;

    let has_end = info.footer().is_some();
    let said = info.totals().map(|totals| totals.entries);
    let mut findings = Findings { options, ..Findings::default() };
    findings.problems.extend(info.damage().iter().map(ToString::to_string));
    for part in images(info) {
        findings.walk(part);
    }
    if findings.problems.is_empty() {
        findings.problems.extend(verify(path, kind).err().map(|error| error.to_string()));
    }

    findings.print_groups(out)?;
    findings.print_segments(out)?;
    findings.print_prefixes(kind, out)?;
    findings.print_lengths(out)?;
    findings.print_verdict(kind, has_end, said, out)?;
    Ok(findings.problems.is_empty())
}

fn print_head(path: &Path, info: &ImageInfo, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let kind = match info.kind() {
        ImageKind::Snapshot => "snapshot",
        ImageKind::Delta => "delta",
        ImageKind::Grouped => "snapshot in key groups",
        _ => "something that this program does not know",
    };
    let mut row = |name: &str, value: String| writeln!(out, "  {name:<13} {value}");
    row("file", path.display().to_string())?;
    row("kind", kind.to_owned())?;
    row("format", format!("version {}, flags {:#x}", info.version(), info.flags()))?;
    row("time", time(info.timestamp_ns()))?;
    let label = info.label();
    for (part, name) in [("operator", label.operator_name()), ("job", label.job_name())] {
        if !name.is_empty() {
            row(part, style.show(name.as_bytes(), NAME_WIDTH))?;
        }
    }
    if !label.user_bytes().is_empty() {
        row("user bytes", bytes(label.user_bytes().len() as u64))?;
    }
    let len = info.image_bytes();
    row("size", format!("{} ({})", bytes(len), counted(len, "byte")))?;
    let Some((totals, footer)) = info.totals().zip(info.footer()) else { return Ok(()) };
    let (body, ends) = (footer.start.saturating_sub(32), footer.end - footer.start);
    row("", format!("header 32 B, body {}, footer {}, trailer 88 B", bytes(body), bytes(ends)))?;
    let entries = if info.kind() == ImageKind::Delta { "changes" } else { "entries" };
    let sum = totals.key_bytes.saturating_add(totals.value_bytes);
    let sizes = format!("{} of keys, {} of values", bytes(totals.key_bytes), bytes(totals.value_bytes));
    row(entries, format!("{}: {sizes}", HumanCount(totals.entries)))?;
    if totals.entries > 0 {
        let each = |bytes: u64| bytes as f64 / totals.entries as f64;
        let overhead = each(len.saturating_sub(sum));
        row("", format!("on average {:.1} B each, and {overhead:.1} B of the file beside", each(sum)))?;
    }
    if let Some(groups) = info.key_groups() {
        row("key groups", format!("{}, of which {} have entries", HumanCount(groups), HumanCount(totals.parts)))?;
    }
    match info.delta_info() {
        Some(ends) => {
            let updates = totals.entries.saturating_sub(ends.inserts.saturating_add(ends.deletes));
            let counts = [ends.inserts, updates, ends.deletes].map(HumanCount);
            row("", format!("{} inserted, {} updated, {} deleted", counts[0], counts[1], counts[2]))?;
            row("leads from", ends.base.to_string())?;
            row("to", ends.result.to_string())
        }
        None => row("fingerprint", totals.fingerprint.to_string()),
    }
}

/// Findings in the segments of a file.
struct Findings {
    options: Options,
    /// Problems, in the order of the file.
    problems: Vec<String>,
    groups: Vec<[String; 6]>,
    has_groups: bool,
    /// Rows of the listed segments.
    segments: Vec<[String; 7]>,
    all_segments: u64,
    damaged_segments: u64,
    readable: u64,
    deleted: u64,
    prefixes: BTreeMap<Vec<u8>, Count>,
    other_prefixes: Count,
    /// Counts of entries by the bit length of the value's length.
    lengths: BTreeMap<u32, Count>,
}

impl Default for Findings {
    fn default() -> Self {
        let style = Style { hex: false, width: 0 };
        Self {
            options: Options { style, segments: 0, prefix_bytes: None },
            problems: Vec::new(),
            groups: Vec::new(),
            has_groups: false,
            segments: Vec::new(),
            all_segments: 0,
            damaged_segments: 0,
            readable: 0,
            deleted: 0,
            prefixes: BTreeMap::new(),
            other_prefixes: Count::default(),
            lengths: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Count {
    entries: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes as u64;
    }
}

impl Findings {
    /// Reads all segments of one image of the file.
    fn walk(&mut self, part: Part) {
        let place = part.group.map_or(String::new(), |group| format!("key group {group}, at byte {}: ", part.start));
        let (before, damaged_before, readable_before) = (self.all_segments, self.damaged_segments, self.readable);
        let (mut len, mut problems) = (String::new(), 0);
        match &part.info {
            Ok(info) => {
                if part.group.is_some() {
                    self.problems.extend(info.damage().iter().map(|error| format!("{place}{error}")));
                }
                problems = info.damage().len();
                len = bytes(info.image_bytes());
                for segment in info.segments() {
                    self.read(&part, segment, &place);
                }
            }
            Err(error) => {
                self.problems.push(format!("{place}{error}"));
                problems += 1;
            }
        }
        let Some(group) = part.group else { return };
        self.has_groups = true;
        let damaged = self.damaged_segments - damaged_before;
        let state = match (problems, damaged) {
            (0, 0) => "sound".to_owned(),
            (0, damaged) => format!("DAMAGED: {}", counted(damaged, "segment")),
            _ => "DAMAGED".to_owned(),
        };
        if self.is_listed(self.groups.len() as u64) || state != "sound" {
            let entries = part.entries.unwrap_or(self.readable - readable_before);
            self.groups.push([
                group.to_string(),
                HumanCount(part.start).to_string(),
                len,
                HumanCount(self.all_segments - before).to_string(),
                HumanCount(entries).to_string(),
                state,
            ]);
        }
    }

    fn shown_key(&self, key: &[u8]) -> String {
        if key.is_empty() { "(empty)".to_owned() } else { self.options.style.show(key, KEY_WIDTH) }
    }

    fn is_listed(&self, number: u64) -> bool {
        self.options.segments == 0 || number < self.options.segments as u64
    }

    fn read(&mut self, part: &Part, segment: SegmentInfo<'_>, place: &str) {
        let mut first_key = segment.first_key().to_vec();
        let read = segment.read().map(|entries| {
            for (index, (key, value)) in entries.enumerate() {
                if index == 0 {
                    // The first key read equals that of the footer, unless the footer is damaged.
                    first_key = key.to_vec();
                }
                self.count(&key, value.as_deref());
            }
        });
        let is_damaged = read.is_err();
        if self.is_listed(self.all_segments) || is_damaged {
            self.segments.push([
                HumanCount(self.all_segments).to_string(),
                part.group.map_or(String::new(), |group| group.to_string()),
                HumanCount(part.start.saturating_add(segment.offset())).to_string(),
                bytes(segment.segment_bytes()),
                HumanCount(segment.entries().into()).to_string(),
                self.shown_key(&first_key),
                if is_damaged { "DAMAGED" } else { "sound" }.to_owned(),
            ]);
        }
        if let Err(error) = read {
            self.problems.push(format!("{place}{error}"));
            self.damaged_segments += 1;
        }
        self.all_segments += 1;
    }

    fn count(&mut self, key: &[u8], value: Option<&[u8]>) {
        let size = key.len() + value.map_or(0, <[u8]>::len);
        let prefix = prefix(key, self.options.prefix_bytes);
        if let Some(count) = self.prefixes.get_mut(prefix) {
            count.add(size);
        } else if self.prefixes.len() < COUNTED_PREFIXES {
            self.prefixes.entry(prefix.to_vec()).or_default().add(size);
        } else {
            self.other_prefixes.add(size);
        }
        self.readable += 1;
        match value {
            Some(value) => self.lengths.entry(usize::BITS - value.len().leading_zeros()).or_default().add(value.len()),
            None => self.deleted += 1,
        }
    }

    fn print_groups(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let mut table = table(["key group", "offset", "length", "segments", "entries", "state"], 0..5);
        table.add_rows(&self.groups);
        writeln!(out, "\n{}", table.trim_fmt())
    }

    fn print_segments(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.segments.is_empty() {
            return Ok(());
        }
        let mut table = table(["segment", "group", "offset", "length", "entries", "first key", "state"], 0..5);
        table.add_rows(&self.segments);
        if !self.has_groups {
            table.column_mut(1).expect("it is there").set_constraint(comfy_table::ColumnConstraint::Hidden);
        }
        writeln!(out, "\n{}", table.trim_fmt())?;
        let more = self.all_segments - self.segments.len() as u64;
        if more > 0 {
            writeln!(out, "  and {} more, all sound; --segments 0 lists them", HumanCount(more))?;
        }
        Ok(())
    }

    fn print_prefixes(&self, kind: ImageKind, out: &mut dyn Write) -> io::Result<()> {
        if self.readable == 0 {
            return Ok(());
        }
        let what = if kind == ImageKind::Delta { "changes" } else { "entries" };
        let mut table = table(["key prefix", what, "share", "bytes", ""], 1..4);
        let mut prefixes: Vec<_> = self.prefixes.iter().collect();
        prefixes.sort_by_key(|(_, count)| Reverse(count.entries));
        let listed = prefixes.len().min(PREFIXES);
        let mut others = self.other_prefixes;
        for (_, count) in &prefixes[listed..] {
            others.entries += count.entries;
            others.bytes += count.bytes;
        }
        let most = prefixes.first().map_or(1, |(_, count)| count.entries);
        for (prefix, count) in &prefixes[..listed] {
            table.add_row(self.histogram_row(self.shown_key(prefix), **count, most));
        }
        if others.entries > 0 {
            let more = if self.other_prefixes.entries > 0 { "more than " } else { "" };
            let name = format!("({more}{} others)", HumanCount((prefixes.len() - listed) as u64));
            let [name, entries, share, bytes, _] = self.histogram_row(name, others, most);
            table.add_row([name, entries, share, bytes, String::new()]);
        }
        writeln!(out, "\n{}", table.trim_fmt())
    }

    fn print_lengths(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.readable == 0 {
            return Ok(());
        }
        let mut table = table(["value length", "values", "share", "bytes", ""], 1..4);
        let most = self.lengths.values().map(|count| count.entries).chain([self.deleted]).max().unwrap_or(1);
        for (bits, count) in &self.lengths {
            let name = match bits {
                0 => "0 B".to_owned(),
                1 => "1 B".to_owned(),
                2..=10 => format!("{} to {} B", 1_u64 << (bits - 1), (1_u64 << bits) - 1),
                _ => format!("{} and up", bytes(1_u64 << (bits - 1))),
            };
            table.add_row(self.histogram_row(name, *count, most));
        }
        if self.deleted > 0 {
            let deleted = Count { entries: self.deleted, bytes: 0 };
            table.add_row(self.histogram_row("(deleted)".to_owned(), deleted, most));
        }
        writeln!(out, "\n{}", table.trim_fmt())
    }

    fn histogram_row(&self, name: String, count: Count, most: u64) -> [String; 5] {
        let share = count.entries as f64 * 100.0 / self.readable as f64;
        // Show at least one mark for each nonempty group.
        let bar = (u128::from(count.entries) * u128::from(BAR)).div_ceil(u128::from(most.max(1)));
        [
            name,
            HumanCount(count.entries).to_string(),
            format!("{share:.1} %"),
            bytes(count.bytes),
            "#".repeat(bar as usize),
        ]
    }

    fn print_verdict(&self, kind: ImageKind, has_end: bool, said: Option<u64>, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out)?;
        let entry = if kind == ImageKind::Delta { "change" } else { "entry" };
        if self.problems.is_empty() {
            let (segments, entries) = (counted(self.all_segments, "segment"), counted(self.readable, entry));
            return writeln!(out, "  SOUND: all of it was verified: {segments}, {entries}");
        }
        writeln!(out, "  DAMAGED:")?;
        for problem in &self.problems {
            writeln!(out, "  - {problem}")?;
        }
        if !has_end {
            return writeln!(
                out,
                "  The list of segments stands at the end of a file, and that is missing or damaged: no segment can be found."
            );
        }
        let (sound, entries) = (self.all_segments - self.damaged_segments, counted(self.readable, entry));
        let of = said.map_or(String::new(), |said| format!(" of {}", HumanCount(said)));
        let (sound, all) = (HumanCount(sound), counted(self.all_segments, "segment"));
        writeln!(out, "  Still readable: {sound} of {all} found, with {entries}{of}; --dump lists them.")
    }
}

/// Returns the part of a key that groups it in the statistics.
fn prefix(key: &[u8], bytes: Option<usize>) -> &[u8] {
    /// Maximum length of a word before a punctuation mark. Longer words are rarely shared by many keys.
    const LONGEST_WORD: usize = 24;
    /// Length of the prefix of a key that has no such word.
    const START: usize = 4;
    if let Some(bytes) = bytes {
        return &key[..key.len().min(bytes)];
    }
    let word = key.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let ends_in_mark = key.get(word).is_some_and(u8::is_ascii_punctuation);
    if ends_in_mark && (1..=LONGEST_WORD).contains(&word) { &key[..=word] } else { &key[..key.len().min(START)] }
}

fn table<const N: usize>(header: [&str; N], right: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for column in right {
        table.column_mut(column).expect("the header names it").set_cell_alignment(CellAlignment::Right);
    }
    for column in table.column_iter_mut() {
        column.set_padding((1, 1));
    }
    table
}
