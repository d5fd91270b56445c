//! Makes a root: layers from their driver, overlayfs on top, all of it detached.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use knarr_fs::{Inode, tree};
use knarr_sys::mount::{Change, mount_setattr};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags};

use crate::filesystem::{self, Context, failed};
use crate::holder::Held;
use crate::rootfs::{Base, IdMap, Rootfs, Upper};
use crate::store::LayerId;
use crate::{Error, Result, driver, host, private};

/// What messages call the stacked layers.
const ROOT: &str = "the container's root";

/// How overlayfs is told to behave: as the layers are foreign, it must not obey marks in them
/// (`redirect_dir`, `metacopy`), must not tie the upper folder to one superblock of a layer
/// (`index`), and must show one file system with inode numbers of its own (`xino`), or `du -x`
/// leaves out every file of the image.
const OPTIONS: [(&str, &str); 4] = [
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("index", "off"),
    ("xino", "on"),
];

/// A root that was made. Dropping it unmounts what nobody else uses.
#[derive(Debug)]
pub struct Mounted {
    /// The root, a detached mount (for move_mount(2), or as the directory to start from).
    pub root: OwnedFd,
    /// The layers' own mounts. Whoever keeps them, usually the monitor for the container's life,
    /// lends them to later starts of the same image, so that a layer has one page cache.
    pub held: Vec<HeldLayer>,
}

impl Mounted {
    /// Attaches the root to a folder in the caller's mount namespace. The kernel keeps what it is
    /// made of; this process lends the layers to nobody any more.
    ///
    /// # Errors
    /// As move_mount(2).
    pub fn attach(self, path: &Path) -> Result<()> {
        filesystem::attach(self.root.as_fd(), CWD, path, &path.display())
    }
}

/// A layer that this process has open and, if it is a mount, lends to others.
#[derive(Debug)]
pub struct HeldLayer {
    id: LayerId,
    open: Open,
}

#[derive(Debug)]
enum Open {
    /// An unpacked tree.
    Tree(OwnedFd),
    /// A mount with its holder's record.
    Mount(Held),
}

impl HeldLayer {
    pub(crate) fn tree(id: LayerId, directory: OwnedFd) -> Self {
        Self {
            id,
            open: Open::Tree(directory),
        }
    }

    pub(crate) fn mounted(id: LayerId, held: Held) -> Self {
        Self {
            id,
            open: Open::Mount(held),
        }
    }

    /// Which layer.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Its root directory, in overlayfs' form (O_PATH).
    pub fn directory(&self) -> BorrowedFd<'_> {
        match &self.open {
            Open::Tree(directory) => directory.as_fd(),
            Open::Mount(held) => held.mount.as_fd(),
        }
    }
}

/// Makes the root that `rootfs` describes. Nothing appears in the mount table of the caller's
/// mount namespace, and dropping the result takes everything back.
///
/// Missing upper and work folders are made, the folders that they are in must exist. `run_root` is
/// where holders of layer mounts find each other.
///
/// # Errors
/// [`Error::Mount`](crate::Error::Mount) and the file operations' errors.
pub fn mount(rootfs: &Rootfs, run_root: &Path) -> Result<Mounted> {
    let userns = rootfs.idmap.as_ref().map(userns).transpose()?;
    let (driver, layers) = match &rootfs.base {
        Base::Host => return host::mount(rootfs.idmap.as_ref()),
        Base::Layers { driver, layers } => (*driver, layers),
    };
    let held = driver.snapshotter().open(layers, run_root)?;
    let owner = owner(rootfs.idmap.as_ref(), 0, 0)?;
    if let Some(upper) = &rootfs.upper {
        prepare_upper(upper, held.last(), rootfs.idmap.as_ref())?;
        if rootfs.volatile {
            forget_volatile(upper)?;
        }
    }
    // overlayfs wants two layers where there is no upper one, and one in any case.
    let empty = if held.is_empty() || (held.len() == 1 && rootfs.upper.is_none()) {
        Some(filesystem::empty(owner)?)
    } else {
        None
    };
    if let (Some(empty), true, None) = (&empty, held.is_empty(), &rootfs.upper) {
        let root = filesystem::clone(empty.as_fd(), &ROOT)?;
        return Ok(Mounted { root, held });
    }
    let stack = Stack {
        layers: held.iter().collect(),
        empty: empty.as_ref().map(AsFd::as_fd),
        upper: rootfs.upper.as_ref(),
        volatile: rootfs.volatile,
        userns: userns.as_ref().map(AsFd::as_fd),
    };
    let root = match driver.stacking() {
        driver::Stacking::Descriptors => stack.by_descriptors()?,
        driver::Stacking::Paths => stack.by_paths()?,
    };
    Ok(Mounted { root, held })
}

/// A user namespace with these maps that nothing runs in, for idmapped mounts.
///
/// # Errors
/// [`Error::Mount`](crate::Error::Mount): EINVAL for maps that overlap, EPERM without the right.
pub fn userns(idmap: &IdMap) -> Result<OwnedFd> {
    let lines = |ranges: &[knarr_spec::runtime::IdMapping]| {
        ranges.iter().fold(String::new(), |mut lines, range| {
            let (inside, outside, size) = (range.container_id, range.host_id, range.size);
            lines.push_str(&format!("{inside} {outside} {size}\n"));
            lines
        })
    };
    knarr_sys::namespace::user_namespace(&lines(&idmap.uids), &lines(&idmap.gids)).map_err(
        |cause| Error::Mount {
            what: "layers for a user namespace".to_owned(),
            kernel: None,
            cause,
        },
    )
}

/// Makes a detached mount show the ids of a user namespace.
pub(crate) fn shift(
    mount: BorrowedFd<'_>,
    userns: BorrowedFd<'_>,
    what: &dyn Display,
) -> Result<()> {
    let change = Change {
        idmap: Some(userns),
        ..Change::default()
    };
    mount_setattr(mount, c"", &change).map_err(|cause| Error::Mount {
        what: what.to_string(),
        kernel: None,
        cause,
    })
}

/// What is stacked.
struct Stack<'a> {
    /// Bottom first.
    layers: Vec<&'a HeldLayer>,
    /// An empty layer to go below them.
    empty: Option<BorrowedFd<'a>>,
    upper: Option<&'a Upper>,
    volatile: bool,
    userns: Option<BorrowedFd<'a>>,
}

impl Stack<'_> {
    fn attributes(&self) -> MountAttrFlags {
        match self.upper {
            Some(_) => MountAttrFlags::empty(),
            None => MountAttrFlags::MOUNT_ATTR_RDONLY,
        }
    }

    /// Everything by descriptor (`lowerdir+` as FSCONFIG_SET_FD, Linux 6.13; of detached mounts,
    /// Linux 6.15).
    fn by_descriptors(&self) -> Result<OwnedFd> {
        let context = Context::new("overlay", ROOT)?;
        context.string("source", "overlay")?;
        for (key, value) in OPTIONS {
            context.string(key, value)?;
        }
        // overlayfs clones them when it is created: until then they must not be closed.
        let mut keep = Vec::new();
        // The topmost layer comes first.
        for layer in self.layers.iter().rev() {
            match self.userns {
                Some(userns) => {
                    let shifted = filesystem::clone(layer.directory(), &ROOT)?;
                    shift(shifted.as_fd(), userns, &ROOT)?;
                    context.directory("lowerdir+", shifted.as_fd())?;
                    keep.push(shifted);
                }
                None => context.directory("lowerdir+", layer.directory())?,
            }
        }
        if let Some(empty) = self.empty {
            context.directory("lowerdir+", empty)?;
        }
        if let Some(upper) = self.upper {
            for (key, path) in [("upperdir", &upper.upper), ("workdir", &upper.work)] {
                let directory = knarr_fs::Root::open_path(path)?;
                context.directory(key, directory.as_fd())?;
            }
        }
        if self.volatile && self.upper.is_some() {
            context.flag("volatile")?;
        }
        context.mount(self.attributes())
    }

    /// By mount(2) in a private mount namespace, for every kernel before. Names are short and
    /// relative, so that as many layers fit into the one page of options as overlayfs takes.
    fn by_paths(&self) -> Result<OwnedFd> {
        // A tree's folder is in the caller's namespace, and can be cloned from there only.
        let trees = self.layers.iter().map(|layer| match layer.open {
            Open::Mount(_) => Ok(None),
            Open::Tree(_) => filesystem::clone(layer.directory(), &ROOT).map(Some),
        });
        let trees = trees.collect::<Result<Vec<_>>>()?;
        private::run(|| {
            let mut lower = Vec::new();
            for (layer, tree) in self.layers.iter().zip(&trees).rev() {
                let name = lower.len().to_string();
                let mount = tree.as_ref().map_or(layer.directory(), AsFd::as_fd);
                attach(mount, &name)?;
                if let Some(userns) = self.userns {
                    let shifted = filesystem::clone_path(Path::new(&name), false)?;
                    shift(shifted.as_fd(), userns, &ROOT)?;
                    // On top of the one that is not shifted.
                    filesystem::attach(shifted.as_fd(), CWD, Path::new(&name), &ROOT)?;
                }
                lower.push(name);
            }
            if let Some(empty) = self.empty {
                let name = lower.len().to_string();
                attach(empty, &name)?;
                lower.push(name);
            }
            let mut options = OsString::from(format!("lowerdir={}", lower.join(":")));
            for (key, value) in OPTIONS {
                options.push(format!(",{key}={value}"));
            }
            if let Some(upper) = self.upper {
                options.push(",upperdir=");
                options.push(escape(&upper.upper));
                options.push(",workdir=");
                options.push(escape(&upper.work));
            }
            if self.volatile && self.upper.is_some() {
                options.push(",volatile");
            }
            if options.len() >= PAGE {
                return Err(failed(&ROOT, "mount")(Errno::NAMETOOLONG));
            }
            make_dir(Path::new("root"))?;
            let flags = match self.upper {
                Some(_) => MountFlags::empty(),
                None => MountFlags::RDONLY,
            };
            let options = std::ffi::CString::new(options.into_vec())
                .map_err(|_| failed(&ROOT, "mount")(Errno::INVAL))?;
            rustix::mount::mount("overlay", "root", "overlay", flags, options.as_c_str())
                .map_err(failed(&ROOT, "mount"))?;
            filesystem::clone_path(Path::new("root"), false)
        })
    }
}

/// mount(2) takes one page of options; the smallest there is.
const PAGE: usize = 4096;

/// Attaches a mount to a new directory.
fn attach(mount: BorrowedFd<'_>, name: &str) -> Result<()> {
    make_dir(Path::new(name))?;
    filesystem::attach(mount, CWD, Path::new(name), &ROOT)
}

fn make_dir(path: &Path) -> Result<()> {
    rustix::fs::mkdirat(CWD, path, Mode::RWXU).map_err(failed(&ROOT, "mkdirat"))
}

/// overlayfs splits its options at commas and colons, unless a backslash is before them.
fn escape(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

/// The ids outside of ids inside.
fn owner(idmap: Option<&IdMap>, uid: u32, gid: u32) -> Result<(u32, u32)> {
    let Some(idmap) = idmap else {
        return Ok((uid, gid));
    };
    match (idmap.uid_outside(uid), idmap.gid_outside(gid)) {
        (Some(uid), Some(gid)) => Ok((uid, gid)),
        _ => Err(Error::Mount {
            what: format!("{ROOT}: user {uid} or group {gid} is not in the user namespace"),
            kernel: None,
            cause: knarr_sys::Failure {
                call: "mount_setattr",
                errno: Errno::OVERFLOW,
            },
        }),
    }
}

/// Makes the upper and work folders where they are missing. The merged root shows the upper
/// folder's own owner, mode, times and attributes, so a new one gets those of the image's root.
fn prepare_upper(upper: &Upper, top: Option<&HeldLayer>, idmap: Option<&IdMap>) -> Result<()> {
    match rustix::fs::mkdir(&upper.work, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(knarr_fs::Error::of("create", "mkdir", &upper.work)(errno).into()),
    }
    match rustix::fs::lstat(&upper.upper) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(knarr_fs::Error::of("stat", "lstat", &upper.upper)(errno).into()),
    }
    // Complete before it is there: a kill in between leaves a folder that the next start removes.
    let new: PathBuf = upper.upper.with_file_name(".upper");
    knarr_fs::remove_tree(&new)?;
    let of = |verb, call| knarr_fs::Error::of(verb, call, &new);
    rustix::fs::mkdir(&new, Mode::RWXU).map_err(of("create", "mkdir"))?;
    knarr_fs::failpoint!("layer.upper");
    let inode = Inode::open_at(CWD, new.as_os_str(), new.clone())?;
    match top {
        Some(top) => {
            let top = top.directory().try_clone_to_owned();
            let top = top.map_err(knarr_fs::Error::of_io("open", "fcntl", Path::new(ROOT)))?;
            let top = Inode::from_fd(top, ROOT);
            inode.copy_metadata(&top, tree::is_portable_xattr)?;
            if idmap.is_some() {
                let stat = top.stat()?;
                let (uid, gid) = owner(idmap, stat.st_uid, stat.st_gid)?;
                inode.set_owner(uid, gid)?;
                inode.set_mode(Mode::from_raw_mode(stat.st_mode & 0o7777))?;
                inode.set_times(&knarr_fs::times_of(&stat))?;
            }
        }
        None => {
            let (uid, gid) = owner(idmap, 0, 0)?;
            inode.set_owner(uid, gid)?;
            inode.set_mode(Mode::from_raw_mode(0o755))?;
        }
    }
    knarr_fs::rename(&new, &upper.upper)?;
    Ok(())
}

/// overlayfs refuses an upper folder that it used as `volatile` before, as a crash may have torn
/// it. Such a folder is in the run root, which does not outlive a crash of the machine: here it is
/// whole.
fn forget_volatile(upper: &Upper) -> Result<()> {
    let work = upper.work.join("work");
    match tree::Tree::open(&work) {
        Ok(inside) => Ok(tree::remove(inside.as_fd(), OsStr::new("incompat"), &work)?),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
