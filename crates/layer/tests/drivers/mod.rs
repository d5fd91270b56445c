//! The contract of `Snapshotter`: every driver shows the same tree, bit for bit.

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use knarr_fs::TempDir;
use knarr_layer::{Base, Driver, LayerId, LayerPaths, Rootfs, Store, Upper, mount};

use crate::listing::{Listing, assert_same, list};

/// Mounts `layers` (bottom first) with every driver, read-only and writable, and compares what is
/// there with `expected`, in both as `adjust` leaves it.
#[track_caller]
pub(crate) fn all_show(
    what: &str,
    store: &Store,
    layers: &[LayerId],
    expected: &Listing,
    adjust: impl Fn(&mut Listing),
) {
    let mut expected = expected.clone();
    adjust(&mut expected);
    let place = TempDir::new_in(&std::env::temp_dir().join("knarr-layer-tests")).unwrap();
    for driver in Driver::ALL {
        for id in layers {
            driver.snapshotter().prepare(store, id).unwrap();
            // Again, as each start does it.
            driver.snapshotter().prepare(store, id).unwrap();
        }
        let paths = |id: &LayerId| LayerPaths {
            id: *id,
            folder: store.path(id),
        };
        let container = place.path().join(driver.name());
        std::fs::create_dir(&container).unwrap();
        for upper in [
            None,
            Some(Upper {
                upper: container.join("upper"),
                work: container.join("work"),
            }),
        ] {
            let writable = upper.is_some();
            let rootfs = Rootfs {
                base: Base::Layers {
                    driver,
                    layers: layers.iter().map(paths).collect(),
                },
                upper,
                volatile: false,
                idmap: None,
            };
            let mounted = mount(&rootfs, &place.path().join("run")).unwrap();
            let root = PathBuf::from(format!("/proc/self/fd/{}", mounted.root.as_raw_fd()));
            let mut shown = list(&root);
            adjust(&mut shown);
            assert_same(
                &format!("{what}: {driver}, writable: {writable}"),
                &shown,
                &expected,
            );
        }
    }
}
