//! Rust source for bytes and compared values, and text for people.

use bytes::Bytes;

/// A value that the kit compares between the store and the model.
pub(super) trait Shown: PartialEq {
    /// Returns Rust source that fails unless `expression` equals `self`.
    fn assertion(&self, expression: &str) -> String {
        format!("assert_eq!({expression}, {});", self.source())
    }

    /// Returns the value as Rust source.
    fn source(&self) -> String;

    /// Returns the value as text for a person.
    fn text(&self) -> String {
        self.source()
    }
}

/// Returns `len` bytes that differ from one another and from a shifted copy of themselves.
pub(super) fn pattern(len: usize, first: u8) -> Bytes {
    (0..len).map(|i| first.wrapping_add((i % 251) as u8)).collect()
}

/// Definition of [`pattern`] for printed programs.
pub(super) const PATTERN: &str =
    "let pattern = |len: usize, first: u8| (0..len).map(|i| first.wrapping_add((i % 251) as u8)).collect::<Vec<u8>>();";

/// Returns the bytes as Rust source, of a type that derefs or coerces to `&[u8]`.
pub(super) fn literal(bytes: &[u8]) -> String {
    match bytes {
        [first, .., _] if bytes.len() > 24 && bytes.iter().all(|byte| byte == first) => {
            format!("&[{first:#04x}; {}]", bytes.len())
        }
        [first, middle @ .., last] if bytes.len() > 24 && middle.iter().all(|byte| byte == first) => {
            format!("&[&[{first:#04x}; {}][..], &[{last:#04x}]].concat()", bytes.len() - 1)
        }
        [first, ..] if bytes.len() > 24 && pattern(bytes.len(), *first) == bytes => {
            format!("&pattern({}, {first})", bytes.len())
        }
        _ => format!("b\"{}\"", bytes.escape_ascii()),
    }
}

/// Returns the bytes as Rust source of type `&[u8]`.
pub(super) fn slice(bytes: &[u8]) -> String {
    let literal = literal(bytes);
    if literal.starts_with('b') { format!("&{literal}[..]") } else { format!("{literal}[..]") }
}

/// Returns the bytes as Rust source of type `Bytes`. [`HANDLE`] holds the definition it needs.
pub(super) fn handle(bytes: &[u8]) -> String {
    format!("handle({})", literal(bytes))
}

/// Definition of `handle` for printed programs.
pub(super) const HANDLE: &str = "let handle = |bytes: &[u8]| Bytes::copy_from_slice(bytes);";

/// Returns the entries as Rust source of an array.
pub(super) fn entries<'a>(entries: impl IntoIterator<Item = &'a (Bytes, Bytes)>) -> String {
    list(entries, |(key, value)| format!("({}, {})", handle(key), handle(value)))
}

pub(super) fn list<T>(items: impl IntoIterator<Item = T>, source: impl Fn(T) -> String) -> String {
    format!("[{}]", items.into_iter().map(source).collect::<Vec<_>>().join(", "))
}

/// Returns Rust source that compares with a list. The type of an empty list could not be inferred.
fn list_assertion(expression: &str, is_empty: bool, source: String) -> String {
    if is_empty { format!("assert!({expression}.is_empty());") } else { format!("assert_eq!({expression}, {source});") }
}

fn option(value: &Option<Bytes>, source: impl Fn(&[u8]) -> String) -> String {
    value.as_ref().map_or_else(|| "None".into(), |value| format!("Some({})", source(value)))
}

impl Shown for usize {
    fn source(&self) -> String {
        self.to_string()
    }
}

impl Shown for bool {
    fn assertion(&self, expression: &str) -> String {
        if *self { format!("assert!({expression});") } else { format!("assert!(!{expression});") }
    }

    fn source(&self) -> String {
        self.to_string()
    }
}

impl Shown for Bytes {
    fn source(&self) -> String {
        slice(self)
    }

    fn text(&self) -> String {
        literal(self)
    }
}

impl Shown for Option<Bytes> {
    fn assertion(&self, expression: &str) -> String {
        format!("assert_eq!({expression}.as_deref(), {});", self.source())
    }

    fn source(&self) -> String {
        option(self, slice)
    }

    fn text(&self) -> String {
        option(self, literal)
    }
}

impl Shown for Option<(Bytes, Bytes)> {
    fn source(&self) -> String {
        let entry = self.as_ref().map(|(key, value)| format!("Some(({}, {}))", handle(key), handle(value)));
        entry.unwrap_or_else(|| "None".into())
    }

    fn text(&self) -> String {
        let entry = self.as_ref().map(|(key, value)| format!("{}: {}", literal(key), literal(value)));
        entry.unwrap_or_else(|| "None".into())
    }
}

impl Shown for Vec<Bytes> {
    fn assertion(&self, expression: &str) -> String {
        list_assertion(expression, self.is_empty(), self.source())
    }

    fn source(&self) -> String {
        list(self, |value| handle(value))
    }

    fn text(&self) -> String {
        list(self, |value| literal(value))
    }
}

impl Shown for Vec<Option<Bytes>> {
    fn assertion(&self, expression: &str) -> String {
        list_assertion(expression, self.is_empty(), self.source())
    }

    fn source(&self) -> String {
        list(self, |value| option(value, handle))
    }

    fn text(&self) -> String {
        list(self, |value| option(value, literal))
    }
}

impl Shown for Vec<(Bytes, Bytes)> {
    fn assertion(&self, expression: &str) -> String {
        list_assertion(expression, self.is_empty(), self.source())
    }

    fn source(&self) -> String {
        entries(self)
    }

    fn text(&self) -> String {
        list(self, |(key, value)| format!("{}: {}", literal(key), literal(value)))
    }
}
