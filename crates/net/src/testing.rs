//! What the tests of this crate share: private network namespaces, golden files.

use std::os::fd::OwnedFd;

/// Moves the calling thread into a network namespace of its own with loopback up; `false` (and a
/// line that is counted) without the right.
pub(crate) fn private(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP {test}: needs root");
        return false;
    }
    knarr_sys::namespace::unshare_network().unwrap();
    crate::loopback_up().unwrap();
    true
}

/// Another network namespace, that nobody is in.
pub(crate) fn namespace() -> OwnedFd {
    std::thread::spawn(|| {
        knarr_sys::namespace::unshare_network().unwrap();
        crate::own_namespace().unwrap()
    })
    .join()
    .unwrap()
}

/// Compares with a file in `tests/golden/`; `KNARR_BLESS` writes it.
pub(crate) fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("KNARR_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "{name} differs; `cargo x bless` renews it");
}
