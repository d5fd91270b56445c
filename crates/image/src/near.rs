//! Names that look like the one that was meant.

/// At most three of `known` that are close to `wanted`, best first.
pub(crate) fn names(wanted: &str, known: impl Iterator<Item = String>) -> Vec<String> {
    let limit = (wanted.chars().count() / 3).clamp(1, 4);
    let bare = |name: &str| {
        let repository = name
            .rsplit_once(':')
            .map_or(name, |(repository, _)| repository);
        repository
            .rsplit('/')
            .next()
            .unwrap_or(repository)
            .to_owned()
    };
    let wanted_bare = bare(wanted);
    let mut near: Vec<(usize, String)> = known
        .filter_map(|name| {
            // The same repository with another tag, or the same last part elsewhere, is near.
            let distance = if bare(&name) == wanted_bare {
                1
            } else {
                distance(wanted, &name).min(distance(&wanted_bare, &bare(&name)) + 1)
            };
            (distance <= limit).then_some((distance, name))
        })
        .collect();
    near.sort();
    near.dedup_by(|a, b| a.1 == b.1);
    near.into_iter().map(|(_, name)| name).take(3).collect()
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, d) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "abd", 1),
            ("kitten", "sitting", 3),
            ("", "ab", 2),
            ("ab", "", 2),
        ] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn typos_and_other_tags_are_near() {
        let known = || {
            [
                "debian:12",
                "busybox:latest",
                "reg.io:5000/team/debian:12",
                "postgres:16",
            ]
            .map(str::to_owned)
            .into_iter()
        };
        assert_eq!(names("debain:12", known())[0], "debian:12");
        assert_eq!(
            names("debian:13", known()),
            ["debian:12", "reg.io:5000/team/debian:12"]
        );
        assert_eq!(names("bysbox:latest", known()), ["busybox:latest"]);
        assert!(names("nginx:latest", known()).is_empty());
    }
}
