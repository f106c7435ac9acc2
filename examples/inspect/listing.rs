//! Listings of entries and differences, one per line. The files may be larger than memory.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use opstate::{Difference, ImageInfo, ImageKind, UnverifiedImage};

use crate::text::{Style, counted};
use crate::{Result, images, of_file, open, verify};

/// Lists all readable entries, and reports unreadable ones on stderr. Returns `true` if the file is sound.
pub(crate) fn dump(path: &Path, style: Style, out: &mut dyn Write) -> Result<bool> {
    let info = ImageInfo::from_reader(open(path)?).map_err(of_file(path))?;
    let kind = info.kind();
    let mut problems: Vec<String> = info.damage().iter().map(ToString::to_string).collect();
    for part in images(info) {
        let place = part.group.map_or(String::new(), |group| format!("key group {group}, at byte {}: ", part.start));
        let info = match part.info {
            Ok(info) => info,
            Err(error) => {
                problems.push(format!("{place}{error}"));
                continue;
            }
        };
        if part.group.is_some() {
            problems.extend(info.damage().iter().map(|error| format!("{place}{error}")));
        }
        for segment in info.segments() {
            match segment.read() {
                Ok(entries) => {
                    for (key, value) in entries {
                        let line = match &value {
                            Some(value) => style.line((kind == ImageKind::Delta).then_some('+'), &[&key, value]),
                            None => style.line(Some('-'), &[&key]),
                        };
                        writeln!(out, "{line}")?;
                    }
                }
                Err(error) => {
                    let lost = counted(segment.entries().into(), "entry");
                    problems.push(format!("{place}{error} ({lost} left out)"));
                }
            }
        }
    }
    if problems.is_empty() {
        problems.extend(verify(path, kind).err().map(|error| error.to_string()));
    }
    out.flush()?;
    for problem in &problems {
        eprintln!("damaged: {}: {problem}", path.display());
    }
    Ok(problems.is_empty())
}

/// Lists the differences, reading both files once, in order. Returns `true` if no damage was met in either file.
pub(crate) fn diff(earlier: &Path, later: &Path, style: Style, out: &mut dyn Write) -> Result<bool> {
    let open = |path: &Path| -> Result<UnverifiedImage> {
        let file: File = open(path)?;
        Ok(UnverifiedImage::from_reader(file).map_err(of_file(path))?)
    };
    let (old, new) = (open(earlier)?, open(later)?);
    let (mut inserted, mut updated, mut deleted) = (0, 0, 0);
    for difference in new.diff(&old) {
        let Difference { key, old: old_value, new: new_value } = match difference {
            Ok(difference) => difference,
            Err(error) => {
                out.flush()?;
                // The iterator reads both files, and its errors do not tell which one failed.
                let mut said = false;
                for (path, image) in [(earlier, &old), (later, &new)] {
                    if let Err(error) = image.verify() {
                        eprintln!("damaged: {}: {error}", path.display());
                        said = true;
                    }
                }
                if !said {
                    eprintln!("damaged: {} or {}: {error}", earlier.display(), later.display());
                }
                eprintln!("only the differences before the first damage are listed; look into that file by itself");
                return Ok(false);
            }
        };
        let (sign, columns): (char, &[&[u8]]) = match (&old_value, &new_value) {
            (None, Some(new)) => ('+', &[&key, new]),
            (Some(old), None) => ('-', &[&key, old]),
            (Some(old), Some(new)) => ('~', &[&key, old, new]),
            (None, None) => unreachable!("a key that differs is on one side at least"),
        };
        match sign {
            '+' => inserted += 1,
            '-' => deleted += 1,
            _ => updated += 1,
        }
        writeln!(out, "{}", style.line(Some(sign), columns))?;
    }
    out.flush()?;
    eprintln!("{inserted} inserted, {updated} updated, {deleted} deleted");
    Ok(true)
}
