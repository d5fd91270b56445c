//! libseccomp as oracle: the same rules must give the same action for every call.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "these are tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use knarr_seccomp::{Arch, Instruction, Profile, compile};
use knarr_spec::runtime::{Seccomp, SeccompAction, SeccompArg, SeccompOperator, SeccompSyscalls};

const ENOSYS: u32 = 0x0005_0026;
const X32_BIT: u32 = 1 << 30;

/// libseccomp behind a pipe.
struct Oracle {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// By architecture and name.
    numbers: BTreeMap<(usize, String), u32>,
    _dir: tempfile::TempDir,
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Oracle {
    /// `None` where there is no compiler or no libseccomp to compile against.
    fn start(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("oracle");
        let built = Command::new("cc")
            .args(["-O1", "-o"])
            .arg(&binary)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle.c"))
            .arg("-lseccomp")
            .output();
        match built {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                eprintln!("SKIP {test}: {}", String::from_utf8_lossy(&output.stderr));
                return None;
            }
            Err(error) => {
                eprintln!("SKIP {test}: cc: {error}");
                return None;
            }
        }
        let mut child = Command::new(&binary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut numbers = BTreeMap::new();
        loop {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            let mut words = line.split_whitespace();
            let (Some(arch), Some(number), Some(name)) = (words.next(), words.next(), words.next())
            else {
                break;
            };
            numbers.insert(
                (arch.parse().unwrap(), name.to_owned()),
                number.parse().unwrap(),
            );
        }
        Some(Self {
            child,
            input,
            output,
            numbers,
            _dir: dir,
        })
    }

    /// The filter for a section, or the errno with which libseccomp refused a rule.
    fn filter(&mut self, section: &Seccomp) -> Result<Vec<Instruction>, u32> {
        let default = action(section.default_action, section.default_errno_ret);
        let mut text = format!("filter {default}\n");
        for name in &section.architectures {
            let arch = Arch::from_oci_name(name).unwrap();
            let index = Arch::ALL.iter().position(|known| *known == arch).unwrap();
            writeln!(text, "arch {index}").unwrap();
        }
        for rule in &section.syscalls {
            let action = action(rule.action, rule.errno_ret);
            if action == default {
                continue;
            }
            // As runc hands rules to libseccomp.
            let indexes: BTreeSet<u32> = rule.args.iter().map(|arg| arg.index).collect();
            let alternatives: Vec<&[SeccompArg]> = if indexes.len() < rule.args.len() {
                rule.args.chunks(1).collect()
            } else {
                vec![&rule.args[..]]
            };
            for name in &rule.names {
                for args in &alternatives {
                    write!(text, "rule {action} {name} {}", args.len()).unwrap();
                    for arg in *args {
                        let op = match arg.op {
                            SeccompOperator::NotEqual => 1,
                            SeccompOperator::Less => 2,
                            SeccompOperator::LessOrEqual => 3,
                            SeccompOperator::Equal => 4,
                            SeccompOperator::GreaterOrEqual => 5,
                            SeccompOperator::Greater => 6,
                            SeccompOperator::MaskedEqual => 7,
                        };
                        write!(text, " {} {op} {} {}", arg.index, arg.value, arg.value_two)
                            .unwrap();
                    }
                    text.push('\n');
                }
            }
        }
        text.push_str("end\n");
        self.input.write_all(text.as_bytes()).unwrap();
        self.input.flush().unwrap();
        let mut word = [0; 4];
        self.output.read_exact(&mut word).unwrap();
        let count = u32::from_le_bytes(word);
        if count == 0 {
            self.output.read_exact(&mut word).unwrap();
            return Err(u32::from_le_bytes(word));
        }
        let mut bytes = vec![0; count as usize * 8];
        self.output.read_exact(&mut bytes).unwrap();
        Ok(bytes
            .chunks(8)
            .map(|c| Instruction {
                code: u16::from_le_bytes([c[0], c[1]]),
                jt: c[2],
                jf: c[3],
                k: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
            })
            .collect())
    }

    /// The highest number that runc's rule for newer calls would find, on an architecture.
    fn highest(&self, section: &Seccomp, arch: usize) -> Option<u32> {
        section
            .syscalls
            .iter()
            .flat_map(|rule| &rule.names)
            .filter_map(|name| self.numbers.get(&(arch, name.clone())).copied())
            .filter(|number| arch != 4 || *number < 0xf_0000)
            .max()
    }
}

fn action(action: SeccompAction, errno: Option<u32>) -> u32 {
    let data = errno.unwrap_or(1);
    match action {
        SeccompAction::KillThread => 0,
        SeccompAction::KillProcess => 0x8000_0000,
        SeccompAction::Trap => 0x0003_0000,
        SeccompAction::Errno => 0x0005_0000 | data,
        SeccompAction::Trace => 0x7ff0_0000 | data,
        SeccompAction::Notify => 0x7fc0_0000,
        SeccompAction::Log => 0x7ffc_0000,
        SeccompAction::Allow => 0x7fff_0000,
    }
}

/// A call as the filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone, Copy)]
struct Data {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

/// The kernel's classic BPF machine, as far as seccomp allows it. `None` when the program compares the
/// architecture with what is no architecture: libseccomp 2.5 sometimes jumps into code that it shares
/// past the instruction that loads the number of the call.
fn run(program: &[Instruction], data: &Data) -> Option<u32> {
    let mut accumulator = 0u32;
    let mut memory = [0u32; 16];
    let mut loaded = 0;
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        if matches!(code, 0x15 | 0x25 | 0x35 | 0x45) && loaded == 4 && k & 0xff00_0000 == 0 {
            return None;
        }
        if code == 0x20 {
            loaded = k;
        }
        let jump = |holds| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => {
                accumulator = match k {
                    0 => data.number,
                    4 => data.arch,
                    16..64 if k % 8 == 0 => low(data.args[(k as usize - 16) / 8]),
                    16..64 if k % 8 == 4 => low(data.args[(k as usize - 16) / 8] >> 32),
                    _ => panic!("load from {k}"),
                }
            }
            0x54 => accumulator &= k,
            0x02 => memory[k as usize] = accumulator,
            0x60 => accumulator = memory[k as usize],
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x45 => at += jump(accumulator & k != 0),
            0x06 => return Some(k),
            _ => panic!("instruction {code:#x}"),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low word is what is asked for"
)]
fn low(value: u64) -> u32 {
    value as u32
}

/// A small deterministic generator (xorshift).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

const AUDIT: [u32; 5] = [
    0xc000_003e,
    0x4000_0003,
    0xc000_003e,
    0xc000_00b7,
    0x4000_0028,
];

/// Compares the two filters on every known call of every architecture and on numbers beyond, with
/// arguments around those in the rules. Returns whether libseccomp's had the fault of [`run`].
fn compare(
    oracle: &Oracle,
    section: &Seccomp,
    theirs: &[Instruction],
    dice: &mut Dice,
    draws: usize,
) -> bool {
    let mut faulty = false;
    let program = compile(section).unwrap();
    let ours = program.instructions();
    let values: Vec<u64> = section
        .syscalls
        .iter()
        .flat_map(|rule| &rule.args)
        .flat_map(|arg| [arg.value, arg.value_two])
        .chain([0])
        .collect();
    let permissive = matches!(
        section.default_action,
        SeccompAction::Allow | SeccompAction::Log | SeccompAction::Trace
    );
    let mut numbers: Vec<(u32, u32)> = oracle
        .numbers
        .iter()
        .map(|((arch, _), number)| (AUDIT[*arch], *number))
        .collect();
    for audit in AUDIT.into_iter().chain([0x8000_0015]) {
        for number in [
            334,
            400,
            456,
            600,
            1023,
            0x3fff_ffff,
            X32_BIT,
            X32_BIT | 600,
            !1,
            !0,
        ] {
            numbers.push((audit, number));
        }
    }
    // Where arguments count, many draws; elsewhere they must not matter.
    let compared: BTreeSet<(u32, u32)> = section
        .syscalls
        .iter()
        .filter(|rule| !rule.args.is_empty())
        .flat_map(|rule| &rule.names)
        .flat_map(|name| {
            (0..5).filter_map(|arch| {
                oracle
                    .numbers
                    .get(&(arch, name.clone()))
                    .map(|number| (AUDIT[arch], *number))
            })
        })
        .chain([(AUDIT[1], 102), (AUDIT[1], 117)])
        .collect();
    let highest: [Option<u32>; 5] = std::array::from_fn(|index| oracle.highest(section, index));
    for (arch, number) in numbers {
        // The calls that an old libseccomp does not know would be holes to it.
        if (457..=470).contains(&(number & !X32_BIT)) {
            continue;
        }
        let draws = if compared.contains(&(arch, number)) {
            draws
        } else {
            1
        };
        for _ in 0..draws {
            let args = std::array::from_fn(|_| near(&values, dice));
            let data = Data { arch, number, args };
            let x32 = arch == AUDIT[0] && number >= X32_BIT;
            let index = if x32 {
                Some(2)
            } else {
                AUDIT.iter().position(|audit| *audit == arch)
            };
            let listed = |index: usize| {
                Arch::ALL[index] == Arch::HOST
                    || section
                        .architectures
                        .iter()
                        .any(|name| name == Arch::ALL[index].oci_name())
            };
            let newer = !permissive
                && index.is_some_and(|index| {
                    listed(index)
                        && highest[index].is_some_and(|highest| number > highest)
                        && !(index == 4 && number >= 0xf_0000)
                });
            let expected = if newer {
                Some(ENOSYS)
            } else {
                run(theirs, &data)
            };
            let Some(expected) = expected else {
                faulty = true;
                continue;
            };
            let got = run(ours, &data).unwrap();
            assert_eq!(
                got, expected,
                "ours {got:#x}, libseccomp's {expected:#x} for {data:x?} in {section:#?}"
            );
        }
    }
    faulty
}

#[test]
fn numbers_are_libseccomps() {
    let Some(oracle) = Oracle::start("numbers_are_libseccomps") else {
        return;
    };
    for ((arch, name), number) in &oracle.numbers {
        let section = Seccomp {
            default_action: SeccompAction::Allow,
            architectures: vec![Arch::ALL[*arch].oci_name().to_owned()],
            syscalls: vec![SeccompSyscalls {
                names: vec![name.clone()],
                action: SeccompAction::KillProcess,
                ..SeccompSyscalls::default()
            }],
            ..Seccomp::default()
        };
        let program = compile(&section).unwrap();
        let data = Data {
            arch: AUDIT[*arch],
            number: *number,
            args: [0; 6],
        };
        assert_eq!(
            run(program.instructions(), &data),
            Some(0x8000_0000),
            "{name} on {arch}"
        );
    }
}

#[test]
fn dockers_profile_decides_as_through_libseccomp() {
    let Some(mut oracle) = Oracle::start("dockers_profile_decides_as_through_libseccomp") else {
        return;
    };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let capabilities: [&[&str]; 4] = [
        &[],
        &["CAP_CHOWN", "CAP_SYS_CHROOT"],
        &["CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_BPF"],
        &[
            "CAP_SYS_PTRACE",
            "CAP_SYS_TIME",
            "CAP_SYS_NICE",
            "CAP_SYS_RAWIO",
        ],
    ];
    for capabilities in capabilities {
        let section = Profile::docker().section(capabilities, Arch::HOST);
        let theirs = oracle.filter(&section).unwrap();
        assert!(!compare(&oracle, &section, &theirs, &mut dice, 40));
        let ours = compile(&section).unwrap().instructions().len();
        println!(
            "{capabilities:?}: {ours} instructions, libseccomp's {}",
            theirs.len()
        );
        assert!(ours * 2 < theirs.len());
    }
}

#[test]
fn podmans_profile_decides_as_through_libseccomp() {
    let Ok(json) = std::fs::read("/usr/share/containers/seccomp.json") else {
        eprintln!("SKIP podmans_profile_decides_as_through_libseccomp: no containers-common");
        return;
    };
    let Some(mut oracle) = Oracle::start("podmans_profile_decides_as_through_libseccomp") else {
        return;
    };
    let mut dice = Dice(0x1234_5678_9abc_def1);
    for capabilities in [
        &[][..],
        &["CAP_SYS_ADMIN"],
        &["CAP_AUDIT_WRITE", "CAP_SYS_CHROOT"],
    ] {
        let section = Profile::parse(&json)
            .unwrap()
            .section(capabilities, Arch::HOST);
        let theirs = oracle.filter(&section).unwrap();
        assert!(!compare(&oracle, &section, &theirs, &mut dice, 40));
    }
}

/// What a random profile may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What libseccomp 2.5 gets right: of each call one rule with conditions on different arguments,
    /// or several that compare one argument for equality. With more it confuses ordered comparisons
    /// that share a high word, and with contradicting actions it may not even come to an end.
    Sound,
    /// Everything.
    Wild,
}

fn random_section(oracle: &Oracle, dice: &mut Dice, kind: Kind) -> Seccomp {
    const ACTIONS: [(SeccompAction, Option<u32>); 8] = [
        (SeccompAction::Allow, None),
        (SeccompAction::Errno, Some(1)),
        (SeccompAction::Errno, Some(38)),
        (SeccompAction::KillProcess, None),
        (SeccompAction::KillThread, None),
        (SeccompAction::Trap, None),
        (SeccompAction::Log, None),
        (SeccompAction::Trace, Some(7)),
    ];
    const OPERATORS: [SeccompOperator; 7] = [
        SeccompOperator::NotEqual,
        SeccompOperator::Less,
        SeccompOperator::LessOrEqual,
        SeccompOperator::Equal,
        SeccompOperator::GreaterOrEqual,
        SeccompOperator::Greater,
        SeccompOperator::MaskedEqual,
    ];
    // libseccomp 2.5 thinks that x32 has no map_shadow_stack.
    let names: Vec<String> = oracle
        .numbers
        .keys()
        .map(|(_, name)| name.clone())
        .filter(|name| name != "map_shadow_stack")
        .collect();
    let favourites = [
        "socket",
        "accept",
        "sendto",
        "shmctl",
        "clone",
        "personality",
        "ioctl",
        "send",
    ];
    let value = {
        let pool: Vec<u64> = (0..4)
            .map(|_| match dice.below(4) {
                0 => dice.next() % 64,
                1 => dice.next() & 0xffff_ffff,
                2 => (dice.next() << 32) | (dice.next() % 4),
                _ => dice.next(),
            })
            .chain([0, 1, u64::MAX, 1 << 32, 0xffff_ffff])
            .collect();
        move |dice: &mut Dice| dice.one(&pool)
    };
    let (default_action, default_errno_ret) = dice.one(&ACTIONS);
    let compared: BTreeMap<String, (SeccompAction, Option<u32>)> = (0..4)
        .map(|_| {
            let name = match dice.below(2) {
                0 => dice.one(&favourites).to_owned(),
                _ => dice.one(&names),
            };
            (name, dice.one(&ACTIONS))
        })
        .collect();
    let compared: Vec<_> = compared.into_iter().collect();
    let syscalls = (0..=dice.below(24))
        .map(|_| {
            if dice.below(3) == 0 {
                let (action, errno_ret) = dice.one(&ACTIONS);
                let names = (0..=dice.below(40)).map(|_| dice.one(&names)).collect();
                return SeccompSyscalls {
                    names,
                    action,
                    errno_ret,
                    args: Vec::new(),
                };
            }
            let (name, (mut action, mut errno_ret)) = dice.one(&compared);
            if kind == Kind::Wild && dice.below(2) == 0 {
                (action, errno_ret) = dice.one(&ACTIONS);
            }
            let mut args: Vec<SeccompArg> = Vec::new();
            for _ in 0..=dice.below(3) {
                let index = u32::try_from(dice.below(6)).unwrap();
                let op = dice.one(&OPERATORS);
                let (mask, masked) = (value(dice), value(dice));
                args.push(match op {
                    SeccompOperator::MaskedEqual => SeccompArg {
                        index,
                        value: mask,
                        value_two: masked & mask,
                        op,
                    },
                    _ => SeccompArg {
                        index,
                        value: mask,
                        value_two: 0,
                        op,
                    },
                });
            }
            SeccompSyscalls {
                names: vec![name],
                action,
                errno_ret,
                args,
            }
        })
        .collect();
    let architectures = Arch::ALL
        .iter()
        .filter(|_| dice.below(2) == 0)
        .map(|arch| arch.oci_name().to_owned())
        .collect();
    let mut section = Seccomp {
        default_action,
        default_errno_ret,
        architectures,
        syscalls,
        ..Seccomp::default()
    };
    if kind == Kind::Sound {
        make_sound(&mut section);
    }
    section
}

fn make_sound(section: &mut Seccomp) {
    // Nor values wider than an architecture's arguments, nor masks of nothing, which it takes for no
    // condition at all.
    let narrow = section.architectures.iter().any(|name| {
        matches!(
            Arch::from_oci_name(name),
            Some(Arch::X86 | Arch::X32 | Arch::Arm)
        )
    });
    for arg in section.syscalls.iter_mut().flat_map(|rule| &mut rule.args) {
        if narrow {
            arg.value &= 0xffff_ffff;
            arg.value_two &= 0xffff_ffff;
        }
        if arg.op == SeccompOperator::MaskedEqual {
            arg.value |= 1;
        }
    }
    let mut seen: BTreeMap<String, Option<u32>> = BTreeMap::new();
    // These share the numbers of `socketcall` and `ipc` on x86.
    let mut shared = false;
    section.syscalls.retain_mut(|rule| {
        if rule.args.is_empty() {
            return true;
        }
        // Would contradict what the calls behind it are given.
        if rule
            .names
            .iter()
            .any(|name| name == "socketcall" || name == "ipc")
        {
            return false;
        }
        let mut indexes = BTreeSet::new();
        rule.args.retain(|arg| indexes.insert(arg.index));
        if rule
            .names
            .iter()
            .any(|name| MULTIPLEXED.contains(&name.as_str()))
            && std::mem::replace(&mut shared, true)
        {
            return false;
        }
        let equal = match &rule.args[..] {
            [arg] if arg.op == SeccompOperator::Equal => Some(arg.index),
            _ => None,
        };
        match seen.get(&rule.names[0]) {
            None => {
                seen.insert(rule.names[0].clone(), equal);
                true
            }
            Some(earlier) => earlier.is_some() && *earlier == equal,
        }
    });
}

const MULTIPLEXED: [&str; 5] = ["socket", "accept", "sendto", "send", "shmctl"];

/// What a section means, said without any cleverness: the action of a call by name.
fn meant(section: &Seccomp, name: &str, arch: usize, args: [u64; 6]) -> u32 {
    let default = action(section.default_action, section.default_errno_ret);
    let wide = matches!(arch, 0 | 3);
    let word = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let holds = |arg: &SeccompArg| {
        let (given, value) = (word(args[arg.index as usize]), word(arg.value));
        match arg.op {
            SeccompOperator::NotEqual => given != value,
            SeccompOperator::Less => given < value,
            SeccompOperator::LessOrEqual => given <= value,
            SeccompOperator::Equal => given == value,
            SeccompOperator::GreaterOrEqual => given >= value,
            SeccompOperator::Greater => given > value,
            SeccompOperator::MaskedEqual => given & value == word(arg.value_two),
        }
    };
    let rules = || {
        section
            .syscalls
            .iter()
            .filter(|rule| rule.names.iter().any(|of| of == name))
            .map(|rule| (rule, action(rule.action, rule.errno_ret)))
            .filter(|(_, action)| *action != default)
    };
    if let Some((_, action)) = rules().find(|(rule, _)| rule.args.is_empty()) {
        return action;
    }
    rules()
        .find(|(rule, _)| {
            let indexes: BTreeSet<u32> = rule.args.iter().map(|arg| arg.index).collect();
            if indexes.len() < rule.args.len() {
                rule.args.iter().any(holds)
            } else {
                rule.args.iter().all(holds)
            }
        })
        .map_or(default, |(_, action)| action)
}

#[test]
fn wild_profiles_mean_what_they_say() {
    let Some(oracle) = Oracle::start("wild_profiles_mean_what_they_say") else {
        return;
    };
    let mut dice = Dice(0x0123_4567_89ab_cdef);
    for _ in 0..rounds(400) {
        let section = random_section(&oracle, &mut dice, Kind::Wild);
        let highest: [Option<u32>; 5] =
            std::array::from_fn(|index| oracle.highest(&section, index));
        let program = compile(&section).unwrap();
        let values: Vec<u64> = section
            .syscalls
            .iter()
            .flat_map(|rule| &rule.args)
            .flat_map(|arg| [arg.value, arg.value_two])
            .chain([0])
            .collect();
        for ((arch, name), number) in &oracle.numbers {
            let listed = Arch::ALL[*arch] == Arch::HOST
                || section
                    .architectures
                    .iter()
                    .any(|of| of == Arch::ALL[*arch].oci_name());
            let newer = highest[*arch].is_some_and(|highest| *number > highest);
            let multiplexer = *arch == 1 && matches!(*number, 102 | 117);
            if !listed || newer || multiplexer {
                continue;
            }
            let draws = if section
                .syscalls
                .iter()
                .any(|rule| !rule.args.is_empty() && rule.names[0] == *name)
            {
                100
            } else {
                1
            };
            for _ in 0..draws {
                let args = std::array::from_fn(|_| near(&values, &mut dice));
                let data = Data {
                    arch: AUDIT[*arch],
                    number: *number,
                    args,
                };
                let got = run(program.instructions(), &data).unwrap();
                let expected = meant(&section, name, *arch, args);
                assert_eq!(got, expected, "{name} {data:x?} in {section:#?}");
            }
        }
    }
}

/// How many random profiles: the environment may ask for more.
fn rounds(usual: u32) -> u32 {
    std::env::var("KNARR_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(usual)
}

/// An argument near the values in the rules.
fn near(values: &[u64], dice: &mut Dice) -> u64 {
    let base = dice.one(values);
    match dice.below(6) {
        0 => base.wrapping_add(1),
        1 => base.wrapping_sub(1),
        2 => base ^ (1 << dice.below(64)),
        3 => base & 0xffff_ffff | dice.next() << 32,
        4 => dice.next() >> dice.below(64),
        _ => base,
    }
}

#[test]
fn random_profiles_decide_as_through_libseccomp() {
    let Some(mut oracle) = Oracle::start("random_profiles_decide_as_through_libseccomp") else {
        return;
    };
    let rounds = rounds(2000);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut faulty) = (0, 0);
    for _ in 0..rounds {
        let section = random_section(&oracle, &mut dice, Kind::Sound);
        match oracle.filter(&section) {
            Ok(theirs) => faulty += usize::from(compare(&oracle, &section, &theirs, &mut dice, 30)),
            Err(_) => refused += 1,
        }
    }
    println!("{rounds} profiles: {refused} refused by libseccomp, {faulty} got wrong by it");
    assert!(refused * 2 < rounds && faulty * 50 < rounds as usize);
}
