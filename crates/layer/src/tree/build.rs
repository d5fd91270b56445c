//! Members in, a tree out.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{
    Below, Content, Device, Dir, Entries, Error, File, Kind, Meta, Node, NodeId, Piece, Sources,
    Tree, Xattrs,
};
use crate::tar::{self, Member, show};

/// What marks a whiteout (image-spec layer.md): the rest of the name is what is hidden.
const WHITEOUT: &[u8] = b".wh.";
/// Hides all that lower layers have in the directory it is in.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own files, which old layers carry: hardlinks may lead into them, nothing else.
const AUFS: &[u8] = b".wh..wh.";

/// Linux's own limits (limits.h; path_resolution(7)).
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;
const SYMLINKS_MAX: usize = 40;
/// How deep directories may be; no path of 4095 bytes is deeper.
const DEPTH_MAX: usize = 2048;
/// The largest attribute value that an index can hold.
const XATTR_MAX: usize = 65535;

/// What a node takes besides its names: itself (80 bytes), its directory entry (9), its numbers
/// while nodes are put in order and the index is laid out (16), and what growing arrays hold ready.
/// Measured: 130 bytes for a file with a name of 13, 157 for a directory.
const NODE_COST: usize = 130;

/// How much memory a layer may make a [`Builder`] take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// An estimate in bytes of what the nodes, names and attributes take, for all builders of this
    /// process together: several layers are taken in at once.
    pub memory: usize,
}

impl Default for Limits {
    /// 512 MiB: some 3,500,000 files.
    fn default() -> Self {
        Self { memory: 512 << 20 }
    }
}

/// What all trees that are being built take.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// What one tree takes of that, until it is dropped.
#[derive(Debug, Default)]
struct Share(usize);

impl Share {
    /// Takes more; false where there would be more than `limit` in all.
    fn grow(&mut self, bytes: usize, limit: usize) -> bool {
        self.0 = self.0.saturating_add(bytes);
        TAKEN
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes)
            <= limit
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A finished tree, and whether it stands for itself.
#[derive(Debug)]
pub struct Built {
    /// The tree.
    pub tree: Tree,
    /// Whether every member's parents, the root included, came before it in the layer, and every
    /// hardlink's target too, and the root is not opaque. It depends on the layer alone. If not, the tree is right only for the
    /// lower layers it was built over.
    pub self_contained: bool,
    _share: Share,
}

/// Builds a [`Tree`] from the members of a layer, in their order.
///
/// Paths are resolved inside the tree and cannot leave it: a leading `/` and `.` mean nothing, `..`
/// is taken off lexically and stops at the root (as containerd does with `path.Clean`), symlinks on
/// the way to a member are followed within the tree. The last member of a name wins: a directory
/// over a directory keeps what is in it, everything else replaces.
///
/// What is not in the layer is looked up in the layers [`Below`]: a missing parent directory gets
/// the metadata it has there (overlayfs shows a directory as its uppermost layer has it), a symlink
/// there is followed, and a hardlink's target is copied up with all its names, as a link(2) on a
/// mounted image would do. Without layers below, a missing parent is 0755, root, 1970.
#[derive(Debug)]
pub struct Builder<'a> {
    limits: Limits,
    below: Option<&'a mut dyn Below>,
    nodes: Vec<Node>,
    share: Share,
    has_root: bool,
    self_contained: bool,
    /// Build on without a hardlink whose target is missing; [`Builder::finish`] tells it.
    missing_link: Option<Error>,
}

impl std::fmt::Debug for dyn Below + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Below")
    }
}

/// The names from the root to a node, with the nodes.
type Trail = Vec<(Box<[u8]>, NodeId)>;

impl<'a> Builder<'a> {
    /// A builder over lower layers, or over nothing: for the lowest layer, or to find out whether
    /// a layer is self-contained.
    pub fn new(limits: Limits, below: Option<&'a mut dyn Below>) -> Self {
        Self {
            limits,
            below,
            nodes: vec![directory(Meta::implied_dir(), false)],
            share: Share::default(),
            has_root: false,
            self_contained: true,
            missing_link: None,
        }
    }

    /// Takes the next member.
    ///
    /// # Errors
    /// Where it has no place in a file tree, or the tree grows beyond the limits.
    pub fn add(&mut self, member: Member) -> Result<(), Error> {
        let shown = || show(&member.path);
        let names = clean(&member.path);
        check(&member.path, &names)?;
        let Some((name, parents)) = names.split_last() else {
            return match member.kind {
                tar::Kind::Dir => {
                    self.has_root = true;
                    let meta = self.meta(&member)?;
                    self.set_meta(NodeId::ROOT, meta);
                    Ok(())
                }
                _ => Err(Error::Path {
                    path: shown(),
                    why: "it is the root directory",
                }),
            };
        };
        self.charge(&member)?;
        let trail = self.walk(parents, &member.path)?;
        let dir = end(&trail);
        if *name == OPAQUE {
            self.set_opaque(dir);
            return Ok(());
        }
        if let Some(hidden) = name
            .strip_prefix(WHITEOUT)
            .filter(|_| !name.starts_with(AUFS))
        {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::Path {
                    path: shown(),
                    why: "it is a whiteout of nothing",
                });
            }
            // It hides what is below, never what this layer itself has (image-spec layer.md).
            match self.child(dir, hidden) {
                Some(id) => self.set_opaque(id),
                None => {
                    let id = self.push(whiteout());
                    self.link(dir, hidden, id);
                }
            }
            return Ok(());
        }
        if member.kind == tar::Kind::HardLink {
            return self.hardlink(&member, dir, name);
        }
        let node = self.node(&member)?;
        self.place(dir, name, node);
        Ok(())
    }

    /// The tree.
    ///
    /// # Errors
    /// [`Error::Below`]; without layers below also [`Error::LinkTarget`], but only if `links` says
    /// that they matter.
    pub fn finish(mut self, links: Links) -> Result<Built, Error> {
        if let (Some(error), Links::Must) = (self.missing_link.take(), links) {
            return Err(error);
        }
        if !self.has_root {
            self.self_contained = false;
            if let Some(node) = self.lookup(&[], b"/")? {
                self.set_meta(NodeId::ROOT, node.meta);
            }
        }
        if let Kind::Dir(root) = &mut self.root_mut().kind {
            root.entries.retain(|name| !name.starts_with(AUFS));
            if root.opaque {
                self.self_contained = false;
                self.hide_all_below()?;
            }
        }
        Ok(Built {
            self_contained: self.self_contained,
            tree: Tree::from_nodes(in_order(self.nodes)),
            _share: self.share,
        })
    }

    /// overlayfs takes no notice of an opaque mark on a layer's root, so that everything below is
    /// hidden name by name.
    fn hide_all_below(&mut self) -> Result<(), Error> {
        let names = match &mut self.below {
            Some(below) => below.root_names()?,
            None => return Ok(()),
        };
        for name in names {
            match self.child(NodeId::ROOT, &name) {
                Some(id) => self.set_opaque(id),
                None => {
                    self.charge_bytes(NODE_COST + name.len())?;
                    let id = self.push(whiteout());
                    self.link(NodeId::ROOT, &name, id);
                }
            }
        }
        Ok(())
    }

    fn root_mut(&mut self) -> &mut Node {
        &mut self.nodes[0]
    }

    fn charge(&mut self, member: &Member) -> Result<(), Error> {
        let xattrs: usize = member
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 96)
            .sum();
        let segments = member
            .sparse
            .as_ref()
            .map_or(0, |map| map.len() * size_of::<Piece>());
        let names = member.path.len() + member.link.len();
        self.charge_bytes(NODE_COST + names + xattrs + segments)
    }

    fn charge_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        match self.share.grow(bytes, self.limits.memory) {
            true => Ok(()),
            false => Err(Error::TooLarge {
                limit: self.limits.memory,
            }),
        }
    }

    fn push(&mut self, node: Node) -> NodeId {
        // The memory limit keeps the count far below 2^32.
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(node);
        id
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[dir.index()].kind {
            Kind::Dir(dir) => dir.entries.get(name),
            _ => None,
        }
    }

    fn link(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        if let Kind::Dir(dir) = &mut self.nodes[dir.index()].kind {
            dir.entries.insert(name, id);
        }
    }

    fn set_meta(&mut self, id: NodeId, meta: Meta) {
        self.nodes[id.index()].meta = meta;
    }

    /// Where the node is a directory.
    fn set_opaque(&mut self, id: NodeId) {
        if let Kind::Dir(dir) = &mut self.nodes[id.index()].kind {
            dir.opaque = true;
        }
    }

    /// Puts a node under a name, over what is there.
    fn place(&mut self, dir: NodeId, name: &[u8], mut node: Node) {
        let before = self.child(dir, name);
        if let Kind::Dir(new) = &mut node.kind
            && let Some(before) = before
        {
            if let Kind::Dir(_) = &self.nodes[before.index()].kind {
                return self.set_meta(before, node.meta);
            }
            // What stood here (a whiteout, a file) hid what is below, and a directory does not.
            new.opaque = true;
        }
        let id = self.push(node);
        self.link(dir, name, id);
    }

    /// The directory that `names` lead to, made where it is missing.
    fn walk(&mut self, names: &[&[u8]], path: &[u8]) -> Result<Trail, Error> {
        let mut trail = Trail::new();
        let mut todo: Vec<Box<[u8]>> = names.iter().rev().map(|&name| name.into()).collect();
        let mut hops = 0;
        while let Some(name) = todo.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    trail.pop();
                    continue;
                }
                _ => {}
            }
            if name.len() > NAME_MAX || trail.len() >= DEPTH_MAX {
                return Err(Error::Path {
                    path: show(path),
                    why: "a symbolic link on its way makes it too long",
                });
            }
            let dir = end(&trail);
            let found = match self.child(dir, &name) {
                Some(id) => match &self.nodes[id.index()].kind {
                    Kind::Dir(_) => Step::Enter(id),
                    Kind::Symlink(target) => Step::Follow(target.clone()),
                    Kind::Whiteout => {
                        self.self_contained = false;
                        let id = self.push(directory(Meta::implied_dir(), true));
                        self.link(dir, &name, id);
                        Step::Enter(id)
                    }
                    _ => Step::Blocked,
                },
                None => {
                    self.self_contained = false;
                    self.missing(&trail, &name, path)?
                }
            };
            match found {
                Step::Enter(id) => trail.push((name, id)),
                Step::Follow(target) => {
                    hops += 1;
                    if hops > SYMLINKS_MAX {
                        return Err(Error::Loop { path: show(path) });
                    }
                    if target.first() == Some(&b'/') {
                        trail.clear();
                    }
                    let names = target.split(|&byte| byte == b'/').rev();
                    todo.extend(names.map(|name| -> Box<[u8]> { name.into() }));
                }
                Step::Blocked => return Err(Error::NotADirectory { path: show(path) }),
            }
        }
        Ok(trail)
    }

    /// A component that this layer does not have.
    fn missing(&mut self, trail: &Trail, name: &[u8], path: &[u8]) -> Result<Step, Error> {
        let below = if self.hides_below(trail) {
            None
        } else {
            self.lookup(&names_of(trail, name), path)?
        };
        let meta = match below {
            Some(Node {
                meta,
                kind: Kind::Dir(_),
                ..
            }) => meta,
            Some(Node {
                kind: Kind::Symlink(target),
                ..
            }) => return Ok(Step::Follow(target)),
            Some(_) => return Ok(Step::Blocked),
            None => Meta::implied_dir(),
        };
        self.charge_bytes(NODE_COST + name.len())?;
        let id = self.push(directory(meta, false));
        self.link(end(trail), name, id);
        Ok(Step::Enter(id))
    }

    /// Whether one of these directories hides what lower layers have in it.
    fn hides_below(&self, trail: &Trail) -> bool {
        std::iter::once(NodeId::ROOT)
            .chain(trail.iter().map(|(_, id)| *id))
            .any(|id| matches!(&self.nodes[id.index()].kind, Kind::Dir(dir) if dir.opaque))
    }

    fn lookup(&mut self, names: &[&[u8]], _path: &[u8]) -> Result<Option<Node>, Error> {
        match &mut self.below {
            Some(below) => below.lookup(names),
            None => Ok(None),
        }
    }

    fn hardlink(&mut self, member: &Member, dir: NodeId, name: &[u8]) -> Result<(), Error> {
        let (shown, target) = (show(&member.path), show(&member.link));
        let names = clean(&member.link);
        check(&member.link, &names)?;
        let Some((last, parents)) = names.split_last() else {
            return Err(Error::LinkToDirectory {
                path: shown,
                target,
            });
        };
        let trail = self.walk(parents, &member.link)?;
        let found = match self.child(end(&trail), last) {
            Some(id) if self.nodes[id.index()].kind == Kind::Whiteout => None,
            Some(id) => Some(id),
            None => {
                self.self_contained = false;
                self.copy_up(&trail, last, &member.link)?
            }
        };
        let Some(id) = found else {
            let error = Error::LinkTarget {
                path: shown,
                target,
            };
            if self.below.is_some() {
                return Err(error);
            }
            self.missing_link.get_or_insert(error);
            return Ok(());
        };
        if let Kind::Dir(_) = self.nodes[id.index()].kind {
            return Err(Error::LinkToDirectory {
                path: shown,
                target,
            });
        }
        self.link(dir, name, id);
        Ok(())
    }

    /// Takes a lower layer's file into this one, with all the names it has there.
    fn copy_up(
        &mut self,
        trail: &Trail,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<NodeId>, Error> {
        if self.hides_below(trail) {
            return Ok(None);
        }
        let names = names_of(trail, name);
        let Some(node) = self.lookup(&names, path)? else {
            return Ok(None);
        };
        let others = match &mut self.below {
            Some(below) if node.links > 1 && !matches!(node.kind, Kind::Dir(_)) => {
                below.links(&names)?
            }
            _ => Vec::new(),
        };
        let pieces = match &node.kind {
            Kind::File(file) => file.pieces().count(),
            _ => 0,
        };
        self.charge_bytes(NODE_COST + name.len() + pieces * size_of::<Piece>())?;
        let is_dir = matches!(node.kind, Kind::Dir(_));
        let id = self.push(node);
        if is_dir {
            // Not linked anywhere: it only tells the caller what it is.
            return Ok(Some(id));
        }
        self.link(end(trail), name, id);
        for other in others {
            let Some((name, parents)) = other.split_last() else {
                continue;
            };
            self.charge_bytes(name.len() + 64)?;
            let parents: Vec<&[u8]> = parents.iter().map(|name| &name[..]).collect();
            // Where this layer has something else at or on the way to that name, it stays.
            match self.walk(&parents, path) {
                Ok(trail)
                    if self.child(end(&trail), name).is_none() && !self.hides_below(&trail) =>
                {
                    self.link(end(&trail), name, id);
                }
                Ok(_) | Err(Error::NotADirectory { .. } | Error::Loop { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(id))
    }

    /// A member as a node.
    fn node(&mut self, member: &Member) -> Result<Node, Error> {
        let meta = self.meta(member)?;
        let kind = match member.kind {
            tar::Kind::Dir => return Ok(directory(meta, false)),
            tar::Kind::Symlink => {
                let target = &member.link;
                if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                    return Err(Error::Path {
                        path: show(&member.path),
                        why: "its symbolic link is empty or longer than 4095 bytes",
                    });
                }
                Kind::Symlink(target.as_slice().into())
            }
            tar::Kind::CharDevice if member.device == (0, 0) => Kind::Whiteout,
            tar::Kind::CharDevice => Kind::CharDevice(device(member)?),
            tar::Kind::BlockDevice => Kind::BlockDevice(device(member)?),
            tar::Kind::Fifo => Kind::Fifo,
            tar::Kind::File | tar::Kind::HardLink => Kind::File(file(member)),
        };
        Ok(Node {
            meta,
            links: 0,
            kind,
        })
    }

    fn meta(&self, member: &Member) -> Result<Meta, Error> {
        let id = |what, value: i64| {
            u32::try_from(value)
                .ok()
                // chown(2) takes -1 for "leave it".
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| invalid(member, what, value))
        };
        Ok(Meta {
            mode: u16::try_from(member.mode & 0o7777).unwrap_or(0),
            uid: id("owner", member.uid)?,
            gid: id("group", member.gid)?,
            mtime: member.mtime,
            xattrs: super::boxed(xattrs(member)?),
        })
    }
}

/// Whether hardlinks without a target are an error yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// They are: all layers below are known.
    Must,
    /// They are not: the tree will be built again over the layers below.
    May,
}

/// What a component on the way to a member is.
enum Step {
    Enter(NodeId),
    Follow(Box<[u8]>),
    Blocked,
}

fn directory(meta: Meta, opaque: bool) -> Node {
    Node {
        meta,
        links: 0,
        kind: Kind::Dir(Box::new(Dir {
            entries: Entries::default(),
            opaque,
        })),
    }
}

fn whiteout() -> Node {
    Node {
        meta: Meta::default(),
        links: 0,
        kind: Kind::Whiteout,
    }
}

/// The node a trail ends at.
fn end(trail: &Trail) -> NodeId {
    trail.last().map_or(NodeId::ROOT, |(_, id)| *id)
}

fn names_of<'n>(trail: &'n Trail, last: &'n [u8]) -> Vec<&'n [u8]> {
    trail
        .iter()
        .map(|(name, _)| &name[..])
        .chain([last])
        .collect()
}

/// The names of a path, `.` and `..` resolved lexically and never above the root.
fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names
}

fn check(path: &[u8], names: &[&[u8]]) -> Result<(), Error> {
    let why = if path.len() > PATH_MAX {
        "it is longer than 4095 bytes"
    } else if names.iter().any(|name| name.len() > NAME_MAX) {
        "a name in it is longer than 255 bytes"
    } else if path.contains(&0) {
        "it contains a NUL"
    } else {
        return Ok(());
    };
    Err(Error::Path {
        path: show(path),
        why,
    })
}

fn invalid(member: &Member, what: &'static str, value: i64) -> Error {
    Error::Value {
        path: show(&member.path),
        what,
        value,
    }
}

/// Linux's device numbers have 12 and 20 bits.
fn device(member: &Member) -> Result<Device, Error> {
    let part = |what, value: i64, most: u32| {
        u32::try_from(value)
            .ok()
            .filter(|number| *number <= most)
            .ok_or_else(|| invalid(member, what, value))
    };
    Ok(Device {
        major: part("the major device number", member.device.0, 0xfff)?,
        minor: part("the minor device number", member.device.1, 0xf_ffff)?,
    })
}

/// Where a member's bytes are.
fn file(member: &Member) -> File {
    let content = match &member.sparse {
        None if member.size > 0 => Content::Tar(member.data),
        None => Content::Pieces(Box::default()),
        Some(segments) => {
            let mut offset = member.data;
            let pieces = segments.iter().map(|segment| {
                let piece = Piece {
                    at: segment.offset,
                    len: segment.len,
                    source: Sources::TAR,
                    offset,
                };
                offset = offset.saturating_add(segment.len);
                piece
            });
            Content::Pieces(pieces.collect())
        }
    };
    File {
        size: member.size,
        content,
    }
}

/// The attributes that Linux can hold: overlayfs' own are dropped, or overlayfs would obey them;
/// so are foreign namespaces, and `user.` on what is neither file nor directory (xattr(7)).
fn xattrs(member: &Member) -> Result<Xattrs, Error> {
    let takes_user = matches!(member.kind, tar::Kind::File | tar::Kind::Dir);
    let mut kept = Xattrs::new();
    for (name, value) in &member.xattrs {
        let overlays = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        let known = (takes_user && name.starts_with(b"user."))
            || name.starts_with(b"trusted.")
            || name.starts_with(b"security.")
            || matches!(
                &name[..],
                b"system.posix_acl_access" | b"system.posix_acl_default"
            );
        if overlays || !known {
            continue;
        }
        if name.len() > NAME_MAX
            || name.ends_with(b".")
            || name.contains(&0)
            || value.len() > XATTR_MAX
        {
            return Err(Error::Path {
                path: show(&member.path),
                why: "an extended attribute is nameless or too large",
            });
        }
        kept.insert(name.clone(), value.clone());
    }
    Ok(kept)
}

/// Puts the reachable nodes into depth-first order of names and counts their links.
fn in_order(mut nodes: Vec<Node>) -> Vec<Node> {
    const NONE: u32 = u32::MAX;
    let mut number = vec![NONE; nodes.len()];
    let mut count = 0;
    let mut stack = vec![NodeId::ROOT];
    while let Some(id) = stack.pop() {
        if number[id.index()] != NONE {
            continue;
        }
        number[id.index()] = count;
        count += 1;
        if let Kind::Dir(dir) = &nodes[id.index()].kind {
            stack.extend(dir.entries.iter().rev().map(|(_, id)| id));
        }
    }
    let reached = count as usize;
    for number in number.iter_mut().filter(|number| **number == NONE) {
        *number = count;
        count += 1;
    }
    let mut links = vec![0u32; reached];
    for at in 0..nodes.len() {
        let new = number[at] as usize;
        if new >= reached {
            continue;
        }
        let mut subdirectories = 0;
        let mut kind = std::mem::replace(&mut nodes[at].kind, Kind::Fifo);
        if let Kind::Dir(dir) = &mut kind {
            for entry in dir.entries.nodes_mut() {
                let old = entry.index();
                *entry = NodeId(number[old]);
                // A directory whose turn it is just now is not below itself.
                if matches!(nodes[old].kind, Kind::Dir(_)) {
                    subdirectories += 1;
                } else {
                    links[entry.index()] += 1;
                }
            }
            links[new] += 2 + subdirectories;
        }
        nodes[at].kind = kind;
    }
    // Each swap brings one node to its place.
    for at in 0..nodes.len() {
        while number[at] as usize != at {
            let to = number[at] as usize;
            nodes.swap(at, to);
            number.swap(at, to);
        }
    }
    nodes.truncate(reached);
    nodes.shrink_to_fit();
    for (node, links) in nodes.iter_mut().zip(links) {
        node.links = links;
    }
    nodes
}
