//! `WWW-Authenticate` (RFC 9110, section 11.6.1).

use std::collections::BTreeMap;

/// One way a server offers to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Lower case: `basic`, `bearer`.
    pub(crate) scheme: String,
    /// Names in lower case.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// All challenges of one header value; what is malformed ends the list.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((word, after)) = token(rest) else {
            return challenges;
        };
        // `name=value` continues the challenge before it; a word alone starts a new one.
        if let Some(value) = after.trim_start().strip_prefix('=')
            && let Some(current) = challenges.last_mut()
        {
            let Some((value, after)) = quoted(value.trim_start()).or_else(|| {
                token(value.trim_start()).map(|(value, after)| (value.to_owned(), after))
            }) else {
                return challenges;
            };
            // The first wins: a second must not redirect what the first said.
            current
                .parameters
                .entry(word.to_ascii_lowercase())
                .or_insert(value);
            rest = after;
        } else {
            challenges.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: BTreeMap::new(),
            });
            rest = after;
        }
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:?".contains(c)))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed_as_servers_write_them() {
        let hub = parse(
            "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
             scope=\"repository:library/debian:pull\"",
        );
        assert_eq!(hub.len(), 1);
        assert_eq!(hub[0].scheme, "bearer");
        assert_eq!(hub[0].parameters["realm"], "https://auth.docker.io/token");
        assert_eq!(hub[0].parameters["scope"], "repository:library/debian:pull");
        let two = parse("Basic realm=\"a \\\"b\\\", c\", BEARER Realm=x , service = y");
        assert_eq!(two.len(), 2);
        assert_eq!(two[0].parameters["realm"], "a \"b\", c");
        assert_eq!(two[1].scheme, "bearer");
        assert_eq!(two[1].parameters["service"], "y");
        assert_eq!(parse("Basic")[0].parameters.len(), 0);
    }

    #[test]
    fn malformed_headers_end_quietly_and_the_first_parameter_wins() {
        for bad in [
            "",
            ",,,",
            "Bearer realm=\"unterminated",
            "\u{1}",
            "= =",
            "Bearer =",
        ] {
            parse(bad);
        }
        let twice = parse("Bearer realm=\"a\",realm=\"b\"");
        assert_eq!(twice[0].parameters["realm"], "a");
    }
}
