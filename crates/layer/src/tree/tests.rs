use super::*;
use crate::tar::{self, Member};

fn member(path: &str, kind: tar::Kind, link: &str) -> Member {
    Member {
        path: path.into(),
        link: link.into(),
        kind,
        mode: 0o644,
        ..Member::default()
    }
}

fn file(path: &str) -> Member {
    member(path, tar::Kind::File, "")
}

fn dir(path: &str) -> Member {
    member(path, tar::Kind::Dir, "")
}

fn symlink(path: &str, target: &str) -> Member {
    member(path, tar::Kind::Symlink, target)
}

fn hardlink(path: &str, target: &str) -> Member {
    member(path, tar::Kind::HardLink, target)
}

fn build(members: impl IntoIterator<Item = Member>) -> Result<Built, Error> {
    let mut builder = Builder::new(Limits::default(), None);
    for member in members {
        builder.add(member)?;
    }
    builder.finish(Links::Must)
}

/// One line for each entry: its path and what it is.
fn show(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut stack = vec![(String::new(), NodeId::ROOT)];
    while let Some((path, id)) = stack.pop() {
        for (name, child) in tree.entries(id) {
            let path = format!("{path}/{}", name.escape_ascii());
            let node = tree.node(child);
            let what = match &node.kind {
                Kind::Dir(dir) if dir.opaque => "/ opaque".to_owned(),
                Kind::Dir(_) => "/".to_owned(),
                Kind::File(_) if node.links > 1 => format!(" {} links", node.links),
                Kind::File(_) => String::new(),
                Kind::Symlink(target) => format!(" -> {}", target.escape_ascii()),
                Kind::Whiteout => " whiteout".to_owned(),
                other => format!(" {other:?}"),
            };
            lines.push(format!("{path}{what}"));
            stack.push((path, child));
        }
    }
    lines.sort();
    lines
}

#[track_caller]
fn check(members: impl IntoIterator<Item = Member>, expected: &[&str]) {
    assert_eq!(show(&build(members).unwrap().tree), expected);
}

#[test]
fn no_path_leads_out_of_the_tree() {
    check(
        [
            file("/abs"),
            file("../up"),
            file("a/../../b"),
            file("./c/./d"),
        ],
        &["/abs", "/b", "/c/", "/c/d", "/up"],
    );
    let escape = [
        dir("d/"),
        symlink("d/abs", "/etc"),
        symlink("d/up", "../../../.."),
        file("d/abs/passwd"),
        file("d/up/shadow"),
        hardlink("d/link", "../../../shadow"),
    ];
    check(
        escape,
        &[
            "/d/",
            "/d/abs -> /etc",
            "/d/link 2 links",
            "/d/up -> ../../../..",
            "/etc/",
            "/etc/passwd",
            "/shadow 2 links",
        ],
    );
}

#[test]
fn members_through_symlinks_land_where_the_links_lead() {
    check(
        [
            dir("usr/"),
            dir("usr/lib/"),
            symlink("lib", "usr/lib"),
            file("lib/so"),
            hardlink("so", "lib/so"),
        ],
        &[
            "/lib -> usr/lib",
            "/so 2 links",
            "/usr/",
            "/usr/lib/",
            "/usr/lib/so 2 links",
        ],
    );
    let circle = [symlink("a", "b"), symlink("b", "a"), file("a/f")];
    assert!(matches!(build(circle), Err(Error::Loop { .. })));
    assert!(matches!(
        build([file("f"), file("f/g")]),
        Err(Error::NotADirectory { .. })
    ));
}

#[test]
fn the_last_member_of_a_name_wins() {
    check([dir("d"), file("d/kept"), dir("d")], &["/d/", "/d/kept"]);
    check([dir("d"), file("d/lost"), file("d")], &["/d"]);
    // A directory over a file shows nothing of what lower layers have there: the file hid it.
    check(
        [file("d"), dir("d"), file("d/new")],
        &["/d/ opaque", "/d/new"],
    );
    check([file("f"), symlink("f", "t")], &["/f -> t"]);
    // The old inode lives on under its other name.
    check([file("a"), hardlink("b", "a"), file("a")], &["/a", "/b"]);
    check([file("a"), hardlink("a", "a")], &["/a"]);
    let mut second = dir("d");
    second.mode = 0o700;
    let built = build([dir("d"), second]).unwrap();
    let id = built.tree.find(b"d").unwrap();
    assert_eq!(built.tree.node(id).meta.mode, 0o700);
}

#[test]
fn whiteouts_hide_what_is_below_in_any_order() {
    check([file("d/.wh.gone")], &["/d/", "/d/gone whiteout"]);
    check([file(".wh.x"), file("x")], &["/x"]);
    check([file("x"), file(".wh.x")], &["/x"]);
    check(
        [file(".wh.x"), dir("x"), file("x/new")],
        &["/x/ opaque", "/x/new"],
    );
    check(
        [dir("x"), file("x/new"), file(".wh.x")],
        &["/x/ opaque", "/x/new"],
    );
    check([file(".wh.x"), file("x/new")], &["/x/ opaque", "/x/new"]);
    check(
        [file("d/.wh..wh..opq"), file("d/f")],
        &["/d/ opaque", "/d/f"],
    );
    check(
        [dir("d"), file("d/f"), file("d/.wh..wh..opq")],
        &["/d/ opaque", "/d/f"],
    );
    for nothing in [".wh.", "d/.wh..", ".wh..."] {
        assert!(
            matches!(build([file(nothing)]), Err(Error::Path { .. })),
            "{nothing}"
        );
    }
}

#[test]
fn aufs_files_vanish_but_links_to_them_stay() {
    check(
        [
            dir("./"),
            file(".wh..wh.aufs"),
            dir(".wh..wh.plnk"),
            file(".wh..wh.plnk/7.1"),
            hardlink("f", ".wh..wh.plnk/7.1"),
        ],
        &["/f"],
    );
}

#[test]
fn overlayfs_own_attributes_and_device_are_never_obeyed() {
    let mut evil = dir("d");
    for name in [
        "trusted.overlay.opaque",
        "user.overlay.redirect",
        "trusted.overlay.",
        "com.apple.x",
        "user.fine",
    ] {
        evil.xattrs
            .insert(name.as_bytes().into(), b"y".to_vec().into());
    }
    let mut link = symlink("l", "t");
    link.xattrs = evil.xattrs.clone();
    let built = build([evil, link]).unwrap();
    let names = |path: &[u8]| -> Vec<String> {
        let node = built.tree.node(built.tree.find(path).unwrap());
        node.meta
            .xattrs()
            .map(|(name, _)| name.escape_ascii().to_string())
            .collect()
    };
    assert_eq!(names(b"d"), ["user.fine"]);
    assert!(names(b"l").is_empty());
    check([member("c", tar::Kind::CharDevice, "")], &["/c whiteout"]);
}

#[test]
fn self_containment_is_a_matter_of_the_layer_alone() {
    let table = [
        (vec![dir("./"), dir("a/"), file("a/f")], true),
        (vec![dir("/"), file("f"), hardlink("g", "f")], true),
        (vec![dir("a/"), file("a/f")], false),
        (vec![dir("./"), file("a/f")], false),
        (vec![dir("./"), file("a/f"), dir("a/")], false),
        (vec![dir("./"), file("a/.wh.f")], false),
    ];
    for (members, expected) in table {
        let what = format!("{members:?}");
        assert_eq!(build(members).unwrap().self_contained, expected, "{what}");
    }
}

#[test]
fn a_missing_link_target_matters_only_when_the_layers_below_are_known() {
    let error = build([hardlink("l", "gone")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`l` is a hardlink to `gone`, which does not exist"
    );
    assert!(matches!(
        build([dir("d"), hardlink("l", "d")]),
        Err(Error::LinkToDirectory { .. })
    ));
    assert!(matches!(
        build([file(".wh.x"), hardlink("l", "x")]),
        Err(Error::LinkTarget { .. })
    ));
    let mut builder = Builder::new(Limits::default(), None);
    builder.add(hardlink("l", "gone")).unwrap();
    assert!(!builder.finish(Links::May).unwrap().self_contained);
}

#[test]
fn values_that_no_inode_can_have_are_refused() {
    let with = |change: fn(&mut Member)| {
        let mut member = file("f");
        change(&mut member);
        build([member])
    };
    let table: [fn(&mut Member); 9] = [
        |m| m.uid = -1,
        |m| m.gid = i64::from(u32::MAX),
        |m| m.uid = 1 << 32,
        |m| (m.kind, m.device) = (tar::Kind::CharDevice, (4096, 0)),
        |m| (m.kind, m.device) = (tar::Kind::BlockDevice, (0, 1 << 20)),
        |m| m.path = vec![b'n'; 256],
        |m| m.path = b"p/".repeat(2100),
        |m| (m.kind, m.link) = (tar::Kind::Symlink, Vec::new()),
        |m| (m.kind, m.link) = (tar::Kind::Symlink, vec![b'l'; 4096]),
    ];
    for (at, change) in table.into_iter().enumerate() {
        assert!(with(change).is_err(), "{at}");
    }
    assert!(with(|m| m.path = vec![b'n'; 255]).is_ok());
    assert!(matches!(build([file("/")]), Err(Error::Path { .. })));
}

#[test]
fn a_layer_cannot_take_more_memory_than_allowed() {
    let limits = Limits { memory: 1 << 20 };
    let mut builder = Builder::new(limits, None);
    let result = (0..1_000_000).try_for_each(|number| builder.add(file(&format!("f{number}"))));
    assert!(matches!(result, Err(Error::TooLarge { limit }) if limit == 1 << 20));
}

#[test]
fn ids_follow_the_names_whatever_the_members_order() {
    let one = build([
        dir("./"),
        dir("a"),
        file("a/x"),
        dir("b"),
        hardlink("b/y", "a/x"),
    ])
    .unwrap();
    let two = build([
        dir("b"),
        dir("a"),
        file("a/x"),
        hardlink("b/y", "a/x"),
        dir("./"),
    ])
    .unwrap();
    assert_eq!(one.tree, two.tree);
    let links: Vec<_> = one.tree.nodes().map(|(_, node)| node.links).collect();
    assert_eq!(links, [4, 2, 2, 2]);
}
