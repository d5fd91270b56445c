//! `knarr-oci`, as it ships.

fn main() -> std::process::ExitCode {
    knarr_oci::main()
}
