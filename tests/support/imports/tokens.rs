//! Rust's tokens, as far as paths need them.

/// A token and the line it starts on.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name(String),
    /// `::`.
    Separator,
    /// Any other character.
    Mark(char),
    /// A number, a string, a character or a lifetime.
    Other,
}

impl Token {
    pub(super) fn name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Name(name) => Some(name),
            _ => None,
        }
    }

    pub(super) fn is(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }
}

/// Splits a file into tokens. Comments are left out.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let (end, kind) = token_at(&chars, at);
        if let Some(kind) = kind {
            tokens.push(Token { line, kind });
        }
        line += chars[at..end].iter().filter(|&&char| char == '\n').count();
        at = end;
    }
    tokens
}

/// Returns the end of the token at `at`, and its kind, which is `None` for white space and comments.
fn token_at(chars: &[char], at: usize) -> (usize, Option<Kind>) {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let until = |from: usize, is_end: &dyn Fn(char) -> bool| {
        chars[from..].iter().position(|&char| is_end(char)).map_or(chars.len(), |len| from + len)
    };
    match next(0) {
        char if char.is_whitespace() => (at + 1, None),
        '/' if next(1) == '/' => (until(at, &|char| char == '\n'), None),
        '/' if next(1) == '*' => (end_of_comment(chars, at), None),
        ':' if next(1) == ':' => (at + 2, Some(Kind::Separator)),
        '"' => (end_of_string(chars, at), Some(Kind::Other)),
        // A character, and not a lifetime.
        '\'' if next(1) == '\\' => (until(at + 3, &|char| char == '\'') + 1, Some(Kind::Other)),
        '\'' if next(2) == '\'' => (at + 3, Some(Kind::Other)),
        '\'' => (until(at + 1, &|char| !is_in_name(char)), Some(Kind::Other)),
        char if char.is_ascii_digit() => (until(at, &|char| !is_in_name(char)), Some(Kind::Other)),
        char if is_in_name(char) => {
            let end = until(at, &|char| !is_in_name(char));
            let name: String = chars[at..end].iter().collect();
            let hashes = until(end, &|char| char != '#') - end;
            let is_quoted = chars.get(end + hashes) == Some(&'"');
            match name.as_str() {
                "r" | "br" | "cr" if is_quoted => (end_of_raw_string(chars, end, hashes), Some(Kind::Other)),
                "b" | "c" if is_quoted && hashes == 0 => (end_of_string(chars, end), Some(Kind::Other)),
                "b" if chars.get(end) == Some(&'\'') => (token_at(chars, end).0, Some(Kind::Other)),
                "r" if hashes == 1 => {
                    let end_of_name = until(end + 1, &|char| !is_in_name(char));
                    (end_of_name, Some(Kind::Name(chars[end + 1..end_of_name].iter().collect())))
                }
                _ => (end, Some(Kind::Name(name))),
            }
        }
        mark => (at + 1, Some(Kind::Mark(mark))),
    }
}

fn is_in_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn end_of_comment(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start + 2, 1);
    while depth > 0 && at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

fn end_of_string(chars: &[char], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn end_of_raw_string(chars: &[char], start: usize, hashes: usize) -> usize {
    let mut end = vec!['#'; hashes + 1];
    end[0] = '"';
    let first = start + hashes + 1;
    let len = chars[first..].windows(end.len()).position(|window| window == end);
    len.map_or(chars.len(), |len| first + len + end.len())
}

/// Leaves out what only tests or documentation see, by `#[cfg(test)]`, `#[cfg(doc)]` and `#[cfg(doctest)]`.
pub(super) fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_inner = tokens.get(at + 1).is_some_and(|token| token.is('!'));
        let opening = at + 1 + usize::from(is_inner);
        if tokens[at].is('#') && tokens.get(opening).is_some_and(|token| token.is('[')) {
            let end = end_of_group(&tokens, opening);
            if is_for_tests(&tokens[opening + 1..end - 1]) {
                if is_inner {
                    return kept;
                }
                at = end_of_item(&tokens, end);
                continue;
            }
        }
        kept.push(tokens[at].clone());
        at += 1;
    }
    kept
}

/// Returns `true` if an attribute is a `cfg` that holds only where tests or documentation are compiled.
fn is_for_tests(attribute: &[Token]) -> bool {
    attribute.first().and_then(Token::name) == Some("cfg") && holds_for_tests_only(&attribute[1..])
}

/// Judges the predicates in a pair of parentheses, as if of `all`.
fn holds_for_tests_only(group: &[Token]) -> bool {
    predicates(group).iter().any(|predicate| match predicate[0].name() {
        Some("test" | "doc" | "doctest") => true,
        Some("all") => holds_for_tests_only(&predicate[1..]),
        Some("any") => predicates(&predicate[1..]).iter().all(|any| {
            // Judge each predicate as if it stood alone.
            let alone = [&predicate[1..2], any, &predicate[1..2]].concat();
            holds_for_tests_only(&alone)
        }),
        _ => false,
    })
}

/// Splits what is between two parentheses at its commas.
fn predicates(group: &[Token]) -> Vec<&[Token]> {
    let (mut found, mut start, mut at) = (Vec::new(), 1, 1);
    while at + 1 < group.len() {
        if group[at].is(',') {
            found.push(&group[start..at]);
            start = at + 1;
        }
        at = if group[at].is('(') { end_of_group(group, at) } else { at + 1 };
    }
    found.push(&group[start..group.len() - 1]);
    found.retain(|predicate| !predicate.is_empty());
    found
}

/// Returns the end of the group that the token at `opening` opens.
pub(super) fn end_of_group(tokens: &[Token], opening: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(opening) {
        match token.kind {
            Kind::Mark('(' | '[' | '{') => depth += 1,
            Kind::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Returns the end of the item, statement, field or arm that starts at `start`, attributes included.
fn end_of_item(tokens: &[Token], start: usize) -> usize {
    const ENDS_IN_SEMICOLON: [&str; 5] = ["use", "const", "static", "type", "let"];
    const ENDS_IN_BLOCK: [&str; 10] =
        ["fn", "mod", "struct", "enum", "union", "trait", "impl", "unsafe", "extern", "macro_rules"];
    let mut at = start;
    loop {
        if tokens.get(at).is_some_and(|token| token.is('#')) {
            at = end_of_group(tokens, at + 1);
        } else if tokens.get(at).and_then(Token::name) == Some("pub") {
            at += 1;
            if tokens.get(at).is_some_and(|token| token.is('(')) {
                at = end_of_group(tokens, at);
            }
        } else {
            break;
        }
    }
    let first = tokens.get(at).and_then(Token::name).unwrap_or_default();
    let is_const_fn = first == "const" && ["fn", "unsafe"].map(Some).contains(&tokens[at + 1].name());
    let only_semicolon = ENDS_IN_SEMICOLON.contains(&first) && !is_const_fn;
    let is_item = only_semicolon || is_const_fn || ENDS_IN_BLOCK.contains(&first);
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Mark(';') => return at + 1,
            Kind::Mark(',') if !is_item => return at + 1,
            // The end of what it is in.
            Kind::Mark(')' | ']' | '}') => return at,
            Kind::Mark('{') if !only_semicolon => {
                at = end_of_group(tokens, at);
                // The braces of a pattern are no end.
                if is_item || !tokens.get(at).is_some_and(|token| token.is('=')) {
                    return at;
                }
            }
            Kind::Mark('(' | '[' | '{') => at = end_of_group(tokens, at),
            _ => at += 1,
        }
    }
    at
}
