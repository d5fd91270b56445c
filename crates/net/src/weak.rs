//! Defences that a test takes away, to see that its attack works without them. Only this crate's own
//! tests can: elsewhere every question is answered by `false` at compile time.

#[cfg(test)]
thread_local! {
    static OFF: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// Whether the test that runs on the calling thread has taken this defence away.
#[cfg(test)]
pub(crate) fn off(defence: &str) -> bool {
    OFF.get() == defence
}

/// Never.
#[cfg(not(test))]
#[inline]
pub(crate) const fn off(_defence: &str) -> bool {
    false
}

/// Does something without a defence.
#[cfg(test)]
pub(crate) fn without<T>(defence: &'static str, act: impl FnOnce() -> T) -> T {
    OFF.set(defence);
    let done = act();
    OFF.set("");
    done
}
