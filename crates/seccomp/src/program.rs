//! A compiled filter.

use knarr_sys::seccomp::{Flags, Instruction};

use crate::{Error, Result};

/// What `knarr_sys::seccomp::load` takes. Serializes as text, for a plan that crosses processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
    flags: Flags,
}

impl Program {
    pub(crate) fn new(instructions: Vec<Instruction>, flags: Flags) -> Self {
        Self {
            instructions,
            flags,
        }
    }

    /// The instructions, at most 4096.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The flags of seccomp(2); [`Flags::NEW_LISTENER`] is in them if a rule asks a listener.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// Flags (4 bytes) and the array of `struct sock_filter`, little endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.instructions.len() * 8);
        bytes.extend(self.flags.bits().to_le_bytes());
        for instruction in &self.instructions {
            bytes.extend(instruction.code.to_le_bytes());
            bytes.extend([instruction.jt, instruction.jf]);
            bytes.extend(instruction.k.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`Error::Bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = || Error::Bytes(bytes.len());
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
        let (chunks, remainder) = rest.as_chunks::<8>();
        if chunks.is_empty() || chunks.len() > 4096 || !remainder.is_empty() {
            return Err(bad());
        }
        let instructions = chunks
            .iter()
            .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Instruction {
                code: u16::from_le_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_le_bytes([k0, k1, k2, k3]),
            })
            .collect();
        Ok(Self::new(
            instructions,
            Flags::from_bits(u32::from_le_bytes(*head)),
        ))
    }
}

impl serde::Serialize for Program {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::prelude::BASE64_STANDARD.encode(self.to_bytes()))
    }
}

impl<'de> serde::Deserialize<'de> for Program {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        use base64::Engine as _;
        use serde::de::Error as _;
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        let bytes = base64::prelude::BASE64_STANDARD
            .decode(text.as_bytes())
            .map_err(D::Error::custom)?;
        Self::from_bytes(&bytes).map_err(D::Error::custom)
    }
}
