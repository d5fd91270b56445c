//! What a container changed, what a volume takes over, which driver is chosen.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test's helpers may do what its tests may"
)]

mod fixture;

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fixture::{World, inside, root};
use knarr_layer::{ChangeKind, Driver, IdMap, LayerPaths, changes, copy_up, mount};

fn image(world: &World) -> LayerPaths {
    world.layer(&[], |tree| {
        for folder in [
            "deep/er",
            "kept",
            "emptied",
            "replaced",
            "gone/below",
            "opaque",
        ] {
            std::fs::create_dir_all(tree.join(folder)).unwrap();
        }
        for file in [
            "deep/er/file",
            "deep/removed",
            "kept/file",
            "emptied/file",
            "replaced/file",
            "gone/below/file",
            "opaque/old",
            "opaque/again",
            "same",
            "mode",
            "tofolder",
        ] {
            std::fs::write(tree.join(file), "image").unwrap();
        }
        symlink("kept", tree.join("link")).unwrap();
    })
}

#[test]
fn changes_are_those_that_docker_tells() {
    if !root("changes_are_those_that_docker_tells") {
        return;
    }
    let world = World::new();
    let layers = [image(&world)];
    for (driver, idmap) in [
        (Driver::Erofs, None),
        (Driver::Overlay, None),
        (Driver::Erofs, Some(IdMap::shifted(500_000, 65_536))),
    ] {
        let name = format!("{driver}{}", idmap.is_some());
        let mut rootfs = world.rootfs(driver, &layers, &name);
        rootfs.idmap = idmap;
        assert_eq!(changes(&rootfs, &world.run()).unwrap(), []);
        let mounted = mount(&rootfs, &world.run()).unwrap();
        assert_eq!(changes(&rootfs, &world.run()).unwrap(), []);
        let at = |path: &str| inside(&mounted.root, path);
        std::fs::write(at("deep/er/file"), "longer than it was").unwrap();
        std::fs::remove_file(at("deep/removed")).unwrap();
        // Opened for writing, and copied up, but not written.
        drop(
            std::fs::OpenOptions::new()
                .append(true)
                .open(at("same"))
                .unwrap(),
        );
        std::fs::set_permissions(at("mode"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::remove_file(at("emptied/file")).unwrap();
        std::fs::remove_dir_all(at("gone")).unwrap();
        std::fs::remove_dir_all(at("opaque")).unwrap();
        std::fs::create_dir(at("opaque")).unwrap();
        std::fs::write(at("opaque/again"), "other text").unwrap();
        std::fs::write(at("opaque/new"), "").unwrap();
        std::fs::remove_dir_all(at("replaced")).unwrap();
        std::fs::write(at("replaced"), "a file").unwrap();
        std::fs::remove_file(at("tofolder")).unwrap();
        std::fs::create_dir(at("tofolder")).unwrap();
        std::fs::write(at("tofolder/inside"), "").unwrap();
        std::fs::remove_file(at("link")).unwrap();
        symlink("deep", at("link")).unwrap();
        std::fs::create_dir(at("new")).unwrap();
        std::fs::write(at("new/file"), "").unwrap();
        let told = |rootfs| {
            let lines = changes(rootfs, &world.run()).unwrap();
            let line = |change: &knarr_layer::Change| {
                let kind = match change.kind {
                    ChangeKind::Added => 'A',
                    ChangeKind::Changed => 'C',
                    ChangeKind::Deleted => 'D',
                };
                format!("{kind} {}", change.path.display())
            };
            lines.iter().map(line).collect::<Vec<_>>()
        };
        let expected = [
            "C /deep",
            "C /deep/er",
            "C /deep/er/file",
            "D /deep/removed",
            "C /emptied",
            "D /emptied/file",
            "D /gone",
            "C /link",
            "C /mode",
            "A /new",
            "A /new/file",
            "C /opaque",
            "C /opaque/again",
            "A /opaque/new",
            "D /opaque/old",
            "C /replaced",
            "C /tofolder",
            "A /tofolder/inside",
        ];
        assert_eq!(told(&rootfs), expected, "{driver}");
        drop(mounted);
        assert_eq!(told(&rootfs), expected, "{driver}");
    }
}

#[test]
fn a_volume_takes_over_what_the_image_has_there_and_nothing_else() {
    if !root("a_volume_takes_over_what_the_image_has_there_and_nothing_else") {
        return;
    }
    let world = World::new();
    let secret = world.path("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("key"), "secret").unwrap();
    let layer = world.layer(&[], |tree| {
        std::fs::create_dir_all(tree.join("var/lib/db/sub")).unwrap();
        std::fs::write(tree.join("var/lib/db/sub/file"), "data").unwrap();
        std::os::unix::fs::chown(tree.join("var/lib/db"), Some(70), Some(70)).unwrap();
        let mode = std::fs::Permissions::from_mode(0o2750);
        std::fs::set_permissions(tree.join("var/lib/db"), mode).unwrap();
        symlink("/var/lib/db", tree.join("db")).unwrap();
        symlink(&secret, tree.join("escape")).unwrap();
        symlink("../../../../../../../etc", tree.join("up")).unwrap();
        std::fs::write(tree.join("file"), "").unwrap();
    });
    let rootfs = world.rootfs(Driver::Erofs, &[layer], "c");
    let mounted = mount(&rootfs, &world.run()).unwrap();
    let volume = |name: &str| {
        let path = world.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let db = volume("db");
    let copy = |inside: &str, to: &Path| copy_up(mounted.root.as_fd(), Path::new(inside), to);
    assert!(copy("/db", &db).unwrap());
    let stat = std::fs::metadata(&db).unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.uid(), stat.gid()),
        (0o2750, 70, 70)
    );
    assert_eq!(std::fs::read(db.join("sub/file")).unwrap(), b"data");
    // Not where there is something already.
    assert!(!copy("/var", &db).unwrap());
    for path in ["/escape", "/up", "/missing", "/file"] {
        let empty = volume(path.trim_start_matches('/'));
        assert!(!copy(path, &empty).unwrap(), "{path}");
        assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0, "{path}");
    }
}

#[test]
fn the_driver_is_what_works_where_the_layers_are() {
    if !root("the_driver_is_what_works_where_the_layers_are")
        || std::env::var("KNARR_DRIVER").is_ok()
    {
        return;
    }
    let world = World::new();
    let chosen = Driver::choose(&world.path("data"), &world.run()).unwrap();
    assert_ne!(chosen, Driver::Overlay);
    assert_eq!(
        Driver::choose(&world.path("data"), &world.run()).unwrap(),
        chosen
    );
    assert_eq!(
        std::fs::read_dir(world.path("data/layers"))
            .unwrap()
            .count(),
        0
    );
    // EROFS takes no files that are on a tmpfs.
    let shm = knarr_fs::TempDir::new_in(Path::new("/dev/shm/knarr-layer-tests")).unwrap();
    let on_tmpfs = Driver::choose(&shm.path().join("data"), &world.path("run2")).unwrap();
    assert_ne!(on_tmpfs, Driver::Erofs);
    // Not even the answer for another file system is believed.
    let again = Driver::choose(&shm.path().join("data"), &world.run()).unwrap();
    assert_eq!(again, on_tmpfs);
}
