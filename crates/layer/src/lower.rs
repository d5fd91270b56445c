//! The merged view of the layers under one, read from their indexes.

use std::collections::BTreeSet;

use crate::erofs::{self, Index, Inode};
use crate::tar::show;
use crate::tree::{Below, Error, Kind, Node};

/// Some layers, merged as overlayfs would: a name is looked up from the top down until something
/// that is no directory, a whiteout or an opaque directory hides the rest.
#[derive(Debug, Default)]
pub(crate) struct Lower {
    /// Top first, each with its sources' numbers.
    layers: Vec<Numbered>,
}

/// A layer's index, and the numbers of its sources: tar and index.
type Numbered = (Index, [usize; 2]);

impl Lower {
    /// Puts a layer on top.
    pub(crate) fn push(&mut self, index: Index, sources: [usize; 2]) {
        self.layers.insert(0, (index, sources));
    }

    /// The layer that shows the name, and its inode there.
    fn resolve(&self, path: &[&[u8]]) -> Result<Option<(&Numbered, Inode)>, erofs::Error> {
        let mut dirs = Vec::new();
        for layer in &self.layers {
            let root = layer.0.root()?;
            let opaque = is_opaque(&layer.0, &root)?;
            dirs.push((layer, root));
            if opaque {
                break;
            }
        }
        for (depth, name) in path.iter().enumerate() {
            let mut next = Vec::new();
            for (layer, dir) in &dirs {
                let Some(inode) = layer.0.lookup(dir, name)? else {
                    continue;
                };
                if inode.is_whiteout() {
                    break;
                }
                if !inode.is_dir() {
                    if next.is_empty() {
                        let is_last = depth + 1 == path.len();
                        return Ok(is_last.then_some((*layer, inode)));
                    }
                    break;
                }
                let opaque = is_opaque(&layer.0, &inode)?;
                next.push((*layer, inode));
                if opaque {
                    break;
                }
            }
            dirs = next;
        }
        Ok(dirs.into_iter().next())
    }

    /// All paths of an inode within one layer.
    fn paths(index: &Index, nid: u64) -> Result<Vec<Vec<Box<[u8]>>>, erofs::Error> {
        let mut found = Vec::new();
        let mut stack = vec![(Vec::new(), index.root()?)];
        while let Some((path, dir)) = stack.pop() {
            for entry in index.entries(&dir)? {
                let mut path: Vec<Box<[u8]>> = path.clone();
                path.push(entry.name);
                let inode = index.inode(entry.nid)?;
                if inode.is_dir() {
                    stack.push((path, inode));
                } else if entry.nid == nid {
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Below for Lower {
    fn lookup(&mut self, path: &[&[u8]]) -> Result<Option<Node>, Error> {
        let found = self.resolve(path).map_err(failed(path))?;
        found
            .map(|((index, sources), inode)| index.node(&inode, *sources))
            .transpose()
            .map_err(failed(path))
    }

    fn links(&mut self, path: &[&[u8]]) -> Result<Vec<Vec<Box<[u8]>>>, Error> {
        let visible = || -> Result<Vec<Vec<Box<[u8]>>>, erofs::Error> {
            let Some((layer, inode)) = self.resolve(path)? else {
                return Ok(Vec::new());
            };
            let mut links = Vec::new();
            for link in Self::paths(&layer.0, inode.nid)? {
                let names: Vec<&[u8]> = link.iter().map(|name| &name[..]).collect();
                let shown = self.resolve(&names)?;
                // The same inode: not hidden, and nothing else in front of it.
                if shown
                    .is_some_and(|(at, found)| std::ptr::eq(at, layer) && found.nid == inode.nid)
                {
                    links.push(link);
                }
            }
            Ok(links)
        };
        visible().map_err(failed(path))
    }

    fn root_names(&mut self) -> Result<Vec<Box<[u8]>>, Error> {
        let all = || -> Result<BTreeSet<Box<[u8]>>, erofs::Error> {
            let mut names = BTreeSet::new();
            for (index, _) in &self.layers {
                let entries = index.entries(&index.root()?)?;
                names.extend(entries.into_iter().map(|entry| entry.name));
            }
            Ok(names)
        };
        all()
            .map(|names| names.into_iter().collect())
            .map_err(failed(&[]))
    }
}

fn is_opaque(index: &Index, inode: &Inode) -> Result<bool, erofs::Error> {
    let node = index.node(inode, [0, 0])?;
    Ok(matches!(node.kind, Kind::Dir(dir) if dir.opaque))
}

fn failed<'p>(path: &'p [&[u8]]) -> impl Fn(erofs::Error) -> Error + 'p {
    move |error| Error::Below {
        path: show(&path.join(&b'/')),
        why: error.to_string(),
    }
}
