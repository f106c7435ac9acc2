//! The sections of a footer. The label is the only one so far; `format.rs` describes their layout.

use super::format::{field, rule};
use super::label::Label;
use crate::error::{StateError, shown};

/// The name of the label's section.
const LABEL: &str = "label";
/// The number of bytes in front of the name of a section.
const SECTION_START: usize = 6;
/// The flag of a section that readers may ignore if they do not know it.
const HARMLESS: u8 = 1;

/// Returns the sections of a footer with this label, followed by their length.
pub(crate) fn sections_of(label: &Label) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !label.is_empty() {
        let content = label.to_content();
        bytes.extend([LABEL.len() as u8, 0]);
        bytes.extend((content.len() as u32).to_le_bytes());
        bytes.extend(LABEL.as_bytes());
        bytes.extend(content);
    }
    let len = bytes.len() as u32;
    bytes.extend(len.to_le_bytes());
    bytes
}

/// Splits the sections off the end of a footer of format 2. Returns the bytes in front of them, and the label.
///
/// `footer` starts at `offset` of the image.
pub(crate) fn split_sections(footer: &[u8], offset: u64) -> Result<(&[u8], Label), StateError> {
    let in_footer =
        |problem, found: usize, expected: usize| rule("footer", offset, problem, found as u64, expected as u64);
    let Some((rest, len)) = footer.split_last_chunk::<4>() else {
        in_footer("there is no room for the length of its sections", footer.len(), 4)?;
        return Ok((footer, Label::new()));
    };
    let len = u32::from_le_bytes(*len) as usize;
    in_footer("there is no room for its sections", len, len.min(rest.len()))?;
    let (rest, mut sections) = rest.split_at(rest.len() - len);
    let mut label = Label::new();
    let mut last: Option<&[u8]> = None;
    while !sections.is_empty() {
        in_footer("a section is cut short", sections.len(), sections.len().max(SECTION_START))?;
        let (start, behind) = sections.split_at(SECTION_START);
        let (name_len, flags) = (usize::from(start[0]), start[1]);
        let content_len = u32::from_le_bytes(field(start, 2)) as usize;
        let needed = name_len.saturating_add(content_len);
        in_footer("a section is cut short", behind.len(), behind.len().max(needed))?;
        let (name, behind) = behind.split_at(name_len);
        let (content, behind) = behind.split_at(content_len);
        in_footer("the flags of a section are unknown", flags.into(), (flags & HARMLESS).into())?;
        let ascends = last.is_none_or(|last| last < name);
        in_footer("a section does not sort after the one before it", ascends.into(), 1)?;
        if name == LABEL.as_bytes() {
            let read = Label::read(content);
            in_footer("the label is not laid out as one", read.is_some().into(), 1)?;
            label = read.unwrap_or_default();
        } else if flags & HARMLESS == 0 {
            return Err(StateError::UnknownSection { name: shown(name) });
        }
        last = Some(name);
        sections = behind;
    }
    Ok((rest, label))
}
