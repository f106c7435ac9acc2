//! Bytes as Rust source, and values under comparison as assertions and as text for a person.

use bytes::Bytes;

/// A value that stands in a comparison of the store with the model.
pub(super) trait Shown: PartialEq {
    /// Rust source that fails unless `expression` is `self`.
    fn assertion(&self, expression: &str) -> String {
        format!("assert_eq!({expression}, {});", self.source())
    }

    /// The value as Rust source.
    fn source(&self) -> String;

    /// The value for a person.
    fn text(&self) -> String {
        self.source()
    }
}

/// `len` bytes that differ from one another and from a shifted copy of themselves.
pub(super) fn pattern(len: usize, first: u8) -> Bytes {
    (0..len).map(|i| first.wrapping_add((i % 251) as u8)).collect()
}

/// The definition of [`pattern`] for printed programs.
pub(super) const PATTERN: &str =
    "let pattern = |len: usize, first: u8| (0..len).map(|i| first.wrapping_add((i % 251) as u8)).collect::<Vec<u8>>();";

/// The bytes as Rust source, of a type that derefs or coerces to `&[u8]`.
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

/// The bytes as Rust source of type `&[u8]`.
pub(super) fn slice(bytes: &[u8]) -> String {
    let literal = literal(bytes);
    if literal.starts_with('b') { format!("&{literal}[..]") } else { format!("{literal}[..]") }
}

/// The bytes as Rust source of type `Bytes`; for the definition see [`HANDLE`].
pub(super) fn handle(bytes: &[u8]) -> String {
    format!("handle({})", literal(bytes))
}

/// The definition of `handle` for printed programs.
pub(super) const HANDLE: &str = "let handle = |bytes: &[u8]| Bytes::copy_from_slice(bytes);";

/// The entries as Rust source of an array.
pub(super) fn entries<'a>(entries: impl IntoIterator<Item = &'a (Bytes, Bytes)>) -> String {
    list(entries, |(key, value)| format!("({}, {})", handle(key), handle(value)))
}

pub(super) fn list<T>(items: impl IntoIterator<Item = T>, source: impl Fn(T) -> String) -> String {
    format!("[{}]", items.into_iter().map(source).collect::<Vec<_>>().join(", "))
}

/// Source for a comparison with a list, of which an empty one would leave its type open.
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
