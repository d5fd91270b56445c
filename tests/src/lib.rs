//! End-to-end tests live in `tests/tests/`, one file per capability that a user would name. They
//! drive the release binaries of `target/release` (`cargo x build`) on real images.
