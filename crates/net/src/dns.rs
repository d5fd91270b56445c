//! Names: what a container asks 127.0.0.11.
