//! Inspects images, grouped images and deltas, including damaged ones.
//!
//! ```text
//! cargo run --release --example inspect -- FILE                      what it is, its segments, what it holds, whether it is sound
//! cargo run --release --example inspect -- --dump FILE               its entries, or a delta's changes
//! cargo run --release --example inspect -- --diff EARLIER LATER      what differs between two snapshots
//! ```
//!
//! The exit status is 0 for a sound file, 1 for a damaged or unreadable one, and 2 for a wrong command line.
//!
//! `report.rs` takes an image apart with `ImageInfo`. `listing.rs` dumps and compares images that are larger than
//! memory. `text.rs` makes bytes readable.

mod listing;
mod report;
mod text;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use opstate::{ImageInfo, ImageKind, StateDelta, StateError, UnverifiedImage};

use crate::text::Style;

pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Look into images, grouped images and deltas, also damaged ones.
#[derive(Parser)]
#[command(after_help = "The exit status is 0 for what is sound, 1 for what is damaged or cannot be read.")]
struct Args {
    /// The image or delta to look into
    #[arg(required_unless_present = "diff", conflicts_with = "diff")]
    file: Option<PathBuf>,

    /// List the entries, or the changes of a delta (`+` put, `-` deleted), in order; of a damaged file, those still readable
    #[arg(long, conflicts_with = "diff")]
    dump: bool,

    /// List what differs between two snapshots, in order: `+` inserted, `-` deleted, `~` updated
    #[arg(long, num_args = 2, value_names = ["EARLIER", "LATER"])]
    diff: Option<Vec<PathBuf>>,

    /// Print keys and values in hexadecimal, not as text with escapes
    #[arg(long)]
    hex: bool,

    /// Cut lines of keys and values to this width; 0 to print them whole, with tabs between
    #[arg(long, value_name = "COLUMNS", default_value_t = 100)]
    width: usize,

    /// How many segments to list, beside those that are damaged; 0 for all
    #[arg(long, value_name = "N", default_value_t = 16)]
    segments: usize,

    /// Count keys by so many first bytes, not by what is before the first punctuation mark
    #[arg(long, value_name = "N")]
    prefix_bytes: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    let result = run(&args, &mut out).and_then(|is_sound| {
        out.flush()?;
        Ok(is_sound)
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader of the output has seen enough and closed it, as `head` does.
        Err(error) if is_broken_pipe(&*error) => {
            // Discard the buffer. Otherwise its drop would try to write the rest.
            drop(out.into_parts());
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Print the findings before the error.
            let _ = out.flush();
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns `true` if the output is closed. Errors of the inspected file are [`StateError`]s, never a bare `io::Error`.
fn is_broken_pipe(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Runs the requested command. Returns `true` if all inspected files are sound.
fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let style = Style { hex: args.hex, width: args.width };
    match (&args.file, args.diff.as_deref()) {
        (_, Some([earlier, later])) => listing::diff(earlier, later, style, out),
        (Some(file), _) if args.dump => listing::dump(file, style, out),
        (Some(file), _) => {
            let options = report::Options { style, segments: args.segments, prefix_bytes: args.prefix_bytes };
            report::print(file, options, out)
        }
        (None, _) => unreachable!("clap asks for a file or two"),
    }
}

/// Opens a file for reading. The error says what the path is if it is not a file.
pub(crate) fn open(path: &Path) -> Result<File> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("cannot open {shown}: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("cannot read {shown}: {error}"))?;
    if metadata.is_dir() {
        return Err(format!("{shown} is a directory; name one of the files in it").into());
    }
    if metadata.is_file() && metadata.len() == 0 {
        return Err(format!("{shown} is empty; it was never written, use an older checkpoint").into());
    }
    Ok(file)
}

/// Prefixes an error with the path.
pub(crate) fn of_file(path: &Path) -> impl Fn(StateError) -> String {
    move |error| format!("{}: {error}", path.display())
}

/// Verifies a whole file, including that its parts belong together. Each part may be sound by itself.
pub(crate) fn verify(path: &Path, kind: ImageKind) -> Result<(), StateError> {
    match kind {
        // A delta can only be opened whole, in memory.
        ImageKind::Delta => StateDelta::from_bytes(fs::read(path)?).map(drop),
        // Read through the file system, not a map. Then a change of the file during the read is an error.
        _ => UnverifiedImage::from_reader(File::open(path)?)?.verify().map(drop),
    }
}

/// Returns the images in a file that have segments: the file itself, or its key groups. Each has its offset in the
/// file. An image that cannot be opened is returned as its error.
pub(crate) fn images(info: ImageInfo) -> Vec<Part> {
    if info.kind() != ImageKind::Grouped {
        return vec![Part { group: None, start: 0, entries: None, info: Ok(info) }];
    }
    let part = |group: opstate::GroupInfo<'_>| Part {
        group: Some(group.group()),
        start: group.extent().start,
        entries: Some(group.entries()),
        info: group.open(),
    };
    info.groups().map(part).collect()
}

pub(crate) struct Part {
    pub(crate) group: Option<u32>,
    pub(crate) start: u64,
    /// Number of entries according to the directory of a grouped image.
    pub(crate) entries: Option<u64>,
    pub(crate) info: Result<ImageInfo, StateError>,
}
