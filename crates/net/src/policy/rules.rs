//! The rules of nf_tables, and the walk of a packet through them.

use std::collections::BTreeMap;

use super::packet::padded;
use super::{Dropped, Packet, Place, System, legacy};
use crate::Result;
use crate::netlink::{Batch, DUMP, Socket, attributes, big_number};
use crate::nft::Family;

const SUBSYSTEM: u16 = 10 << 8;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const GETRULE: u16 = SUBSYSTEM | 7;
const GETSET: u16 = SUBSYSTEM | 10;
const GETSETELEM: u16 = SUBSYSTEM | 13;

const FORWARD: u32 = 2;
/// Chains call each other at most that deep (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;

/// Everything that decides about forwarded packets in this network namespace, as it is now.
#[derive(Debug)]
pub struct Ruleset {
    chains: Vec<Chain>,
    sets: BTreeMap<Name, Set>,
    legacy: Vec<legacy::Table>,
}

/// Family, table, and the set's or chain's own name.
type Name = (u8, String, String);

#[derive(Debug)]
struct Chain {
    name: Name,
    /// At the forward hook: its priority, and whether its policy is to drop.
    forward: Option<(i32, bool)>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    handle: u64,
    /// Its expressions as the kernel lists them.
    expressions: Vec<u8>,
}

#[derive(Debug, Default)]
struct Set {
    interval: bool,
    key_length: usize,
    /// Of a concatenation of ranges.
    fields: Vec<usize>,
    elements: Vec<Element>,
}

#[derive(Debug)]
struct Element {
    key: Vec<u8>,
    end: Option<Vec<u8>>,
    is_end: bool,
    /// What it leads to, as the kernel lists it.
    data: Vec<u8>,
}

enum Verdict {
    Accept,
    Drop(Place),
    Continue,
    Return,
}

fn dump(
    socket: &Socket,
    kind: u16,
    (family, table, set): (u8, &str, &str),
    mut found: impl FnMut(u8, &[u8]),
) -> Result<()> {
    let mut question = Batch::default();
    question.push("list the firewall", kind, DUMP, &[family, 0, 0, 0], |all| {
        if !set.is_empty() {
            all.text(1, table);
            all.text(2, set);
        }
    });
    // A set that is gone by now has no elements.
    socket.ask(&question, |payload| {
        found(payload.first().copied().unwrap_or_default(), payload);
    })?;
    Ok(())
}

fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

/// The first attribute of a kind.
fn find(bytes: &[u8], skip: usize, kind: u16) -> Option<&[u8]> {
    let mut all = attributes(bytes, skip);
    all.find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

fn found_number(bytes: &[u8], kind: u16) -> u32 {
    find(bytes, 0, kind).map_or(0, |value| big_number(value, 0))
}

impl Ruleset {
    /// Reads all of it.
    ///
    /// # Errors
    /// When the kernel does not tell: without `CAP_NET_ADMIN`.
    pub fn load() -> Result<Self> {
        let socket = Socket::netfilter()?;
        let mut chains: Vec<Chain> = Vec::new();
        let all = (0, "", "");
        dump(&socket, GETCHAIN, all, |family, payload| {
            let name = |kind| find(payload, 4, kind).map(text).unwrap_or_default();
            let hook = find(payload, 4, 4);
            let policy = find(payload, 4, 5).map_or(1, |value| big_number(value, 0));
            chains.push(Chain {
                name: (family, name(1), name(3)),
                forward: hook
                    .filter(|hook| found_number(hook, 1) == FORWARD)
                    .map(|hook| (found_number(hook, 2).cast_signed(), policy == 0)),
                rules: Vec::new(),
            });
        })?;
        dump(&socket, GETRULE, all, |family, payload| {
            let name = |kind| find(payload, 4, kind).map(text).unwrap_or_default();
            let name = (family, name(1), name(2));
            if let Some(chain) = chains.iter_mut().find(|chain| chain.name == name) {
                let handle = find(payload, 4, 3).and_then(|value| value.try_into().ok());
                chain.rules.push(Rule {
                    handle: handle.map_or(0, u64::from_be_bytes),
                    expressions: find(payload, 4, 4).unwrap_or_default().to_vec(),
                });
            }
        })?;
        // Of tables that see forwarded packets.
        let tables: Vec<(u8, String)> = chains
            .iter()
            .filter(|chain| chain.forward.is_some())
            .map(|chain| (chain.name.0, chain.name.1.clone()))
            .collect();
        let mut sets = BTreeMap::new();
        dump(&socket, GETSET, all, |family, payload| {
            let name = |kind| find(payload, 4, kind).map(text).unwrap_or_default();
            let name = (family, name(1), name(2));
            if !tables.contains(&(name.0, name.1.clone())) {
                return;
            }
            const INTERVAL: u32 = 4;
            let number = |kind| find(payload, 4, kind).map_or(0, |value| big_number(value, 0));
            let description = find(payload, 4, 9).and_then(|all| find(all, 0, 2));
            let fields = attributes(description.unwrap_or_default(), 0)
                .map(|(_, field)| found_number(field, 1) as usize);
            let set = Set {
                interval: number(3) & INTERVAL != 0,
                key_length: number(5) as usize,
                fields: fields.collect(),
                elements: Vec::new(),
            };
            sets.insert(name, set);
        })?;
        for ((family, table, name), set) in &mut sets {
            dump(&socket, GETSETELEM, (*family, table, name), |_, payload| {
                let elements = find(payload, 4, 3).unwrap_or_default();
                set.elements.extend(attributes(elements, 0).map(|(_, one)| {
                    Element {
                        key: find(one, 0, 1)
                            .and_then(|key| find(key, 0, 1))
                            .unwrap_or_default()
                            .to_vec(),
                        end: find(one, 0, 10)
                            .and_then(|key| find(key, 0, 1))
                            .map(<[u8]>::to_vec),
                        is_end: found_number(one, 3) & 1 != 0,
                        data: find(one, 0, 2).unwrap_or_default().to_vec(),
                    }
                }));
            })?;
            set.elements
                .sort_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
        }
        let legacy = [false, true].map(legacy::Table::load);
        Ok(Self {
            chains,
            sets,
            legacy: legacy
                .into_iter()
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .flatten()
                .collect(),
        })
    }

    /// Who drops the packet, if somebody does; `but` is a table in the family inet that is passed
    /// over.
    pub fn forward(&self, packet: &Packet, but: Option<&str>) -> Option<Dropped> {
        let families = if packet.ipv6() {
            [Family::Inet as u8, Family::Ipv6 as u8]
        } else {
            [Family::Inet as u8, Family::Ipv4 as u8]
        };
        let mut chains: Vec<(i32, bool, &Chain)> = self
            .chains
            .iter()
            .filter(|chain| families.contains(&chain.name.0))
            .filter(|chain| {
                !(chain.name.0 == Family::Inet as u8 && but == Some(chain.name.1.as_str()))
            })
            .filter_map(|chain| {
                chain
                    .forward
                    .map(|(priority, drops)| (priority, drops, chain))
            })
            .collect();
        chains.sort_by_key(|(priority, ..)| *priority);
        for (_, drops, chain) in chains {
            let place = match self.walk(chain, packet, 0) {
                Verdict::Drop(place) => place,
                Verdict::Accept => continue,
                Verdict::Continue | Verdict::Return if !drops => continue,
                Verdict::Continue | Verdict::Return => chain.place(None),
            };
            let system = self.keeper(chain);
            return Some(Dropped { place, system });
        }
        let legacy = self
            .legacy
            .iter()
            .filter(|table| table.is_ipv6() == packet.ipv6());
        legacy.into_iter().find_map(|table| {
            Some(Dropped {
                place: table.drops(packet)?,
                system: table.system,
            })
        })
    }

    /// Keys (first and last) and values of a map of a table in the family inet.
    pub(crate) fn elements(
        &self,
        table: &str,
        set: &str,
    ) -> impl Iterator<Item = (&[u8], &[u8], &[u8])> {
        let name = (Family::Inet as u8, table.to_owned(), set.to_owned());
        let elements = self.sets.get(&name).map(|set| set.elements.as_slice());
        elements.unwrap_or_default().iter().filter_map(|element| {
            let end = element.end.as_deref().unwrap_or(&element.key);
            Some((element.key.as_slice(), end, find(&element.data, 0, 1)?))
        })
    }

    /// Who keeps the table that a chain is in.
    fn keeper(&self, chain: &Chain) -> System {
        let (family, table, name) = &chain.name;
        let has = |names: &[&str]| {
            self.chains.iter().any(|other| {
                other.name.0 == *family
                    && other.name.1 == *table
                    && names.contains(&other.name.2.as_str())
            })
        };
        if has(&["ufw-user-forward", "ufw6-user-forward"]) {
            System::Ufw
        } else if has(&["DOCKER-USER"]) {
            System::Docker
        } else if table == "firewalld" {
            System::Firewalld
        } else if table == "filter" && name == "FORWARD" && *family != Family::Inet as u8 {
            System::Iptables
        } else {
            System::Nftables
        }
    }

    fn chain(&self, family: u8, table: &str, name: &str) -> Option<&Chain> {
        self.chains
            .iter()
            .find(|chain| chain.name.0 == family && chain.name.1 == table && chain.name.2 == name)
    }

    fn walk(&self, chain: &Chain, packet: &Packet, depth: usize) -> Verdict {
        for rule in &chain.rules {
            match self.rule(chain, rule, packet, depth) {
                Some(Verdict::Continue) | None => {}
                Some(verdict) => return verdict,
            }
        }
        Verdict::Continue
    }

    /// `None` where the rule does not apply, or cannot be judged.
    fn rule(&self, chain: &Chain, rule: &Rule, packet: &Packet, depth: usize) -> Option<Verdict> {
        let mut registers = Registers::default();
        for (_, expression) in attributes(&rule.expressions, 0) {
            let name = find(expression, 0, 1).map(text).unwrap_or_default();
            let data = find(expression, 0, 2).unwrap_or_default();
            let number = |kind| found_number(data, kind);
            let value = |kind| find(data, 0, kind).and_then(|value| find(value, 0, 1));
            match name.as_str() {
                // Setting something: no condition.
                "meta" | "ct" | "payload" if find(data, 0, 1).is_none() => {}
                "meta" => registers.put(number(1), &meta(number(2), packet)?),
                "ct" => registers.put(number(1), &conntrack(number(2), packet)?),
                "payload" => {
                    let header = match number(2) {
                        1 => packet.network(),
                        2 => packet.transport(),
                        _ => return None,
                    };
                    let (offset, length) = (number(3) as usize, number(4) as usize);
                    registers.put(number(1), header.get(offset..offset + length)?);
                }
                "cmp" => {
                    let wanted = value(3)?;
                    let found = registers.get(number(1), wanted.len())?;
                    let order = found.as_slice().cmp(wanted);
                    let holds = match number(2) {
                        0 => order.is_eq(),
                        1 => order.is_ne(),
                        2 => order.is_lt(),
                        3 => order.is_le(),
                        4 => order.is_gt(),
                        _ => order.is_ge(),
                    };
                    if !holds {
                        return None;
                    }
                }
                "range" => {
                    let (from, to) = (value(3)?, value(4)?);
                    let found = registers.get(number(1), from.len())?;
                    let inside = from <= found.as_slice() && found.as_slice() <= to;
                    if inside != (number(2) == 0) {
                        return None;
                    }
                }
                "bitwise" if number(6) == 0 => {
                    let (mask, flip) = (value(4)?, value(5)?);
                    let found = registers.get(number(1), number(3) as usize)?;
                    let bytes = found.iter().zip(mask).zip(flip);
                    let bytes: Vec<_> = bytes.map(|((a, b), c)| Some(a & b ^ c)).collect();
                    registers.put(number(2), &bytes);
                }
                "lookup" => {
                    const INVERTED: u32 = 1;
                    let (family, table, _) = &chain.name;
                    let set = find(data, 0, 1).map(text).unwrap_or_default();
                    let set = self.sets.get(&(*family, table.clone(), set))?;
                    let found = set.find(&registers.get(number(2), set.key_length)?);
                    match (found, find(data, 0, 3).map(|value| big_number(value, 0))) {
                        (found, None) => {
                            if found.is_some() == (number(5) & INVERTED != 0) {
                                return None;
                            }
                        }
                        (None, Some(_)) => return None,
                        (Some(element), Some(0)) => {
                            return self.verdict(chain, rule, &element.data, packet, depth);
                        }
                        (Some(element), Some(to)) => {
                            let value = find(&element.data, 0, 1)?;
                            registers.put(to, &known(value));
                        }
                    }
                }
                "immediate" if number(1) == 0 => {
                    let data = find(data, 0, 2).unwrap_or_default();
                    return self.verdict(chain, rule, data, packet, depth);
                }
                "immediate" => registers.put(number(1), &known(value(2)?)),
                "reject" => return Some(Verdict::Drop(chain.place(Some(rule.handle)))),
                "match" => {
                    let kind = find(data, 0, 1).map(text).unwrap_or_default();
                    let info = find(data, 0, 3).unwrap_or_default();
                    if legacy::match_applies(&kind, info) != Some(true) {
                        return None;
                    }
                }
                "target" => {
                    let kind = find(data, 0, 1).map(text).unwrap_or_default();
                    if matches!(kind.as_str(), "REJECT" | "DROP") {
                        return Some(Verdict::Drop(chain.place(Some(rule.handle))));
                    }
                }
                "counter" | "log" | "limit" | "quota" | "last" | "notrack" | "connlimit"
                | "objref" => {}
                _ => return None,
            }
        }
        Some(Verdict::Continue)
    }

    fn verdict(
        &self,
        chain: &Chain,
        rule: &Rule,
        data: &[u8],
        packet: &Packet,
        depth: usize,
    ) -> Option<Verdict> {
        let verdict = find(data, 0, 2)?;
        let next = || {
            let name = find(verdict, 0, 2).map(text).unwrap_or_default();
            self.chain(chain.name.0, &chain.name.1, &name)
                .filter(|_| depth < DEEPEST)
        };
        Some(match found_number(verdict, 1).cast_signed() {
            0 => Verdict::Drop(chain.place(Some(rule.handle))),
            1 | 3 => Verdict::Accept,
            // A jump comes back where nothing was decided; a goto does not.
            -3 => match self.walk(next()?, packet, depth + 1) {
                Verdict::Return => Verdict::Continue,
                verdict => verdict,
            },
            -4 => match self.walk(next()?, packet, depth + 1) {
                Verdict::Continue => Verdict::Return,
                verdict => verdict,
            },
            -5 => Verdict::Return,
            _ => Verdict::Continue,
        })
    }
}

impl Chain {
    fn place(&self, rule: Option<u64>) -> Place {
        let (family, table, chain) = &self.name;
        Place {
            family: match *family {
                1 => "inet",
                2 => "ip",
                10 => "ip6",
                _ => "?",
            }
            .to_owned(),
            table: table.clone(),
            chain: chain.clone(),
            rule,
        }
    }
}

impl Set {
    fn find(&self, key: &[u8]) -> Option<&Element> {
        let by_fields = |element: &&Element| {
            let end = element.end.as_deref().unwrap_or(&element.key);
            let mut at = 0;
            self.fields.iter().all(|length| {
                let field = at..at + length;
                at += length.next_multiple_of(4);
                let (from, to) = (element.key.get(field.clone()), end.get(field.clone()));
                key.get(field).is_some_and(|key| {
                    from.is_some_and(|from| from <= key) && to.is_some_and(|to| key <= to)
                })
            })
        };
        match (self.interval, self.fields.is_empty()) {
            (false, _) => self.elements.iter().find(|element| element.key == key),
            (true, false) => self.elements.iter().find(by_fields),
            // The last one that begins or ends before it; they are in order.
            (true, true) => self
                .elements
                .iter()
                .rev()
                .find(|element| element.key.as_slice() <= key)
                .filter(|element| !element.is_end),
        }
    }
}

/// What the packet's conditions are judged by: bytes, as far as they are known.
struct Registers([Option<u8>; 64]);

impl Default for Registers {
    fn default() -> Self {
        Self([None; 64])
    }
}

impl Registers {
    /// Sixteen bytes each from 1 on, or four each from 8 on.
    fn at(register: u32) -> usize {
        let register = register as usize;
        match register {
            0..8 => register.saturating_sub(1) * 16,
            _ => (register - 8) * 4,
        }
    }

    fn put(&mut self, register: u32, bytes: &[Option<u8>]) {
        let at = Self::at(register);
        // What is behind, up to the register's end, is zero.
        let end = at + bytes.len().next_multiple_of(4);
        for (index, place) in self.0.iter_mut().enumerate().take(end).skip(at) {
            *place = bytes.get(index - at).copied().unwrap_or(Some(0));
        }
    }

    fn get(&self, register: u32, length: usize) -> Option<Vec<u8>> {
        let at = Self::at(register);
        self.0.get(at..at + length)?.iter().copied().collect()
    }
}

fn known(bytes: &[u8]) -> Vec<Option<u8>> {
    bytes.iter().copied().map(Some).collect()
}

/// `NFT_META_*`.
fn meta(key: u32, packet: &Packet) -> Option<Vec<Option<u8>>> {
    let family = if packet.ipv6() { 10 } else { 2 };
    let kind: u16 = if packet.ipv6() { 0x86dd } else { 0x0800 };
    Some(match key {
        1 => known(&kind.to_be_bytes()),
        3 => known(&[0; 4]),
        6 => padded(&packet.input),
        7 => padded(&packet.output),
        15 => known(&[family]),
        16 => known(&[packet.protocol.number()]),
        _ => return None,
    })
}

/// `NFT_CT_*`: it is new, and may have been translated.
fn conntrack(key: u32, packet: &Packet) -> Option<Vec<Option<u8>>> {
    const NEW: u32 = 8;
    const TRANSLATED: u32 = 1 << 5;
    let status = if packet.translated { TRANSLATED } else { 0 };
    Some(match key {
        0 => known(&NEW.to_ne_bytes()),
        1 => known(&[0]),
        2 => known(&status.to_ne_bytes()),
        3 => known(&[0; 4]),
        _ => return None,
    })
}
