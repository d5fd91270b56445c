//! Defences that a test takes away, to see that its attack works without them. Built only with the
//! feature `weak`, which no release has: there every question is answered by `false` at compile
//! time.

/// Whether the environment variable `KNARR_WEAK` (words with commas) takes this defence away. In a
/// forked child only after it was asked in the parent: the first question allocates.
#[cfg(feature = "weak")]
pub fn off(defence: &str) -> bool {
    use std::sync::OnceLock;
    static OFF: OnceLock<Vec<String>> = OnceLock::new();
    OFF.get_or_init(|| {
        let words = std::env::var("KNARR_WEAK").unwrap_or_default();
        words.split(',').map(str::to_owned).collect()
    })
    .iter()
    .any(|word| word == defence)
}

/// Never.
#[cfg(not(feature = "weak"))]
#[inline]
pub const fn off(_defence: &str) -> bool {
    false
}
