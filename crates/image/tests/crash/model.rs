//! A file system that forgets what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A file or folder; 0 is the root, which is there from the beginning.
pub(crate) type Inode = u32;

/// A name in a folder.
pub(crate) type Place = (Inode, Vec<u8>);

/// One change, sync or mark.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Create {
        parent: Inode,
        name: Vec<u8>,
        inode: Inode,
        folder: bool,
    },
    Remove {
        parent: Inode,
        name: Vec<u8>,
    },
    Rename {
        from: Place,
        to: Place,
        inode: Inode,
    },
    Write {
        inode: Inode,
        at: u64,
        data: Vec<u8>,
    },
    Truncate {
        inode: Inode,
        size: u64,
    },
    Sync {
        inode: Inode,
    },
    Mark(String),
}

impl Step {
    pub(crate) fn is_change(&self) -> bool {
        !matches!(self, Self::Sync { .. } | Self::Mark(_))
    }

    pub(crate) fn is_sync(&self) -> bool {
        matches!(self, Self::Sync { .. })
    }

    /// The inode whose fsync makes it durable.
    fn owner(&self) -> Option<Inode> {
        match self {
            Self::Create { parent, .. } | Self::Remove { parent, .. } => Some(*parent),
            Self::Rename { to, .. } => Some(to.0),
            Self::Write { inode, .. } | Self::Truncate { inode, .. } => Some(*inode),
            Self::Sync { .. } | Self::Mark(_) => None,
        }
    }

    fn is_content(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Truncate { .. })
    }
}

/// The marks so far.
pub(crate) fn marks(steps: &[Step]) -> Vec<String> {
    let marks = steps.iter().filter_map(|step| match step {
        Step::Mark(mark) => Some(mark.clone()),
        _ => None,
    });
    marks.collect()
}

/// What is on a disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    folders: BTreeMap<Inode, BTreeMap<Vec<u8>, Inode>>,
    files: BTreeMap<Inode, Vec<u8>>,
}

/// How much of an inode's unsynced changes is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The first so many.
    First(usize),
    /// All, the last write half.
    Torn,
    /// The size, but zeros instead of the bytes.
    Zeros,
}

/// Every state that the disk may be in after these steps, with words for how.
pub(crate) fn crashes(steps: &[Step]) -> Vec<(String, Disk)> {
    // A step is durable when its owner was synced after it.
    let mut durable = vec![false; steps.len()];
    let mut synced = BTreeSet::new();
    for (at, step) in steps.iter().enumerate().rev() {
        if let Step::Sync { inode } = step {
            synced.insert(*inode);
        }
        durable[at] = step.owner().is_some_and(|owner| synced.contains(&owner));
    }
    let mut pending: BTreeMap<Inode, Vec<usize>> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        if let Some(owner) = step.owner()
            && !durable[at]
        {
            pending.entry(owner).or_default().push(at);
        }
    }
    let all: BTreeMap<Inode, Part> = pending
        .iter()
        .map(|(owner, steps)| (*owner, Part::First(steps.len())))
        .collect();
    let none: BTreeMap<Inode, Part> = pending.keys().map(|o| (*o, Part::First(0))).collect();
    let mut states = vec![
        (
            "all of it".to_owned(),
            build(steps, &durable, &pending, &all),
        ),
        (
            "nothing unsynced".to_owned(),
            build(steps, &durable, &pending, &none),
        ),
    ];
    for (owner, own) in &pending {
        let content = steps[own[0]].is_content();
        let mut parts: Vec<Part> = if content {
            vec![
                Part::First(0),
                Part::First(own.len()),
                Part::Torn,
                Part::Zeros,
            ]
        } else {
            (0..=own.len()).map(Part::First).collect()
        };
        if content && own.len() > 1 {
            parts.push(Part::First(own.len() / 2));
        }
        for part in parts {
            for (others, base) in [("the rest", &all), ("nothing else", &none)] {
                let mut chosen = base.clone();
                chosen.insert(*owner, part);
                let how = format!(
                    "{part:?} of {} changes of inode {owner}, {others}",
                    own.len()
                );
                states.push((how, build(steps, &durable, &pending, &chosen)));
            }
        }
    }
    states
}

fn build(
    steps: &[Step],
    durable: &[bool],
    pending: &BTreeMap<Inode, Vec<usize>>,
    parts: &BTreeMap<Inode, Part>,
) -> Disk {
    let mut disk = Disk::default();
    disk.folders.insert(0, BTreeMap::new());
    for (at, step) in steps.iter().enumerate() {
        let Some(owner) = step.owner() else { continue };
        let (mut torn, mut zeros) = (false, false);
        if !durable[at] {
            let own = &pending[&owner];
            let index = own.iter().position(|other| *other == at).unwrap();
            match parts[&owner] {
                Part::First(count) if index >= count => continue,
                Part::First(_) => {}
                Part::Torn => torn = index + 1 == own.len(),
                Part::Zeros => zeros = true,
            }
        }
        disk.apply(step, torn, zeros);
    }
    disk
}

impl Disk {
    fn apply(&mut self, step: &Step, torn: bool, zeros: bool) {
        match step {
            Step::Create {
                parent,
                name,
                inode,
                folder,
            } => {
                let entries = self.folders.entry(*parent).or_default();
                entries.insert(name.clone(), *inode);
                if *folder {
                    self.folders.entry(*inode).or_default();
                } else {
                    self.files.entry(*inode).or_default();
                }
            }
            Step::Remove { parent, name } => {
                self.folders.entry(*parent).or_default().remove(name);
            }
            Step::Rename { from, to, inode } => {
                let source = self.folders.entry(from.0).or_default();
                if source.get(&from.1) == Some(inode) {
                    source.remove(&from.1);
                }
                let target = self.folders.entry(to.0).or_default();
                target.insert(to.1.clone(), *inode);
            }
            Step::Write { inode, at, data } => {
                let file = self.files.entry(*inode).or_default();
                let at = usize::try_from(*at).unwrap();
                let length = if torn { data.len() / 2 } else { data.len() };
                if file.len() < at + length {
                    file.resize(at + length, 0);
                }
                if !zeros {
                    file[at..at + length].copy_from_slice(&data[..length]);
                }
            }
            Step::Truncate { inode, size } => {
                let file = self.files.entry(*inode).or_default();
                file.resize(usize::try_from(*size).unwrap(), 0);
            }
            Step::Sync { .. } | Step::Mark(_) => {}
        }
    }

    /// The same for the same files.
    pub(crate) fn fingerprint(&self) -> knarr_spec::Digest {
        let mut hasher = knarr_cas::Hasher::new();
        self.walk(0, &mut |depth, name, content| {
            hasher.update(&[u8::try_from(depth).unwrap()]);
            hasher.update(name);
            hasher.update(&[0, u8::from(content.is_some())]);
            let content = content.unwrap_or_default();
            hasher.update(&(content.len() as u64).to_le_bytes());
            hasher.update(content);
        });
        hasher.finish()
    }

    fn walk<'d>(&'d self, folder: Inode, see: &mut dyn FnMut(usize, &'d [u8], Option<&'d [u8]>)) {
        let mut todo: Vec<(usize, &[u8], Inode)> = vec![(0, b"", folder)];
        while let Some((depth, name, inode)) = todo.pop() {
            // A folder that was renamed has whatever of its entries is on the disk.
            if let Some(entries) = self.folders.get(&inode)
                && !self.files.contains_key(&inode)
            {
                see(depth, name, None);
                let below = entries.iter().rev();
                todo.extend(below.map(|(name, inode)| (depth + 1, &name[..], *inode)));
            } else {
                let empty: &[u8] = b"";
                let content = self.files.get(&inode).map_or(empty, Vec::as_slice);
                see(depth, name, Some(content));
            }
        }
    }

    /// Makes it real.
    pub(crate) fn write(&self, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        let mut path = vec![to.to_owned()];
        self.walk(0, &mut |depth, name, content| {
            path.truncate(depth);
            let here = match depth {
                0 => to.to_owned(),
                _ => path[depth - 1].join(String::from_utf8_lossy(name).into_owned()),
            };
            match content {
                None if depth > 0 => std::fs::create_dir(&here).unwrap(),
                None => {}
                Some(content) => std::fs::write(&here, content).unwrap(),
            }
            path.push(here);
        });
    }
}
