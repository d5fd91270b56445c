//! Puts a program together from its end to its beginning: every jump of classic BPF goes forward,
//! so its target is already there and its distance known.

use std::collections::HashMap;

use knarr_sys::seccomp::Instruction;

/// `seccomp_data`: number of the call.
pub(crate) const NUMBER: u32 = 0;
/// `seccomp_data`: architecture.
pub(crate) const ARCHITECTURE: u32 = 4;
/// `seccomp_data`: the low word of argument `index`; the high word follows (little endian).
pub(crate) const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const GO: u16 = 0x05;

/// A comparison of the accumulator with a constant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Test {
    Equal = 0x15,
    Greater = 0x25,
    GreaterOrEqual = 0x35,
    AnyBit = 0x45,
}

/// A place in the program, counted from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// The program so far, last instruction first.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    reversed: Vec<Instruction>,
    returns: HashMap<u32, Label>,
}

impl Assembler {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        Label(self.reversed.len() - 1)
    }

    /// How many instructions the next one would have to jump over to reach `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0 - 1
    }

    /// Ends with an action. Shared where one is near enough.
    pub(crate) fn ret(&mut self, action: u32) -> Label {
        match self.returns.get(&action) {
            // Leave room for what will stand between the jump and here.
            Some(&label) if self.distance(label) < 200 => label,
            _ => {
                let label = self.push(RETURN, 0, 0, action);
                self.returns.insert(action, label);
                label
            }
        }
    }

    /// Loads a word of `seccomp_data`, then goes on at `next`.
    pub(crate) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.fall_to(next);
        self.push(LOAD, 0, 0, offset)
    }

    /// Masks the accumulator, then goes on at `next`.
    pub(crate) fn and(&mut self, mask: u32, next: Label) -> Label {
        self.fall_to(next);
        self.push(AND, 0, 0, mask)
    }

    /// Goes on at `yes` or `no`.
    pub(crate) fn test(&mut self, test: Test, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        let (mut yes, mut no) = (yes, no);
        // A stepping stone moves the other target one further away.
        loop {
            if self.distance(yes) > 255 {
                yes = self.stone(yes);
            } else if self.distance(no) > 255 {
                no = self.stone(no);
            } else {
                break;
            }
        }
        // Both fit by the loop above.
        let offset = |distance| u8::try_from(distance).unwrap_or(u8::MAX);
        self.push(
            test as u16,
            offset(self.distance(yes)),
            offset(self.distance(no)),
            k,
        )
    }

    /// A near instruction that has the effect of the far one at `label`.
    fn stone(&mut self, label: Label) -> Label {
        match self.reversed.get(label.0) {
            Some(&Instruction {
                code: RETURN, k, ..
            }) => {
                let label = self.push(RETURN, 0, 0, k);
                self.returns.insert(k, label);
                label
            }
            _ => self.go(label),
        }
    }

    fn go(&mut self, label: Label) -> Label {
        let distance = u32::try_from(self.distance(label)).unwrap_or(u32::MAX);
        self.push(GO, 0, 0, distance)
    }

    /// Makes sure that what is pushed next runs into `label`.
    fn fall_to(&mut self, label: Label) {
        if self.distance(label) > 0 {
            self.stone(label);
        }
    }

    /// The program that starts at `entry`.
    pub(crate) fn finish(mut self, entry: Label) -> Vec<Instruction> {
        self.fall_to(entry);
        self.reversed.reverse();
        self.reversed
    }
}
