//! `knarr-oci-weak`: the same with switches that take its defences away, for tests that see attacks
//! succeed. No release has it.

fn main() -> std::process::ExitCode {
    knarr_oci::main()
}
