//! From a section to a program.
//!
//! The numbers of one kernel architecture are cut into ranges with one decision each; a binary
//! search over the ranges finds the decision. That is far shorter than a comparison per call, which
//! is what loading costs: the kernel compiles the program and runs it for every call number to learn
//! which ones it may let through without asking (`seccomp_cache_prepare`).

use std::collections::{BTreeMap, HashMap};

use knarr_spec::runtime::{Seccomp, SeccompAction, SeccompArg, SeccompOperator};
use knarr_sys::seccomp::Flags;

use crate::arch::{ARM_PRIVATE, Arch, Call, X32_BIT};
use crate::assemble::{self, Assembler, Label, Test};
use crate::{Error, Program, Result};

/// The most the kernel takes (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;

/// What calls through an architecture that is not listed get.
const KILL_THREAD: u32 = 0;
const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Compiles an OCI `linux.seccomp` section. The host's own architecture is always in the filter, as
/// in runc. Names of calls that an architecture does not have are left out there.
///
/// # Errors
/// [`Error::Architecture`], [`Error::Flag`], [`Error::Argument`], [`Error::Errno`],
/// [`Error::Listener`], [`Error::NoNames`], [`Error::TooLong`].
pub fn compile(section: &Seccomp) -> Result<Program> {
    let default = action(section.default_action, section.default_errno_ret)?;
    let flags = flags(section)?;
    let mut archs = vec![Arch::HOST];
    for name in &section.architectures {
        let arch = Arch::from_oci_name(name).ok_or_else(|| Error::Architecture(name.clone()))?;
        if !archs.contains(&arch) {
            archs.push(arch);
        }
    }

    let mut tables: Vec<Table> = archs.iter().map(|&arch| Table::new(arch)).collect();
    for (index, rule) in section.syscalls.iter().enumerate() {
        if rule.names.is_empty() {
            return Err(Error::NoNames { index });
        }
        let action = action(rule.action, rule.errno_ret)?;
        let alternatives = alternatives(&rule.args, rule.names.first())?;
        for name in &rule.names {
            let Some(call) = Call::by_name(name) else {
                continue;
            };
            for table in &mut tables {
                table.add(call, action, action == default, &alternatives);
            }
        }
    }

    // Calls that did not exist when the profile was written shall look as on an older kernel, so
    // that programs fall back. Not if they pass anyway.
    let newer = match section.default_action {
        SeccompAction::Allow | SeccompAction::Log | SeccompAction::Trace => default,
        _ => ERRNO | ENOSYS,
    };
    let mut emitter = Emitter {
        assembler: Assembler::default(),
        default,
        shared: HashMap::new(),
    };
    let mut entry = emitter.assembler.ret(KILL_THREAD);
    let mut audits: Vec<u32> = Vec::new();
    for arch in &archs {
        if !audits.contains(&arch.audit()) {
            audits.push(arch.audit());
        }
    }
    // From the end: the host's own architecture comes out first, and its code nearest.
    for &audit in audits.iter().rev() {
        let mut ranges = Ranges::default();
        for (arch, first, end) in spaces(audit) {
            match tables.iter().find(|table| table.arch == arch) {
                Some(table) => table.ranges(first, end, default, newer, &mut ranges),
                None => {
                    ranges.start(first, Decision::Return(KILL_THREAD));
                    // -1 is no x32 call but a tracer's word for "skip it".
                    ranges.start(u32::MAX, Decision::Return(default));
                }
            }
        }
        let tree = emitter.tree(&ranges.0);
        let body = emitter.assembler.load(assemble::NUMBER, tree);
        entry = emitter.assembler.test(Test::Equal, audit, body, entry);
    }
    let entry = emitter.assembler.load(assemble::ARCHITECTURE, entry);
    let instructions = emitter.assembler.finish(entry);
    if instructions.len() > LONGEST {
        return Err(Error::TooLong(instructions.len()));
    }
    Ok(Program::new(instructions, flags))
}

/// Which numbers of an architecture in the kernel's sense are whose.
fn spaces(audit: u32) -> Vec<(Arch, u32, u32)> {
    Arch::ALL
        .into_iter()
        .filter(|arch| arch.audit() == audit)
        .map(|arch| match arch {
            Arch::X86_64 => (arch, 0, X32_BIT),
            Arch::X32 => (arch, X32_BIT, u32::MAX),
            _ => (arch, 0, u32::MAX),
        })
        .collect()
}

/// The value that the filter returns (seccomp(2), "SECCOMP_RET_").
fn action(action: SeccompAction, errno: Option<u32>) -> Result<u32> {
    let data = errno.unwrap_or(EPERM) & 0xffff;
    let (value, takes_errno) = match action {
        SeccompAction::KillThread => (KILL_THREAD, false),
        SeccompAction::KillProcess => (0x8000_0000, false),
        SeccompAction::Trap => (0x0003_0000, false),
        SeccompAction::Errno => (ERRNO | data, true),
        SeccompAction::Trace => (0x7ff0_0000 | data, true),
        SeccompAction::Notify => (0x7fc0_0000, false),
        SeccompAction::Log => (0x7ffc_0000, false),
        SeccompAction::Allow => (0x7fff_0000, false),
    };
    match errno {
        Some(errno) if !takes_errno => Err(Error::Errno { errno }),
        _ => Ok(value),
    }
}

fn flags(section: &Seccomp) -> Result<Flags> {
    let mut flags = Flags::NONE;
    for name in &section.flags {
        flags = flags.with(match name.as_str() {
            // The filter is installed by a process with one thread.
            "SECCOMP_FILTER_FLAG_TSYNC" => Flags::NONE,
            "SECCOMP_FILTER_FLAG_LOG" => Flags::LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Flags::SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => Flags::WAIT_KILLABLE_RECV,
            _ => return Err(Error::Flag(name.clone())),
        });
    }
    let asks = |rule: &&knarr_spec::runtime::SeccompSyscalls| rule.action == SeccompAction::Notify;
    if section.default_action == SeccompAction::Notify {
        return Err(Error::Listener(
            "SCMP_ACT_NOTIFY cannot be the default action",
        ));
    }
    if let Some(rule) = section.syscalls.iter().find(asks) {
        if section.listener_path.as_ref().is_none_or(String::is_empty) {
            return Err(Error::Listener(
                "a rule has SCMP_ACT_NOTIFY, but listenerPath is missing",
            ));
        }
        // The process that installs the filter must still be able to hand the listener over.
        if rule
            .names
            .iter()
            .any(|name| name == "write" || name == "sendmsg")
        {
            return Err(Error::Listener(
                "SCMP_ACT_NOTIFY cannot be used for write or sendmsg",
            ));
        }
        flags = flags.with(Flags::NEW_LISTENER);
    } else {
        // Without a listener the kernel refuses it.
        flags = flags.without(Flags::WAIT_KILLABLE_RECV);
    }
    Ok(flags)
}

/// One comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Condition {
    argument: u32,
    operator: SeccompOperator,
    value: u64,
    masked: u64,
}

impl Condition {
    /// As a 32-bit architecture sees it: its arguments are the low words.
    fn narrowed(mut self) -> Self {
        self.value &= 0xffff_ffff;
        self.masked &= 0xffff_ffff;
        self
    }

    fn holds(self, argument: u64) -> bool {
        match self.operator {
            SeccompOperator::NotEqual => argument != self.value,
            SeccompOperator::Less => argument < self.value,
            SeccompOperator::LessOrEqual => argument <= self.value,
            SeccompOperator::Equal => argument == self.value,
            SeccompOperator::GreaterOrEqual => argument >= self.value,
            SeccompOperator::Greater => argument > self.value,
            SeccompOperator::MaskedEqual => argument & self.value == self.masked,
        }
    }
}

/// The conditions of a rule: alternatives, of each of which all must hold. No alternatives: no
/// condition. A rule that speaks twice of one argument means "or", for runc's sake.
fn alternatives(args: &[SeccompArg], call: Option<&String>) -> Result<Vec<Vec<Condition>>> {
    let mut conditions = Vec::new();
    for arg in args {
        if arg.index > 5 {
            let call = call.cloned().unwrap_or_default();
            return Err(Error::Argument {
                call,
                index: arg.index,
            });
        }
        conditions.push(Condition {
            argument: arg.index,
            operator: arg.op,
            value: arg.value,
            masked: arg.value_two,
        });
    }
    let twice = conditions.iter().enumerate().any(|(at, one)| {
        conditions
            .iter()
            .skip(at + 1)
            .any(|two| one.argument == two.argument)
    });
    Ok(if conditions.is_empty() {
        Vec::new()
    } else if twice {
        conditions
            .into_iter()
            .map(|condition| vec![condition])
            .collect()
    } else {
        vec![conditions]
    })
}

/// An alternative of a call's rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rule {
    conditions: Vec<Condition>,
    action: u32,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Decision {
    Return(u32),
    /// The first rule whose conditions hold; arguments have 64 bits or not.
    Rules(Vec<Rule>, bool),
}

/// All that was said about the calls of one architecture.
#[derive(Debug)]
struct Table {
    arch: Arch,
    calls: BTreeMap<u32, Decision>,
    /// The highest number that the profile speaks of, even redundantly.
    highest: Option<u32>,
}

impl Table {
    fn new(arch: Arch) -> Self {
        Self {
            arch,
            calls: BTreeMap::new(),
            highest: None,
        }
    }

    fn add(&mut self, call: Call, action: u32, redundant: bool, alternatives: &[Vec<Condition>]) {
        let number = call.number(self.arch);
        if let Some(number) = number
            && !(self.arch == Arch::Arm && number >= ARM_PRIVATE)
        {
            self.highest = self.highest.max(Some(number));
        }
        if redundant {
            return;
        }
        if let (Arch::X86, Some((number, which))) = (self.arch, call.multiplexed()) {
            let first = Condition {
                argument: 0,
                operator: SeccompOperator::Equal,
                value: u64::from(which),
                masked: 0,
            };
            let none = [Vec::new()];
            let alternatives = if alternatives.is_empty() {
                &none[..]
            } else {
                alternatives
            };
            for conditions in alternatives {
                // The call's own first argument is in memory, out of the filter's reach.
                let others = conditions
                    .iter()
                    .filter(|condition| condition.argument != 0);
                self.insert(
                    number,
                    action,
                    std::iter::once(&first).chain(others).copied(),
                );
            }
        }
        if let Some(number) = number {
            if alternatives.is_empty() {
                self.insert(number, action, std::iter::empty());
            }
            for conditions in alternatives {
                self.insert(number, action, conditions.iter().copied());
            }
        }
    }

    fn insert(&mut self, number: u32, action: u32, conditions: impl Iterator<Item = Condition>) {
        let wide = self.arch.is_wide();
        let conditions: Vec<Condition> = conditions
            .map(|condition| {
                if wide {
                    condition
                } else {
                    condition.narrowed()
                }
            })
            .collect();
        let decision = self
            .calls
            .entry(number)
            .or_insert_with(|| Decision::Rules(Vec::new(), wide));
        match decision {
            // Said without condition: nothing that follows matters.
            Decision::Return(_) => {}
            Decision::Rules(..) if conditions.is_empty() => *decision = Decision::Return(action),
            Decision::Rules(rules, _) => rules.push(Rule { conditions, action }),
        }
    }

    /// Cuts `first..end` into ranges.
    fn ranges(&self, first: u32, end: u32, default: u32, newer: u32, ranges: &mut Ranges) {
        let otherwise = Decision::Return(default);
        ranges.start(first, otherwise.clone());
        let newest = self.highest.unwrap_or(end);
        for (&number, decision) in self.calls.range(..=newest) {
            ranges.start(number, decision.clone());
            ranges.start(number + 1, otherwise.clone());
        }
        if newest < end {
            // Where only calls behind `socketcall` or `ipc` are named, these two can be newer, too:
            // so it is in runc.
            ranges.start(newest + 1, Decision::Return(newer));
        }
        if self.arch == Arch::Arm {
            ranges.start(ARM_PRIVATE, otherwise.clone());
            for (&number, decision) in self.calls.range(ARM_PRIVATE..) {
                ranges.start(number, decision.clone());
                ranges.start(number + 1, otherwise.clone());
            }
        }
    }
}

/// Ranges with the number each starts at, ascending, neighbours different.
#[derive(Debug, Default)]
struct Ranges(Vec<(u32, Decision)>);

impl Ranges {
    /// From `number` on it is `decision`.
    fn start(&mut self, number: u32, decision: Decision) {
        if self.0.last().is_some_and(|(start, _)| *start == number) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|(_, last)| *last != decision) {
            self.0.push((number, decision));
        }
    }
}

struct Emitter {
    assembler: Assembler,
    default: u32,
    /// Code for arguments, shared between calls and architectures.
    shared: HashMap<Decision, Label>,
}

/// What stands at the end of a search.
trait Leaf: PartialEq {
    fn emit(&self, emitter: &mut Emitter) -> Label;
}

impl Leaf for u32 {
    fn emit(&self, emitter: &mut Emitter) -> Label {
        emitter.assembler.ret(*self)
    }
}

impl Leaf for Decision {
    fn emit(&self, emitter: &mut Emitter) -> Label {
        match self {
            Self::Return(action) => emitter.assembler.ret(*action),
            Self::Rules(rules, wide) => match emitter.shared.get(self) {
                Some(&label) => label,
                None => {
                    let label = emitter.rules(rules, *wide);
                    emitter.shared.insert(self.clone(), label);
                    label
                }
            },
        }
    }
}

/// A high word that decides by itself, or one that leaves it to the low word at an offset.
#[derive(Debug, PartialEq)]
enum High {
    Return(u32),
    Low(Vec<(u32, u32)>, u32),
}

impl Leaf for High {
    fn emit(&self, emitter: &mut Emitter) -> Label {
        match self {
            Self::Return(action) => emitter.assembler.ret(*action),
            Self::Low(ranges, offset) => {
                let tree = emitter.tree(ranges);
                emitter.assembler.load(*offset, tree)
            }
        }
    }
}

impl Emitter {
    /// A search for the accumulator in `ranges`, which begin at 0 or above it.
    fn tree<L: Leaf>(&mut self, ranges: &[(u32, L)]) -> Label {
        match ranges {
            [] => self.assembler.ret(self.default),
            [(_, leaf)] => leaf.emit(self),
            // One number that differs from its surroundings: one comparison instead of two.
            [(_, around), (number, leaf), (next, after)]
                if around == after && number.checked_add(1) == Some(*next) =>
            {
                let no = around.emit(self);
                let yes = leaf.emit(self);
                self.assembler.test(Test::Equal, *number, yes, no)
            }
            _ => {
                let middle = ranges.len() / 2;
                let (left, right) = ranges.split_at(middle);
                let Some((start, _)) = right.first() else {
                    return self.tree(left);
                };
                let yes = self.tree(right);
                let no = self.tree(left);
                self.assembler.test(Test::GreaterOrEqual, *start, yes, no)
            }
        }
    }

    fn rules(&mut self, rules: &[Rule], wide: bool) -> Label {
        if let Some(argument) = common_argument(rules) {
            return self.intervals(rules, argument, wide);
        }
        let mut next = self.assembler.ret(self.default);
        for rule in rules.iter().rev() {
            let mut then = self.assembler.ret(rule.action);
            for condition in rule.conditions.iter().rev() {
                then = self.condition(*condition, wide, then, next);
            }
            next = then;
        }
        next
    }

    /// Rules that all compare one argument with constants: a search over its values.
    fn intervals(&mut self, rules: &[Rule], argument: u32, wide: bool) -> Label {
        let offset = assemble::argument(argument);
        let conditions = || rules.iter().flat_map(|rule| rule.conditions.iter());
        let mut starts: Vec<u64> = conditions()
            .flat_map(|condition| [Some(condition.value), condition.value.checked_add(1)])
            .flatten()
            .chain([0])
            .filter(|&start| wide || u32::try_from(start).is_ok())
            .collect();
        starts.sort_unstable();
        starts.dedup();
        let mut intervals: Vec<(u64, u32)> = Vec::new();
        for start in starts {
            let action = rules
                .iter()
                .find(|rule| {
                    rule.conditions
                        .iter()
                        .all(|condition| condition.holds(start))
                })
                .map_or(self.default, |rule| rule.action);
            if intervals.last().is_none_or(|(_, last)| *last != action) {
                intervals.push((start, action));
            }
        }
        if !wide {
            let low: Vec<_> = intervals
                .into_iter()
                .map(|(start, action)| (low(start), action))
                .collect();
            let tree = self.tree(&low);
            return self.assembler.load(offset, tree);
        }
        let mut highs: Vec<(u32, High)> = Vec::new();
        let mut before = self.default;
        let mut rest = &intervals[..];
        while let Some(&(start, action)) = rest.first() {
            let this = high(start);
            let (inside, after) =
                rest.split_at(rest.partition_point(|&(start, _)| high(start) == this));
            let mut lows: Vec<(u32, u32)> = inside
                .iter()
                .map(|&(start, action)| (low(start), action))
                .collect();
            if low(start) != 0 {
                lows.insert(0, (0, before));
            }
            before = inside.last().map_or(action, |&(_, action)| action);
            match lows[..] {
                [(_, action)] => highs.push((this, High::Return(action))),
                _ => {
                    highs.push((this, High::Low(lows, offset)));
                    if let Some(next) = this.checked_add(1) {
                        highs.push((next, High::Return(before)));
                    }
                }
            }
            if let (Some(&(next, _)), Some((last, _))) = (after.first(), highs.last())
                && high(next) == *last
            {
                highs.pop();
            }
            rest = after;
        }
        let tree = self.tree(&highs);
        self.assembler.load(offset + 4, tree)
    }

    fn condition(&mut self, c: Condition, wide: bool, yes: Label, no: Label) -> Label {
        use SeccompOperator::{
            Equal, Greater, GreaterOrEqual, Less, LessOrEqual, MaskedEqual, NotEqual,
        };
        match c.operator {
            NotEqual => self.condition(
                Condition {
                    operator: Equal,
                    ..c
                },
                wide,
                no,
                yes,
            ),
            Less => self.condition(
                Condition {
                    operator: GreaterOrEqual,
                    ..c
                },
                wide,
                no,
                yes,
            ),
            LessOrEqual => self.condition(
                Condition {
                    operator: Greater,
                    ..c
                },
                wide,
                no,
                yes,
            ),
            Equal => {
                let low = self.word(c.argument, false, u32::MAX, low(c.value), yes, no);
                match wide {
                    true => self.word(c.argument, true, u32::MAX, high(c.value), low, no),
                    false => low,
                }
            }
            MaskedEqual => {
                let low = self.word(c.argument, false, low(c.value), low(c.masked), yes, no);
                match wide {
                    true => self.word(c.argument, true, high(c.value), high(c.masked), low, no),
                    false => low,
                }
            }
            Greater | GreaterOrEqual => {
                let test = if c.operator == Greater {
                    Test::Greater
                } else {
                    Test::GreaterOrEqual
                };
                let offset = assemble::argument(c.argument);
                let compare = self.assembler.test(test, low(c.value), yes, no);
                let low = self.assembler.load(offset, compare);
                if !wide {
                    return low;
                }
                let equal = self.assembler.test(Test::Equal, high(c.value), low, no);
                let greater = self
                    .assembler
                    .test(Test::Greater, high(c.value), yes, equal);
                self.assembler.load(offset + 4, greater)
            }
        }
    }

    /// One word of an argument, masked, equals a value.
    fn word(
        &mut self,
        argument: u32,
        upper: bool,
        mask: u32,
        value: u32,
        yes: Label,
        no: Label,
    ) -> Label {
        let offset = assemble::argument(argument) + if upper { 4 } else { 0 };
        match (mask, value) {
            (0, 0) => yes,
            // No word has bits that its mask takes away.
            _ if value & !mask != 0 => no,
            (u32::MAX, _) => {
                let test = self.assembler.test(Test::Equal, value, yes, no);
                self.assembler.load(offset, test)
            }
            (_, 0) => {
                let test = self.assembler.test(Test::AnyBit, mask, no, yes);
                self.assembler.load(offset, test)
            }
            _ => {
                let test = self.assembler.test(Test::Equal, value, yes, no);
                let masked = self.assembler.and(mask, test);
                self.assembler.load(offset, masked)
            }
        }
    }
}

/// The argument that all rules compare, once each and with a constant as a whole.
fn common_argument(rules: &[Rule]) -> Option<u32> {
    let mut common = None;
    for rule in rules {
        match rule.conditions[..] {
            [
                Condition {
                    argument, operator, ..
                },
            ] if operator != SeccompOperator::MaskedEqual
                && common.is_none_or(|common| common == argument) =>
            {
                common = Some(argument);
            }
            _ => return None,
        }
    }
    common
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low word is what is asked for"
)]
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}
