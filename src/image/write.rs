//! Writing the entries of a source as an image, on one thread or several.

use std::io::Write;
use std::mem;
use std::ops::ControlFlow;

use super::format::{Header, ImageKind};
use super::label::Label;
use super::options::{ImageOptions, Progress};
use super::pool::write_on_threads;
use super::writer::ImageWriter;
use crate::bounds::ALL_KEYS;
use crate::error::StateError;
use crate::fingerprint::Fingerprint;
use crate::source::Source;

/// Writes the entries of `source` as an image. Returns its length and the fingerprint of the entries.
///
/// The fingerprint is computed while writing, unless it is `known`.
pub(crate) fn write_image(
    source: &dyn Source,
    timestamp_ns: u64,
    label: &Label,
    known: Option<Fingerprint>,
    options: ImageOptions,
    out: impl Write,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(u64, Fingerprint), StateError> {
    let mut writer = ImageWriter::new(Header::new(ImageKind::Snapshot, timestamp_ns), label, known, options, out)?;
    let mut last = writer.progress().bytes;
    let mut watch = |writer: &ImageWriter<_>| {
        let now = writer.progress();
        if now.bytes == mem::replace(&mut last, now.bytes) || progress(now).is_continue() {
            return Ok(());
        }
        Err(StateError::Cancelled { bytes: now.bytes })
    };
    if options.threads > 1 && source.is_for_many_readers() {
        write_on_threads(&mut writer, source, options.threads, &mut watch)?;
    } else {
        let mut result = Ok(());
        source.try_visit(ALL_KEYS, &mut |key, value| {
            result = writer.push(key, value, None).map_err(StateError::from).and_then(|()| watch(&writer));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
    }
    let written = writer.finish(None)?;
    let _ = progress(Progress { bytes: written.len, entries: written.entries });
    Ok((written.len, written.fingerprint))
}
