//! Control files: short texts, read and written in one go.
