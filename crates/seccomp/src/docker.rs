//! Docker's default profile.
