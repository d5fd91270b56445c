//! Which driver works here: tried, never guessed from a version.

use std::io::Write;
use std::path::Path;

use knarr_fs::{Durability, TempDir};

use super::Driver;
use crate::rootfs::{Base, LayerPaths, Rootfs, Upper};
use crate::store::Store;
use crate::{Error, Result, mount};

/// Where the answer is kept in the run root: `<driver> <device of the data root>`.
const ANSWER: &str = "driver";

/// The first driver that does all that a container needs with a tiny layer below `data_root`. The
/// answer holds until the machine boots or the data root is on another file system.
pub(super) fn choose(data_root: &Path, run_root: &Path) -> Result<Driver> {
    let device = rustix::fs::stat(data_root).map_or(0, |stat| stat.st_dev);
    let answer = run_root.join(ANSWER);
    if let Ok(known) = knarr_fs::read_to_string(&answer)
        && let Some((name, on)) = known.trim().split_once(' ')
        && on == device.to_string()
        && let Ok(driver) = name.parse()
    {
        return Ok(driver);
    }
    let (place, _held) = TempDir::new_held_in(&data_root.join("layers"))?;
    let driver = first_that_works(place.path()).map_err(|last| Error::NoDriver {
        data_root: data_root.to_owned(),
        last: Box::new(last),
    })?;
    knarr_fs::create_dir_all(run_root)?;
    let device = rustix::fs::stat(data_root).map_or(0, |stat| stat.st_dev);
    let text = format!("{driver} {device}\n");
    knarr_fs::write_atomic(&answer, text.as_bytes(), Durability::Volatile)?;
    Ok(driver)
}

fn first_that_works(place: &Path) -> Result<Driver> {
    let store = Store::open(place);
    let mut ingest = store.ingest(None)?;
    ingest
        .write_all(&tar())
        .map_err(knarr_fs::Error::of_io("write", "write", place))?;
    let id = ingest.finish(&[])?.id;
    let layer = LayerPaths {
        id,
        folder: store.path(&id),
    };
    let mut last = None;
    for driver in Driver::ALL {
        match works(driver, &store, &layer, place) {
            Ok(()) => return Ok(driver),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(Error::NotFound(id)))
}

/// Mounts it writable, reads from the layer and changes what is there.
fn works(driver: Driver, store: &Store, layer: &LayerPaths, place: &Path) -> Result<()> {
    driver.snapshotter().prepare(store, &layer.id)?;
    let container = TempDir::new_in(place)?;
    let rootfs = Rootfs {
        base: Base::Layers {
            driver,
            layers: vec![layer.clone()],
        },
        upper: Some(Upper {
            upper: container.path().join("upper"),
            work: container.path().join("work"),
        }),
        volatile: false,
        idmap: None,
    };
    let mounted = mount(&rootfs, &place.join("run"))?;
    let file = Path::new(NAME);
    let root = knarr_fs::Root::from_fd(mounted.root, place);
    let flags = rustix::fs::OFlags::RDWR;
    // Reads through the layer's file system, and has overlayfs copy it to the upper folder.
    root.read(file, 512)?;
    drop(root.open(file, flags, rustix::fs::Mode::empty())?);
    root.remove(file)?;
    Ok(())
}

/// The one file of the tiny layer.
const NAME: &str = "probe";

/// A tar (ustar, POSIX.1-2001) of one file with 512 bytes.
fn tar() -> Vec<u8> {
    let mut tar = vec![0u8; 512 * 4];
    let fields: [(usize, &[u8]); 9] = [
        (0, NAME.as_bytes()),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"00000001000\0"),
        (136, b"00000000000\0"),
        (148, b"        "),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ];
    for (at, bytes) in fields {
        for (to, from) in tar.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    let sum: u32 = tar.iter().take(512).map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (to, from) in tar.iter_mut().skip(148).zip(sum.as_bytes()) {
        *to = *from;
    }
    // Contents, so that the extra device is read.
    for to in tar.iter_mut().skip(512).take(512) {
        *to = b'x';
    }
    tar
}
