//! The table of flags in a command's help, laid out as pflag does it.

use super::{Flag, Status};

/// Docker wraps before the 80th column, whatever the terminal is.
const WIDTH: usize = 79;

/// Keeps this many columns free for words that stick out.
const SLOP: usize = 5;

/// The lines below `Options:`, sorted by name.
pub(crate) fn table(flags: &[&'static [Flag]]) -> String {
    static HELP: Flag = Flag::switch("help", "Print usage");
    let mut shown: Vec<&Flag> = super::all_flags(flags)
        .filter(|flag| flag.status == Status::Served)
        .collect();
    // Docker lists --help only where -h means something else.
    if shown.iter().any(|flag| flag.short == Some('h')) {
        shown.push(&HELP);
    }
    shown.sort_by_key(|flag| flag.name);
    let heads: Vec<String> = shown.iter().map(|flag| head(flag)).collect();
    let column = heads.iter().map(String::len).max().unwrap_or(0) + 3;
    let mut text = String::new();
    for (flag, head) in shown.iter().zip(&heads) {
        let mut usage = flag.usage.to_owned();
        if !flag.default.is_empty() {
            usage = format!("{usage} (default {})", flag.default);
        }
        let pad = " ".repeat(column - head.len());
        text.push_str(&format!("{head}{pad}{}\n", wrap(column, &usage)));
    }
    text
}

fn head(flag: &Flag) -> String {
    let short = flag
        .short
        .map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
    let value = flag
        .value
        .map(|word| format!(" {word}"))
        .unwrap_or_default();
    format!("  {short}--{}{value}", flag.name)
}

fn wrap(indent: usize, text: &str) -> String {
    let width = WIDTH.saturating_sub(indent + SLOP).max(24);
    let margin = format!("\n{}", " ".repeat(indent));
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = split_line(rest, width);
        if !out.is_empty() {
            out.push_str(&margin);
        }
        out.push_str(&line.replace('\n', &margin));
        rest = after;
    }
    out
}

fn split_line(text: &str, width: usize) -> (&str, &str) {
    if width + SLOP > text.len() {
        return (text, "");
    }
    let head = text.get(..width).unwrap_or(text);
    let Some(cut) = head.rfind([' ', '\t', '\n']).filter(|cut| *cut > 0) else {
        return (text, "");
    };
    let cut = head
        .rfind('\n')
        .filter(|newline| *newline > 0)
        .unwrap_or(cut);
    (
        text.get(..cut).unwrap_or_default(),
        text.get(cut + 1..).unwrap_or_default(),
    )
}
