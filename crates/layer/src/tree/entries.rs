//! A directory's entries, small.

use std::fmt;

use super::NodeId;

/// The most entries in one block.
const BLOCK: usize = 256;

/// Names and the nodes they lead to, in byte order: 9 bytes an entry and its name, where a map of
/// boxed names takes 69 for one of 12 bytes.
///
/// The names stand one after the other as they came, each behind its length; blocks of entries are
/// sorted, and so are the entries in each. What comes in order fills its blocks.
#[derive(Clone, Default)]
pub struct Entries {
    names: Vec<u8>,
    blocks: Vec<Vec<(u32, NodeId)>>,
}

impl Entries {
    /// The node behind a name.
    pub fn get(&self, name: &[u8]) -> Option<NodeId> {
        let (block, at) = self.find(name).ok()?;
        Some(self.blocks.get(block)?.get(at)?.1)
    }

    /// Gives a name, of at most 255 bytes, to a node, whatever it led to before.
    pub fn insert(&mut self, name: &[u8], id: NodeId) {
        let (mut block, mut at) = match self.find(name) {
            Ok((block, at)) => {
                if let Some(entry) = self.blocks.get_mut(block).and_then(|b| b.get_mut(at)) {
                    entry.1 = id;
                }
                return;
            }
            Err(place) => place,
        };
        // The memory limit of the tree keeps them far below 4 GiB.
        let entry = (u32::try_from(self.names.len()).unwrap_or(u32::MAX), id);
        self.names.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.names.extend_from_slice(name);
        if self.blocks.get(block).is_some_and(|b| b.len() == BLOCK) {
            let middle = if at == BLOCK { BLOCK } else { BLOCK / 2 };
            if let Some(later) = self.blocks.get_mut(block).map(|b| b.split_off(middle)) {
                self.blocks.insert(block + 1, later);
            }
            if at >= middle {
                (block, at) = (block + 1, at - middle);
            }
        }
        match self.blocks.get_mut(block) {
            Some(entries) => entries.insert(at, entry),
            None => self.blocks.push(vec![entry]),
        }
    }

    /// Names and nodes, in byte order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], NodeId)> {
        let entries = self.blocks.iter().flatten();
        entries.map(|(name, id)| (self.name(*name), *id))
    }

    /// The nodes, in byte order of their names.
    pub fn nodes_mut(&mut self) -> impl Iterator<Item = &mut NodeId> {
        self.blocks.iter_mut().flatten().map(|(_, id)| id)
    }

    /// Forgets the entries whose names are not `kept`.
    pub fn retain(&mut self, kept: impl Fn(&[u8]) -> bool) {
        let Self { names, blocks } = self;
        for block in &mut *blocks {
            block.retain(|(name, _)| kept(name_at(names, *name)));
        }
        blocks.retain(|block| !block.is_empty());
    }

    /// Where a name is, or where it would be: block and place in it.
    fn find(&self, name: &[u8]) -> Result<(usize, usize), (usize, usize)> {
        let after = self.blocks.partition_point(|block| {
            let first = block.first();
            first.is_some_and(|(first, _)| self.name(*first) <= name)
        });
        let block = after.saturating_sub(1);
        let Some(entries) = self.blocks.get(block) else {
            return Err((block, 0));
        };
        let found = entries.binary_search_by(|(other, _)| self.name(*other).cmp(name));
        found.map(|at| (block, at)).map_err(|at| (block, at))
    }

    fn name(&self, at: u32) -> &[u8] {
        name_at(&self.names, at)
    }
}

fn name_at(names: &[u8], at: u32) -> &[u8] {
    let rest = names.get(at as usize..).unwrap_or_default();
    let (len, rest) = rest.split_first().unwrap_or((&0, &[]));
    rest.get(..usize::from(*len)).unwrap_or_default()
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.iter();
        f.debug_map()
            .entries(shown.map(|(name, id)| (String::from_utf8_lossy(name), id)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn entries_are_what_a_map_would_hold_in_whatever_order_they_come() {
        let orders: [fn(u32) -> u32; 4] = [
            |n| n,
            |n| 4000 - n,
            |n| n.wrapping_mul(2_654_435_761) % 4001,
            |n| n % 300,
        ];
        for order in orders {
            let (mut entries, mut map) = (Entries::default(), BTreeMap::new());
            for n in 0..4000 {
                let name = format!("{}", order(n)).into_bytes();
                entries.insert(&name, NodeId(n));
                map.insert(name, NodeId(n));
            }
            let same = |entries: &Entries, map: &BTreeMap<Vec<u8>, NodeId>| {
                assert!(
                    entries
                        .iter()
                        .eq(map.iter().map(|(name, id)| (&name[..], *id)))
                );
                for n in 0..4002 {
                    let name = format!("{n}").into_bytes();
                    assert_eq!(entries.get(&name), map.get(&name).copied());
                }
            };
            same(&entries, &map);
            entries.retain(|name| !name.starts_with(b"1"));
            map.retain(|name, _| !name.starts_with(b"1"));
            same(&entries, &map);
            entries.insert(b"1000", NodeId(7));
            map.insert(b"1000".to_vec(), NodeId(7));
            same(&entries, &map);
        }
        let long = [b'x'; 255];
        let mut entries = Entries::default();
        entries.insert(&long, NodeId(1));
        assert_eq!(entries.get(&long), Some(NodeId(1)));
        assert_eq!(entries.get(b""), None);
    }
}
