//! The network of a user without root, through `pasta`.
