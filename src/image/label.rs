//! [`Label`]: the operator and job that an image belongs to.

use std::fmt;

use bytes::Bytes;

use super::format::field;
use crate::error::{StateError, shown};

/// The names of the operator and the job that an image or a delta belongs to, and bytes of the user's own.
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

    /// Sets bytes whose meaning is up to the user.
    ///
    /// # Panics
    ///
    /// If there are more than [`MAX_USER_LEN`](Self::MAX_USER_LEN) bytes.
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

    /// Checks that the label has every part that `expected` has. Parts that `expected` leaves empty may be anything.
    ///
    /// # Errors
    ///
    /// [`StateError::WrongLabel`]; it names the first part that differs.
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

    /// Returns the label without the user bytes. The images of a grouped image have this label.
    pub(crate) fn without_user_bytes(&self) -> Self {
        Self { user: Bytes::new(), ..self.clone() }
    }

    /// Returns the content of the label's section. An empty label has none.
    pub(crate) fn to_content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend((self.operator.len() as u16).to_le_bytes());
        content.extend((self.job.len() as u16).to_le_bytes());
        content.extend(self.operator.as_bytes());
        content.extend(self.job.as_bytes());
        content.extend(&self.user);
        content
    }

    /// Reads the content of a label's section. Returns `None` if it is not the content of a valid label.
    pub(crate) fn read(content: &[u8]) -> Option<Self> {
        let (lens, rest) = content.split_first_chunk::<4>()?;
        let (operator, rest) = rest.split_at_checked(u16::from_le_bytes(field(lens, 0)).into())?;
        let (job, user) = rest.split_at_checked(u16::from_le_bytes(field(lens, 2)).into())?;
        let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let label = Self { operator: name(operator)?, job: name(job)?, user: Bytes::copy_from_slice(user) };
        (!label.is_empty() && user.len() <= Self::MAX_USER_LEN).then_some(label)
    }
}

/// Returns `name` if it is not too long, and panics otherwise.
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
