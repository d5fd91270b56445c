//! Flags as Docker's command line reads them.
//!
//! A [`Flag`] is data: its names, the word for its value, its default, its help, what makes a value
//! good, and whether Knarr serves it. The same table parses the line ([`parse`]), prints the help
//! ([`help`]), finds near names and refuses by name what is not served yet.
//!
//! The rules are those of Go's pflag, which Docker uses: `--name=value` and `--name value`,
//! `--switch=false`, bundles (`-it`, `-eFOO=1`, `-m=1g`), `--` ends the flags, and a command whose
//! arguments are a program of their own stops at its first argument.

pub(crate) mod help;
pub(crate) mod value;

use crate::suggest;

/// Says what is wrong with a value, in Docker's words.
pub(crate) type Check = fn(&str) -> Result<(), String>;

/// What is done with a flag that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// It means what Docker says it means.
    Served,
    /// Accepted and obeyed, but not shown in the help.
    Hidden,
    /// Docker knows it, Knarr does not serve it; the text says what to do instead or why.
    Refused(&'static str),
}

/// One flag of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    /// Without the dashes.
    pub(crate) name: &'static str,
    /// The one-letter form.
    pub(crate) short: Option<char>,
    /// The word for the value in the help; a switch has none.
    pub(crate) value: Option<&'static str>,
    /// What the help calls the default, as printed.
    pub(crate) default: &'static str,
    /// One sentence.
    pub(crate) usage: &'static str,
    /// What a value must be.
    pub(crate) check: Check,
    /// Served, hidden or refused.
    pub(crate) status: Status,
}

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

impl Flag {
    /// A flag that is on or off.
    pub(crate) const fn switch(name: &'static str, usage: &'static str) -> Self {
        Self {
            name,
            short: None,
            value: None,
            default: "",
            usage,
            check: value::boolean,
            status: Status::Served,
        }
    }

    /// A flag with a value, `word` being what the help calls it.
    pub(crate) const fn with(name: &'static str, word: &'static str, usage: &'static str) -> Self {
        Self {
            value: Some(word),
            check: any,
            ..Self::switch(name, usage)
        }
    }

    /// Adds the one-letter form.
    pub(crate) const fn short(self, letter: char) -> Self {
        Self {
            short: Some(letter),
            ..self
        }
    }

    /// Adds a check of each value.
    pub(crate) const fn checked(self, check: Check) -> Self {
        Self { check, ..self }
    }

    /// Adds what the help says of the default.
    pub(crate) const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// Takes it out of the help.
    pub(crate) const fn hidden(self) -> Self {
        Self {
            status: Status::Hidden,
            ..self
        }
    }

    /// Makes it one that is refused by name.
    pub(crate) const fn refused(self, why: &'static str) -> Self {
        Self {
            status: Status::Refused(why),
            ..self
        }
    }

    /// `-m, --memory` or `--name`, as error texts call it.
    pub(crate) fn title(&self) -> String {
        self.short.map_or_else(
            || format!("--{}", self.name),
            |letter| format!("-{letter}, --{}", self.name),
        )
    }
}

/// What a command line said.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    values: Vec<(&'static str, String)>,
    /// What is not a flag, in order.
    pub(crate) args: Vec<String>,
}

impl Parsed {
    /// Whether the flag was given at all, whatever its value.
    pub(crate) fn given(&self, name: &str) -> bool {
        self.values.iter().any(|(n, _)| *n == name)
    }

    /// The last value of a flag.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.values.iter().rev();
        values
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The last value of a flag, or the empty text.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Every value of a flag, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.values
            .iter()
            .filter(move |(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every value of a flag, owned.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        self.all(name).map(str::to_owned).collect()
    }

    /// Whether a switch is on.
    pub(crate) fn on(&self, name: &str) -> bool {
        self.get(name)
            .and_then(value::parse_boolean)
            .unwrap_or(false)
    }

    /// A whole number that its check has let through.
    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(value::parse_int)
    }

    /// A size in bytes that its check has let through.
    pub(crate) fn bytes(&self, name: &str) -> Option<i64> {
        self.get(name)
            .and_then(|text| crate::units::ram_in_bytes(text).ok())
    }
}

/// Why a line is not understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `--help` was asked for.
    Help,
    /// The text, and what to do about it.
    Usage(String, Option<String>),
    /// A flag that Docker knows and Knarr does not serve: its name and the reason.
    NotServed(String, &'static str),
}

/// Reads `args` (without the command's name) by the flags of a command.
///
/// `interspersed` says whether flags may follow arguments; otherwise the first argument ends them.
pub(crate) fn parse(
    flags: &[&'static [Flag]],
    args: &[String],
    interspersed: bool,
) -> Result<Parsed, Refusal> {
    let mut parsed = Parsed::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            parsed.args.extend(rest.cloned());
            break;
        }
        if let Some(long) = arg.strip_prefix("--") {
            read_long(flags, &mut parsed, long, &mut rest)?;
        } else if let Some(letters) = arg.strip_prefix('-').filter(|l| !l.is_empty()) {
            read_short(flags, &mut parsed, letters, &mut rest)?;
        } else {
            parsed.args.push(arg.clone());
            if !interspersed {
                parsed.args.extend(rest.cloned());
                break;
            }
        }
    }
    Ok(parsed)
}

fn all_flags<'a>(flags: &'a [&'static [Flag]]) -> impl Iterator<Item = &'static Flag> + 'a {
    flags.iter().copied().flatten()
}

fn usage(text: String) -> Refusal {
    Refusal::Usage(text, None)
}

fn read_long(
    flags: &[&'static [Flag]],
    parsed: &mut Parsed,
    long: &str,
    rest: &mut std::slice::Iter<'_, String>,
) -> Result<(), Refusal> {
    let (name, value) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (long, None),
    };
    if name.is_empty() || name.starts_with('-') {
        return Err(usage(format!("bad flag syntax: --{long}")));
    }
    let Some(flag) = all_flags(flags).find(|flag| flag.name == name) else {
        if name == "help" {
            return Err(Refusal::Help);
        }
        let known = all_flags(flags).filter(|flag| flag.status == Status::Served);
        let near = suggest::nearest(name, known.map(|flag| flag.name));
        let hint = near.map(|near| format!("did you mean `--{near}`?"));
        return Err(Refusal::Usage(format!("unknown flag: --{name}"), hint));
    };
    let value = match (value, flag.value) {
        (Some(value), _) => value,
        (None, None) => "true",
        (None, Some(_)) => match rest.next() {
            Some(value) => value,
            None => return Err(usage(format!("flag needs an argument: --{name}"))),
        },
    };
    take(flag, value, parsed)
}

fn read_short(
    flags: &[&'static [Flag]],
    parsed: &mut Parsed,
    bundle: &str,
    rest: &mut std::slice::Iter<'_, String>,
) -> Result<(), Refusal> {
    let mut letters = bundle;
    while let Some(letter) = letters.chars().next() {
        let whole = letters;
        letters = letters.get(letter.len_utf8()..).unwrap_or_default();
        let Some(flag) = all_flags(flags).find(|flag| flag.short == Some(letter)) else {
            if letter == 'h' {
                return Err(Refusal::Help);
            }
            return Err(usage(format!(
                "unknown shorthand flag: '{letter}' in -{whole}"
            )));
        };
        let attached = letters.strip_prefix('=').filter(|value| !value.is_empty());
        let value = match (attached, flag.value) {
            (Some(value), _) => value,
            (None, None) => {
                take(flag, "true", parsed)?;
                continue;
            }
            (None, Some(_)) if !letters.is_empty() => letters,
            (None, Some(_)) => match rest.next() {
                Some(value) => value,
                None => {
                    let text = format!("flag needs an argument: '{letter}' in -{whole}");
                    return Err(usage(text));
                }
            },
        };
        return take(flag, value, parsed);
    }
    Ok(())
}

fn take(flag: &'static Flag, value: &str, parsed: &mut Parsed) -> Result<(), Refusal> {
    if let Status::Refused(why) = flag.status {
        // Switched off is what Knarr does anyway.
        if flag.value.is_none() && value::parse_boolean(value) == Some(false) {
            return Ok(());
        }
        return Err(Refusal::NotServed(format!("--{}", flag.name), why));
    }
    (flag.check)(value).map_err(|why| {
        let title = flag.title();
        usage(format!(
            "invalid argument {value:?} for \"{title}\" flag: {why}"
        ))
    })?;
    parsed.values.push((flag.name, value.to_owned()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    static FLAGS: &[Flag] = &[
        Flag::switch("interactive", "").short('i'),
        Flag::switch("tty", "").short('t'),
        Flag::with("env", "list", "").short('e'),
        Flag::with("memory", "bytes", "")
            .short('m')
            .checked(value::bytes),
        Flag::with("name", "string", ""),
        Flag::with("gpus", "gpu-request", "").refused("no"),
        Flag::switch("publish-all", "").short('P').refused("no"),
    ];

    fn line(words: &[&str], interspersed: bool) -> Result<Parsed, Refusal> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        parse(&[FLAGS], &words, interspersed)
    }

    fn said(parsed: &Parsed) -> String {
        let values = parsed.values.iter().map(|(n, v)| format!("{n}={v}"));
        let args = parsed.args.iter().cloned();
        values.chain(args).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_line_is_read_as_pflag_reads_it() {
        for (words, interspersed, expected) in [
            (vec!["-it", "img"], false, "interactive=true tty=true img"),
            (
                vec!["-iteA=1", "img"],
                false,
                "interactive=true tty=true env=A=1 img",
            ),
            (vec!["-e", "-x", "img"], false, "env=-x img"),
            (vec!["-e=A=1"], false, "env=A=1"),
            (vec!["-m1g", "-m=2g"], false, "memory=1g memory=2g"),
            (
                vec!["--tty=false", "--name=", "img"],
                false,
                "tty=false name= img",
            ),
            (vec!["--tty", "false"], false, "tty=true false"),
            (vec!["img", "-i"], false, "img -i"),
            (vec!["img", "-i"], true, "interactive=true img"),
            (vec!["img", "--", "-i"], true, "img -i"),
            (vec!["img", "--", "-i"], false, "img -- -i"),
            (vec!["-i", "--", "-i"], false, "interactive=true -i"),
            (vec!["-"], true, "-"),
            (vec!["--publish-all=false"], true, ""),
        ] {
            let parsed = line(&words, interspersed).unwrap();
            assert_eq!(said(&parsed), expected, "{words:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_in_dockers_words() {
        for (words, expected) in [
            (vec!["--foo"], "unknown flag: --foo"),
            (vec!["-Z"], "unknown shorthand flag: 'Z' in -Z"),
            (vec!["-iZt"], "unknown shorthand flag: 'Z' in -Zt"),
            (vec!["--name"], "flag needs an argument: --name"),
            (vec!["-m"], "flag needs an argument: 'm' in -m"),
            (vec!["-im"], "flag needs an argument: 'm' in -m"),
            (vec!["--=x"], "bad flag syntax: --=x"),
            (vec!["---x"], "bad flag syntax: ---x"),
            (
                vec!["-m", "x"],
                "invalid argument \"x\" for \"-m, --memory\" flag: invalid size: 'x'",
            ),
            (
                vec!["--tty=x"],
                "invalid argument \"x\" for \"-t, --tty\" flag: strconv.ParseBool: \
                 parsing \"x\": invalid syntax",
            ),
        ] {
            let Err(Refusal::Usage(text, _)) = line(&words, false) else {
                panic!("{words:?} was taken");
            };
            assert_eq!(text, expected);
        }
        assert_eq!(line(&["--help"], false).unwrap_err(), Refusal::Help);
        assert_eq!(line(&["-h"], false).unwrap_err(), Refusal::Help);
        assert_eq!(
            line(&["--memry=1g"], false).unwrap_err(),
            Refusal::Usage(
                "unknown flag: --memry".to_owned(),
                Some("did you mean `--memory`?".to_owned())
            )
        );
        assert_eq!(
            line(&["--gpus", "all"], false).unwrap_err(),
            Refusal::NotServed("--gpus".to_owned(), "no")
        );
        assert_eq!(
            line(&["-P"], false).unwrap_err(),
            Refusal::NotServed("--publish-all".to_owned(), "no")
        );
    }
}
