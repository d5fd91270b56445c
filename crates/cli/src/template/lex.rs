//! From text to tokens.

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Text outside of actions, trimmed as the markers say.
    Text(String),
    /// `{{`
    Open,
    /// `}}`
    Close,
    /// `.`
    Dot,
    /// `.Name`
    Field(String),
    /// `$` or `$name`, with the dollar sign.
    Variable(String),
    /// A keyword or a function.
    Word(String),
    /// A string, quoted or raw, without its quotes.
    String(String),
    /// A number as it was written, or a character's.
    Number(String),
    /// `|`, `:=`, `=`, `,`, `(` or `)`.
    Sign(&'static str),
    /// Something that cannot stand there.
    Bad(char),
}

/// A token, where it begins and ends, and whether blanks stand before it.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) spaced: bool,
}

/// What went wrong at which byte.
pub(super) type Trouble = (usize, String);

pub(super) fn lex(source: &str) -> Result<Vec<Token>, Trouble> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut trim = false;
    loop {
        let rest = source.get(at..).unwrap_or_default();
        let Some(found) = rest.find("{{") else {
            push_text(&mut tokens, at, rest, trim, false);
            return Ok(tokens);
        };
        let open = at + found;
        let mut inside = open + 2;
        let after = source.get(inside..).unwrap_or_default();
        let trim_before = after.starts_with('-') && after.get(1..).is_some_and(starts_blank);
        push_text(
            &mut tokens,
            at,
            rest.get(..found).unwrap_or_default(),
            trim,
            trim_before,
        );
        if trim_before {
            inside += 1;
        }
        (at, trim) = match comment(source, open, inside)? {
            Some(after) => after,
            None => action(source, open, inside, &mut tokens)?,
        };
    }
}

fn starts_blank(text: &str) -> bool {
    text.starts_with([' ', '\t', '\r', '\n'])
}

/// Whether a field, variable or word may end before this text.
fn ends_name(text: &str) -> bool {
    starts_blank(text)
        || text.starts_with(['.', ',', '|', ':', ')', '('])
        || text.starts_with("}}")
        || (text.starts_with('=') && !text.starts_with("=="))
}

fn push_text(tokens: &mut Vec<Token>, start: usize, text: &str, front: bool, back: bool) {
    const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];
    let text = if front {
        text.trim_start_matches(BLANK)
    } else {
        text
    };
    let text = if back {
        text.trim_end_matches(BLANK)
    } else {
        text
    };
    if !text.is_empty() {
        tokens.push(Token {
            kind: Kind::Text(text.to_owned()),
            start,
            end: start + text.len(),
            spaced: false,
        });
    }
}

/// Skips `/* … */}}`; says where text goes on and whether it is trimmed.
fn comment(source: &str, open: usize, inside: usize) -> Result<Option<(usize, bool)>, Trouble> {
    let body = source.get(inside..).unwrap_or_default();
    let start = body.trim_start_matches([' ', '\t', '\r', '\n']);
    // Blanks before a comment are allowed only after a trim marker.
    if !start.starts_with("/*") || (start.len() != body.len() && inside == open + 2) {
        return Ok(None);
    }
    let Some(end) = start.find("*/") else {
        return Err((open, "unclosed comment".to_owned()));
    };
    let tail = start.get(end + 2..).unwrap_or_default();
    let tail_at = source.len() - tail.len();
    if tail.starts_with("}}") {
        return Ok(Some((tail_at + 2, false)));
    }
    let trimmed = tail.trim_start_matches([' ', '\t', '\r', '\n']);
    if trimmed.starts_with("-}}") && trimmed.len() != tail.len() {
        return Ok(Some((source.len() - trimmed.len() + 3, true)));
    }
    Err((open, "comment ends before closing delimiter".to_owned()))
}

fn action(
    source: &str,
    open: usize,
    inside: usize,
    tokens: &mut Vec<Token>,
) -> Result<(usize, bool), Trouble> {
    let mut add = |kind, start, end, spaced| {
        tokens.push(Token {
            kind,
            start,
            end,
            spaced,
        });
    };
    add(Kind::Open, open, inside, false);
    let mut at = inside;
    let mut spaced = false;
    loop {
        let rest = source.get(at..).unwrap_or_default();
        let Some(first) = rest.chars().next() else {
            return Err((open, "unclosed action".to_owned()));
        };
        if rest.starts_with("}}") {
            add(Kind::Close, at, at + 2, spaced);
            return Ok((at + 2, false));
        }
        if starts_blank(rest) {
            let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
            at += blank;
            if source.get(at..).is_some_and(|r| r.starts_with("-}}")) {
                add(Kind::Close, at, at + 3, true);
                return Ok((at + 3, true));
            }
            spaced = true;
            continue;
        }
        let (kind, length) = token(rest, first).map_err(|text| (at, text))?;
        let named = matches!(kind, Kind::Field(_) | Kind::Variable(_) | Kind::Word(_));
        let after = rest.get(length..).unwrap_or_default();
        if named && let Some(next) = after.chars().next().filter(|_| !ends_name(after)) {
            let code = u32::from(next);
            return Err((at, format!("bad character U+{code:04X} '{next}'")));
        }
        add(kind, at, at + length, spaced);
        at += length;
        spaced = false;
    }
}

fn token(rest: &str, first: char) -> Result<(Kind, usize), String> {
    let word = |text: &str| {
        text.find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(text.len())
    };
    let after = rest.get(first.len_utf8()..).unwrap_or_default();
    Ok(match first {
        '"' => quoted(rest)?,
        '\'' => character(rest)?,
        '`' => match after.find('`') {
            Some(end) => (
                Kind::String(after.get(..end).unwrap_or_default().to_owned()),
                end + 2,
            ),
            None => return Err("unterminated raw quoted string".to_owned()),
        },
        '|' => (Kind::Sign("|"), 1),
        '(' => (Kind::Sign("("), 1),
        ')' => (Kind::Sign(")"), 1),
        ',' => (Kind::Sign(","), 1),
        '=' => (Kind::Sign("="), 1),
        ':' if after.starts_with('=') => (Kind::Sign(":="), 2),
        ':' => return Err("expected :=".to_owned()),
        '$' => {
            let end = 1 + word(after);
            (
                Kind::Variable(rest.get(..end).unwrap_or_default().to_owned()),
                end,
            )
        }
        '.' if !after.starts_with(|c: char| c.is_ascii_digit()) => match word(after) {
            0 => (Kind::Dot, 1),
            end => (
                Kind::Field(after.get(..end).unwrap_or_default().to_owned()),
                end + 1,
            ),
        },
        '.' | '+' | '-' | '0'..='9' => number(rest)?,
        c if c.is_alphabetic() || c == '_' => {
            let end = word(rest);
            (
                Kind::Word(rest.get(..end).unwrap_or_default().to_owned()),
                end,
            )
        }
        c => (Kind::Bad(c), c.len_utf8()),
    })
}

fn number(rest: &str) -> Result<(Kind, usize), String> {
    let mut end = 0;
    let mut last = ' ';
    for c in rest.chars() {
        let sign = matches!(c, '+' | '-') && (end == 0 || matches!(last, 'e' | 'E' | 'p' | 'P'));
        if !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || sign) {
            break;
        }
        end += c.len_utf8();
        last = c;
    }
    let text = rest.get(..end).unwrap_or_default();
    let plain = text.replace('_', "");
    let integer = crate::flag::value::parse_int(&plain);
    let float = plain.parse::<f64>().ok().filter(|f| f.is_finite());
    match (integer, float) {
        (Some(integer), _) => Ok((Kind::Number(integer.to_string()), end)),
        (None, Some(_)) if plain.contains(|c: char| c.is_ascii_digit()) => {
            Ok((Kind::Number(plain), end))
        }
        _ => Err(format!("bad number syntax: {text:?}")),
    }
}

fn character(rest: &str) -> Result<(Kind, usize), String> {
    let unclosed = || "unterminated character constant".to_owned();
    let body = rest.get(1..).unwrap_or_default();
    let mut escaped = false;
    let end = body.find(|c| {
        let ends = c == '\'' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    let end = end.ok_or_else(unclosed)?;
    let text = unescape(body.get(..end).unwrap_or_default())?;
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) => Ok((Kind::Number(u32::from(letter).to_string()), end + 2)),
        _ => Err(format!("malformed character constant: '{text}'")),
    }
}

fn quoted(rest: &str) -> Result<(Kind, usize), String> {
    let unclosed = || "unterminated quoted string".to_owned();
    let body = rest.get(1..).unwrap_or_default();
    let mut escaped = false;
    for (index, c) in body.char_indices() {
        match c {
            '\n' => return Err(unclosed()),
            '"' if !escaped => {
                let text = unescape(body.get(..index).unwrap_or_default())?;
                return Ok((Kind::String(text), index + 2));
            }
            _ => escaped = c == '\\' && !escaped,
        }
    }
    Err(unclosed())
}

/// Go's escapes in interpreted strings.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let bad = || "invalid syntax".to_owned();
        out.push(match letters.next().ok_or_else(bad)? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            '\\' => '\\',
            '"' => '"',
            '\'' => '\'',
            escape @ ('x' | 'u' | 'U') => {
                let count = match escape {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let hex: String = letters.by_ref().take(count).collect();
                let code = u32::from_str_radix(&hex, 16).map_err(|_| bad())?;
                char::from_u32(code).ok_or_else(bad)?
            }
            _ => return Err(bad()),
        });
    }
    Ok(out)
}
