//! Flags as runc takes them: Go's, with one dash or two, `--name value` or `--name=value`.

use crate::failure::{Failure, Result};

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// `--flag`, `--flag=false`.
    Nothing,
    /// The last one counts.
    Value,
    /// All count.
    Values,
}

/// One flag.
#[derive(Debug)]
pub(crate) struct Flag {
    /// Without dashes; short names behind commas.
    pub(crate) names: &'static str,
    pub(crate) takes: Takes,
    pub(crate) help: &'static str,
}

impl Flag {
    fn is(&self, name: &str) -> bool {
        self.names.split(',').any(|own| own == name)
    }

    /// `--bundle value, -b value`.
    pub(crate) fn shown(&self) -> String {
        let value = if self.takes == Takes::Nothing {
            ""
        } else {
            " value"
        };
        self.names
            .split(',')
            .map(|name| {
                let dashes = if name.len() == 1 { "-" } else { "--" };
                format!("{dashes}{name}{value}")
            })
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Whether flags may follow arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// `delete web --force` is fine.
    Any,
    /// What follows the first argument belongs to somebody else: `exec web ls -l`.
    FlagsFirst,
}

/// A parsed command line.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    flags: Vec<(&'static str, String)>,
    /// What is no flag.
    pub(crate) rest: Vec<String>,
}

impl Parsed {
    /// The last value of a flag, by its first name.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// All values of a flag.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags
            .iter()
            .filter(move |(own, _)| *own == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a flag without value is set.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// The value of a flag as a number.
    ///
    /// # Errors
    /// What is no number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.value(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| Failure::new(format!("invalid value \"{text}\" for flag -{name}")))
            })
            .transpose()
    }
}

/// Parses `args` with the flags of `table`; with [`Order::FlagsFirst`] it stops at what is no flag.
///
/// # Errors
/// In Go's words.
pub(crate) fn parse(table: &'static [Flag], args: &[String], order: Order) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let name = match arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) {
            Some("") if arg == "--" => {
                parsed.rest.extend(args.cloned());
                break;
            }
            None | Some("") => {
                parsed.rest.push(arg.clone());
                if order == Order::FlagsFirst {
                    parsed.rest.extend(args.cloned());
                    break;
                }
                continue;
            }
            Some(name) => name,
        };
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let Some(flag) = table.iter().find(|flag| flag.is(name)) else {
            return Err(Failure::new(format!(
                "flag provided but not defined: -{name}"
            )));
        };
        let value = match (flag.takes, given) {
            (Takes::Nothing, None) => "true".to_owned(),
            (Takes::Nothing, Some(word)) => match word.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => "true".to_owned(),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => "false".to_owned(),
                _ => {
                    return Err(Failure::new(format!(
                        "invalid boolean value \"{word}\" for -{name}"
                    )));
                }
            },
            (_, Some(value)) => value,
            (_, None) => args
                .next()
                .cloned()
                .ok_or_else(|| Failure::new(format!("flag needs an argument: -{name}")))?,
        };
        let first = flag.names.split(',').next().unwrap_or(flag.names);
        parsed.flags.push((first, value));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    static TABLE: &[Flag] = &[
        Flag {
            names: "bundle,b",
            takes: Takes::Value,
            help: "",
        },
        Flag {
            names: "force,f",
            takes: Takes::Nothing,
            help: "",
        },
        Flag {
            names: "env,e",
            takes: Takes::Values,
            help: "",
        },
    ];

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_gos() {
        let parsed = parse(
            TABLE,
            &words("--bundle=/a x -b /b -force -e A=1 --env B= y"),
            Order::Any,
        );
        let parsed = parsed.unwrap();
        assert_eq!(parsed.value("bundle"), Some("/b"));
        assert!(parsed.is_set("force"));
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=1", "B="]);
        assert_eq!(parsed.rest, ["x", "y"]);
        let first = parse(TABLE, &words("-f web ls -l --bundle"), Order::FlagsFirst).unwrap();
        assert_eq!(first.rest, ["web", "ls", "-l", "--bundle"]);
        assert!(
            !parse(TABLE, &words("--force=false"), Order::Any)
                .unwrap()
                .is_set("force")
        );
        let dashes = parse(TABLE, &words("-f -- -b"), Order::Any).unwrap();
        assert_eq!(dashes.rest, ["-b"]);
        for (bad, why) in [
            ("--nope", "flag provided but not defined: -nope"),
            ("--bundle", "flag needs an argument: -bundle"),
            (
                "--force=maybe",
                "invalid boolean value \"maybe\" for -force",
            ),
        ] {
            assert_eq!(
                parse(TABLE, &words(bad), Order::Any).unwrap_err().message,
                why
            );
        }
    }
}
