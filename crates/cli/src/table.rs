//! Columns aligned as Go's `text/tabwriter` does with Docker's settings: cells end at tabs, are at
//! least ten columns wide with three of padding, and the last cell of a line is left as it is.

const MINIMUM: usize = 10;
const PADDING: usize = 3;

/// Aligns lines whose cells are separated by tabs.
///
/// A column is a run of neighbouring lines that have a cell there; its width is that run's own.
pub(crate) fn align(text: &str) -> String {
    align_to(text, MINIMUM)
}

/// The same with another least width of a column, padding included.
pub(crate) fn align_to(text: &str, minimum: usize) -> String {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len()]).collect();
    size(&lines, &mut widths, minimum, 0, 0..lines.len());
    let mut out = String::with_capacity(text.len() * 2);
    for (cells, widths) in lines.iter().zip(&widths) {
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            out.push_str(cell);
            if index + 1 < cells.len() {
                let pad = width.saturating_sub(cell.chars().count());
                out.extend(std::iter::repeat_n(' ', pad));
            }
        }
        out.push('\n');
    }
    out
}

fn size(
    lines: &[Vec<&str>],
    widths: &mut [Vec<usize>],
    minimum: usize,
    column: usize,
    range: std::ops::Range<usize>,
) {
    let has = |line: usize| column + 1 < lines[line].len();
    let mut line = range.start;
    while line < range.end {
        let start = line;
        while line < range.end && has(line) {
            line += 1;
        }
        if start == line {
            line += 1;
            continue;
        }
        let cells = lines[start..line]
            .iter()
            .map(|cells| cells[column].chars().count());
        let width = (cells.max().unwrap_or(0) + PADDING).max(minimum);
        for row in &mut widths[start..line] {
            row[column] = width;
        }
        size(lines, widths, minimum, column + 1, start..line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_at_least_ten_wide_and_the_last_is_free() {
        assert_eq!(
            align("A\tBB\tCCC\n123456789012\tx\ty\n"),
            "A              BB        CCC\n123456789012   x         y\n"
        );
        assert_eq!(align("one\n"), "one\n");
        assert_eq!(align(""), "");
    }

    #[test]
    fn letters_are_counted_not_bytes() {
        assert_eq!(align("NAME\tX\nwé…\ty\n"), "NAME      X\nwé…       y\n");
    }

    #[test]
    fn a_line_without_the_column_ends_it() {
        assert_eq!(
            align("aaaaaaaaaaaaaaa\tb\nc\nd\te\n"),
            "aaaaaaaaaaaaaaa   b\nc\nd         e\n"
        );
    }
}
