//! Limits as control files and their values, for v1 and v2.
