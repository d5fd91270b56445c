//! `knarr-oci`, as it ships.
#![no_main]

knarr_sys::main!(knarr_oci::main);
