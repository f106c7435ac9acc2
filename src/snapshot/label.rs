//! [`Label`]: which operator and job an image belongs to; and the sections of a footer, of which it is one.

use std::fmt;

use bytes::Bytes;

use super::format::{field, rule};
use crate::StateError;
use crate::error::shown;

/// The names of the operator and the job that contents belong to, and bytes of the user's own. Images and deltas carry it.
///
/// The fingerprint and equality of snapshots do not depend on it. Images of format 1 have an empty label.
///
/// ```
/// use opstate::{Label, StateSnapshot};
///
/// let label = Label::new().operator("dedup").job("clicks").user(vec![1, 2, 3]);
/// let snapshot = StateSnapshot::from_iter([("key", "value")]).with_label(label.clone());
/// assert_eq!(StateSnapshot::from_bytes(snapshot.to_bytes())?.label(), &label);
/// # Ok::<(), opstate::StateError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Label {
    operator: String,
    job: String,
    user: Bytes,
}

/// The longest name of an operator or job, in bytes.
const MAX_NAME_LEN: usize = u16::MAX as usize;

impl Label {
    /// The longest [user bytes](Self::user): 16 MiB.
    pub const MAX_USER_LEN: usize = 16 << 20;

    /// Returns an empty label.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the name of the operator.
    ///
    /// # Panics
    ///
    /// If the name is longer than 65,535 bytes.
    #[must_use]
    #[track_caller]
    pub fn operator(mut self, name: impl Into<String>) -> Self {
        self.operator = checked(name.into());
        self
    }

    /// Sets the name of the job.
    ///
    /// # Panics
    ///
    /// If the name is longer than 65,535 bytes.
    #[must_use]
    #[track_caller]
    pub fn job(mut self, name: impl Into<String>) -> Self {
        self.job = checked(name.into());
        self
    }

    /// Sets bytes that only the user knows the meaning of.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_USER_LEN`](Self::MAX_USER_LEN).
    #[must_use]
    #[track_caller]
    pub fn user(mut self, bytes: impl Into<Bytes>) -> Self {
        self.user = bytes.into();
        let (len, limit) = (self.user.len(), Self::MAX_USER_LEN);
        assert!(len <= limit, "the user bytes of a label have {len} bytes, the limit is {limit}");
        self
    }

    /// Returns the name of the operator; empty if none was set.
    pub fn operator_name(&self) -> &str {
        &self.operator
    }

    /// Returns the name of the job; empty if none was set.
    pub fn job_name(&self) -> &str {
        &self.job
    }

    /// Returns the user bytes; empty if none were set.
    pub fn user_bytes(&self) -> &Bytes {
        &self.user
    }

    /// Returns `true` if nothing was set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Fails unless the label has every part that `expected` has. Parts that `expected` leaves empty may be anything.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongLabel`], which names the first part that differs.
    pub fn require(&self, expected: &Self) -> Result<(), StateError> {
        let parts = |label: &Self| {
            [
                ("operator", Bytes::copy_from_slice(label.operator.as_bytes())),
                ("job", Bytes::copy_from_slice(label.job.as_bytes())),
                ("user bytes", label.user.clone()),
            ]
        };
        for ((part, found), (_, expected)) in parts(self).into_iter().zip(parts(expected)) {
            if !expected.is_empty() && found != expected {
                return Err(StateError::WrongLabel { part, found: shown(&found), expected: shown(&expected) });
            }
        }
        Ok(())
    }

    /// Returns the label without the user bytes, as the parts of a grouped image have it.
    pub(super) fn without_user_bytes(&self) -> Self {
        Self { user: Bytes::new(), ..self.clone() }
    }

    /// Returns the sections of a footer with this label, and behind them their length.
    pub(super) fn to_sections(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.is_empty() {
            let content_len = LABEL_START + self.operator.len() + self.job.len() + self.user.len();
            bytes.extend([LABEL.len() as u8, 0]);
            bytes.extend((content_len as u32).to_le_bytes());
            bytes.extend(LABEL.as_bytes());
            bytes.extend((self.operator.len() as u16).to_le_bytes());
            bytes.extend((self.job.len() as u16).to_le_bytes());
            bytes.extend(self.operator.as_bytes());
            bytes.extend(self.job.as_bytes());
            bytes.extend(&self.user);
        }
        let len = bytes.len() as u32;
        bytes.extend(len.to_le_bytes());
        bytes
    }

    /// Reads the content of a label's section; `None` if it is none.
    fn read(content: &[u8]) -> Option<Self> {
        let (lens, rest) = content.split_first_chunk::<LABEL_START>()?;
        let (operator, rest) = rest.split_at_checked(u16::from_le_bytes(field(lens, 0)).into())?;
        let (job, user) = rest.split_at_checked(u16::from_le_bytes(field(lens, 2)).into())?;
        let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let label = Self { operator: name(operator)?, job: name(job)?, user: Bytes::copy_from_slice(user) };
        (!label.is_empty() && user.len() <= Self::MAX_USER_LEN).then_some(label)
    }
}

#[track_caller]
fn checked(name: String) -> String {
    assert!(name.len() <= MAX_NAME_LEN, "a name in a label has {} bytes, the limit is {MAX_NAME_LEN}", name.len());
    name
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Label")
            .field("operator", &self.operator)
            .field("job", &self.job)
            .field("user_len", &self.user.len())
            .finish()
    }
}

/// The name of the label's section.
const LABEL: &str = "label";
/// The bytes in front of the names in a label's section.
const LABEL_START: usize = 4;
/// The bytes in front of the name of a section.
const SECTION_START: usize = 6;
/// The flag of a section that a reader who does not know it may ignore.
const HARMLESS: u8 = 1;

/// Takes the sections off the end of a footer of format 2, and returns what is in front of them, and the label.
///
/// `footer` starts at `offset` of the image.
pub(super) fn split_sections(footer: &[u8], offset: u64) -> Result<(&[u8], Label), StateError> {
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
