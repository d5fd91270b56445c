//! The packet whose way is followed.

use std::net::IpAddr;

use crate::port::Protocol;

/// The first packet of a connection, as the chains at the forward hook see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The link that it came in by.
    pub input: String,
    /// The link that it leaves by.
    pub output: String,
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// The transport's protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
    /// It came for a published port.
    pub translated: bool,
}

impl Packet {
    pub(super) fn ipv6(&self) -> bool {
        self.destination.is_ipv6()
    }

    /// The bytes of its header that are known, from `offset` on.
    pub(super) fn network(&self) -> Vec<Option<u8>> {
        let known = |bytes: &[u8], at: usize, header: &mut Vec<Option<u8>>| {
            for (place, byte) in header.iter_mut().skip(at).zip(bytes) {
                *place = Some(*byte);
            }
        };
        let number = self.protocol.number();
        match (self.source, self.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![None; 40];
                known(&[number], 6, &mut header);
                known(&source.octets(), 8, &mut header);
                known(&destination.octets(), 24, &mut header);
                header
            }
            (source, destination) => {
                let mut header = vec![None; 20];
                known(&[0x45], 0, &mut header);
                // Not a fragment.
                known(&[0, 0], 6, &mut header);
                known(&[number], 9, &mut header);
                known(&crate::route::octets(source), 12, &mut header);
                known(&crate::route::octets(destination), 16, &mut header);
                header
            }
        }
    }

    /// The same of the transport's header.
    pub(super) fn transport(&self) -> Vec<Option<u8>> {
        let [a, b] = self.port.to_be_bytes();
        let mut header = vec![None; 14];
        if let Some(place) = header.get_mut(2..4) {
            place.copy_from_slice(&[Some(a), Some(b)]);
        }
        // SYN.
        if let (Protocol::Tcp, Some(flags)) = (self.protocol, header.last_mut()) {
            *flags = Some(2);
        }
        header
    }
}

/// A link's name as the kernel compares it.
pub(super) fn padded(name: &str) -> Vec<Option<u8>> {
    let mut bytes: Vec<_> = name.bytes().map(Some).collect();
    bytes.resize(16, Some(0));
    bytes
}
