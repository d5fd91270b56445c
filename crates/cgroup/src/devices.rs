//! Device rules: which nodes may be read, written and made; as eBPF (v2) or as v1 lines.

use std::fmt;
use std::os::fd::BorrowedFd;

use knarr_spec::runtime;
use knarr_sys::bpf::{self, Instruction};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which devices a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Both kinds.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// What a rule allows or denies, any combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node (mknod(2)).
    pub mknod: bool,
}

/// One rule; of several that match, the last decides, for each kind of access by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Or deny.
    pub allow: bool,
    /// Block, character or both.
    pub kind: DeviceKind,
    /// `None` matches all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// `None` matches all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// Which acts.
    pub access: Access,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self {
        read: true,
        write: true,
        mknod: true,
    };

    /// The bits of `BPF_DEVCG_ACC_*`.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

impl DeviceRule {
    /// Parses a rule of an OCI `linux.resources.devices`.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(rule: &runtime::DeviceRule) -> Result<Self> {
        let invalid = |reason| Error::Invalid {
            what: format!("device rule {rule:?}"),
            reason,
        };
        let kind = match rule.kind.as_deref() {
            None | Some("" | "a") => DeviceKind::All,
            Some("b") => DeviceKind::Block,
            Some("c" | "u") => DeviceKind::Char,
            Some(_) => return Err(invalid("has a type other than a, b, c")),
        };
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(n) => match u32::try_from(n) {
                // The kernel's dev_t has 12 bits of major and 20 of minor.
                Ok(n) if n < 1 << 20 => Ok(Some(n)),
                _ => Err(invalid("has a device number out of range")),
            },
        };
        let mut access = Access {
            read: false,
            write: false,
            mknod: false,
        };
        for letter in rule.access.as_deref().unwrap_or("rwm").chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                _ => return Err(invalid("has an access other than r, w, m")),
            }
        }
        let (major, minor) = (number(rule.major)?, number(rule.minor)?);
        Ok(Self {
            allow: rule.allow,
            kind,
            major,
            minor,
            access,
        })
    }

    fn matches_everything(&self) -> bool {
        self.kind == DeviceKind::All
            && self.major.is_none()
            && self.minor.is_none()
            && self.access == Access::ALL
    }
}

/// The form of v1's `devices.allow` and `devices.deny`.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            DeviceKind::All => "a",
            DeviceKind::Block => "b",
            DeviceKind::Char => "c",
        };
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let Access { read, write, mknod } = self.access;
        for (set, letter) in [(read, "r"), (write, "w"), (mknod, "m")] {
            if set {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// The rules as a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`: from the last rule to the first,
/// an allowing rule takes its bits off the request, a denying one that meets a bit still asked for
/// refuses. What no rule speaks about is refused.
pub(crate) fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // Registers: r1 context, r2 type, r3 access still to be decided, r4 major, r5 minor.
    const LOAD: u8 = 0x61;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const JUMP_UNLESS_EQUAL: u8 = 0x55;
    const JUMP_IF_ANY: u8 = 0x45;
    const EXIT: u8 = 0x95;
    fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
        Instruction {
            code,
            registers: to | from << 4,
            offset,
            immediate,
        }
    }
    fn answer(program: &mut Vec<Instruction>, allow: bool) {
        program.push(instruction(SET, 0, 0, 0, i32::from(allow)));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }

    let mut program = vec![
        instruction(LOAD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD, 4, 1, 4, 0),
        instruction(LOAD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        if rule.matches_everything() {
            // Whatever stands before it is never reached, and the verifier refuses dead code.
            answer(&mut program, rule.allow);
            return program;
        }
        let kind = match rule.kind {
            DeviceKind::All => None,
            DeviceKind::Block => Some(1),
            DeviceKind::Char => Some(2),
        };
        // Device numbers are below 2^20.
        let number = |n: Option<u32>| n.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let tests = [(2, kind), (4, number(rule.major)), (5, number(rule.minor))];
        let mut left = i16::try_from(tests.iter().filter(|(_, value)| value.is_some()).count())
            .unwrap_or(i16::MAX);
        for (register, value) in tests {
            if let Some(value) = value {
                left -= 1;
                // Over the further tests and the four instructions of the body.
                program.push(instruction(JUMP_UNLESS_EQUAL, register, 0, left + 4, value));
            }
        }
        let bits = rule.access.bits();
        if rule.allow {
            program.push(instruction(AND, 3, 0, 0, !bits & 7));
            program.push(instruction(JUMP_UNLESS_EQUAL, 3, 0, 2, 0));
            answer(&mut program, true);
        } else {
            program.push(instruction(JUMP_IF_ANY, 3, 0, 1, bits));
            program.push(instruction(0x05, 0, 0, 2, 0));
            answer(&mut program, false);
        }
    }
    answer(&mut program, false);
    program
}

/// Installs the rules on a v2 cgroup, in the place of those there now.
pub(crate) fn install(
    cgroup: BorrowedFd<'_>,
    path: &std::path::Path,
    rules: &[DeviceRule],
    fresh: bool,
) -> Result<()> {
    use std::os::fd::AsFd as _;
    let failed = |cause| Error::Devices {
        path: path.to_owned(),
        cause,
    };
    let new = bpf::load_device_program(&program(rules)).map_err(failed)?;
    let old = if fresh {
        Vec::new()
    } else {
        bpf::device_programs(cgroup).map_err(failed)?
    };
    let replaced = old.first().map(|fd| fd.as_fd());
    bpf::attach_device_program(cgroup, new.as_fd(), replaced).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the rules mean, written down a second way.
    fn meant(rules: &[DeviceRule], kind: i32, major: u32, minor: u32, access: i32) -> bool {
        [1, 2, 4]
            .into_iter()
            .filter(|bit| access & bit != 0)
            .all(|bit| {
                rules
                    .iter()
                    .rfind(|rule| {
                        let kind_matches = match rule.kind {
                            DeviceKind::All => true,
                            DeviceKind::Block => kind == 1,
                            DeviceKind::Char => kind == 2,
                        };
                        kind_matches
                            && rule.major.is_none_or(|n| n == major)
                            && rule.minor.is_none_or(|n| n == minor)
                            && rule.access.bits() & bit != 0
                    })
                    .is_some_and(|rule| rule.allow)
            })
    }

    /// The machine, as far as [`program`] uses it.
    fn run(program: &[Instruction], kind: i32, major: u32, minor: u32, access: i32) -> bool {
        let context = [
            access << 16 | kind,
            major.cast_signed(),
            minor.cast_signed(),
        ];
        let mut registers = [0i32; 11];
        let mut at = 0usize;
        loop {
            let Instruction {
                code,
                registers: r,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(r & 15), usize::from(r >> 4));
            at += 1;
            let jump = match code {
                0x61 => {
                    registers[to] = context[usize::try_from(offset).unwrap() / 4];
                    false
                }
                0xbf => {
                    registers[to] = registers[from];
                    false
                }
                0xb7 => {
                    registers[to] = immediate;
                    false
                }
                0x54 => {
                    registers[to] &= immediate;
                    false
                }
                0x74 => {
                    registers[to] >>= immediate;
                    false
                }
                0x55 => registers[to] != immediate,
                0x45 => registers[to] & immediate != 0,
                0x05 => true,
                0x95 => return registers[0] != 0,
                _ => panic!("unknown instruction {code:#x}"),
            };
            if jump {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    #[test]
    fn the_program_means_what_the_rules_mean() {
        // A small deterministic generator: all rule lists of up to six rules from few values.
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for _ in 0..2000 {
            let rules: Vec<_> = (0..next(7))
                .map(|_| DeviceRule {
                    allow: next(2) == 0,
                    kind: [DeviceKind::All, DeviceKind::Block, DeviceKind::Char]
                        [usize::try_from(next(3)).unwrap()],
                    major: [None, Some(1), Some(8)][usize::try_from(next(3)).unwrap()],
                    minor: [None, Some(3), Some(0)][usize::try_from(next(3)).unwrap()],
                    access: Access {
                        read: next(2) == 0,
                        write: next(2) == 0,
                        mknod: next(2) == 0,
                    },
                })
                .collect();
            let program = program(&rules);
            for kind in [1, 2] {
                for (major, minor) in [(1, 3), (1, 0), (8, 0), (8, 3), (5, 5)] {
                    for access in 1..8 {
                        assert_eq!(
                            run(&program, kind, major, minor, access),
                            meant(&rules, kind, major, minor, access),
                            "{rules:?} for {kind} {major}:{minor} {access}"
                        );
                    }
                }
            }
            if knarr_sys::rustix::process::geteuid().is_root() {
                bpf::load_device_program(&program).expect("the verifier takes it");
            }
        }
    }

    #[test]
    fn rules_are_parsed_and_printed() {
        let rule = |kind: Option<&str>, major, access: Option<&str>| runtime::DeviceRule {
            allow: true,
            kind: kind.map(str::to_owned),
            major,
            minor: None,
            access: access.map(str::to_owned),
        };
        for (given, printed) in [
            (rule(None, None, None), "a *:* rwm"),
            (rule(Some("c"), Some(1), Some("rw")), "c 1:* rw"),
            (rule(Some("b"), Some(-1), Some("m")), "b *:* m"),
        ] {
            assert_eq!(DeviceRule::parse(&given).unwrap().to_string(), printed);
        }
        for bad in [
            rule(Some("x"), None, None),
            rule(None, Some(-2), None),
            rule(None, Some(1 << 20), None),
            rule(None, None, Some("rx")),
        ] {
            assert!(DeviceRule::parse(&bad).is_err(), "{bad:?}");
        }
    }
}
