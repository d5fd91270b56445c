//! Tells the linker where the shipped program begins (`knarr_sys::entry`).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        println!("cargo:rustc-link-arg-bin=knarr-oci=-Wl,-e,knarr_start");
    }
}
