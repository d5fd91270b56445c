//! Ranges of addresses: `172.17.0.0/16`, `fd00::/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// An address and how many of its leading bits name the network. [`Subnet::of`] has the others
/// zero; [`Subnet::holding`] keeps them (an interface's address).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The network of that size that an address is in.
    pub fn of(address: IpAddr, prefix: u8) -> Self {
        let all = Self::holding(address, prefix);
        Self {
            address: all.at_bits(all.first()),
            prefix: all.prefix,
        }
    }

    /// An address in its network.
    pub fn holding(address: IpAddr, prefix: u8) -> Self {
        let most = if address.is_ipv4() { 32 } else { 128 };
        Self {
            address,
            prefix: prefix.min(most),
        }
    }

    /// The address as it was given.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The length of the network's part, in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether these are IPv6 addresses.
    pub fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(address) => u32::from(address).into(),
            IpAddr::V6(address) => u128::from(address),
        }
    }

    /// The address of this family with these bits.
    fn at_bits(&self, bits: u128) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
            IpAddr::V6(_) => Ipv6Addr::from(bits).into(),
        }
    }

    fn host_mask(&self) -> u128 {
        let bits = if self.is_ipv6() { 128 } else { 32 };
        match bits - u32::from(self.prefix) {
            128 => u128::MAX,
            hosts => (1 << hosts) - 1,
        }
    }

    fn first(&self) -> u128 {
        Self::bits(self.address) & !self.host_mask()
    }

    fn last(&self) -> u128 {
        Self::bits(self.address) | self.host_mask()
    }

    /// The network's own address.
    pub fn network(&self) -> IpAddr {
        self.at_bits(self.first())
    }

    /// The last address: of IPv4, the broadcast address.
    pub fn end(&self) -> IpAddr {
        self.at_bits(self.last())
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.is_ipv6()
            && (self.first()..=self.last()).contains(&Self::bits(address))
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv6() == other.is_ipv6()
            && self.first() <= other.last()
            && other.first() <= self.last()
    }

    /// Whether all of `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.contains(other.network()) && self.contains(other.end())
    }

    /// The `nth` address; `None` behind the end.
    pub fn nth(&self, nth: u128) -> Option<IpAddr> {
        let bits = self.first().checked_add(nth)?;
        (bits <= self.last()).then(|| self.at_bits(bits))
    }

    /// Where an address is, counted from the network's own.
    pub fn position(&self, address: IpAddr) -> Option<u128> {
        self.contains(address)
            .then(|| Self::bits(address) - self.first())
    }

    /// How many addresses there are, less one.
    pub fn last_position(&self) -> u128 {
        self.last() - self.first()
    }

    /// The networks of size `prefix` in it, in order.
    pub fn split(self, prefix: u8) -> impl Iterator<Item = Self> {
        let bits = if self.is_ipv6() { 128 } else { 32 };
        let step = 1u128.checked_shl(bits - u32::from(prefix));
        let mut next = (prefix >= self.prefix).then(|| self.first());
        std::iter::from_fn(move || {
            let start = next.filter(|start| *start <= self.last())?;
            next = step.and_then(|step| start.checked_add(step));
            Some(Self::of(self.at_bits(start), prefix))
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = Error;

    /// `address/prefix`; the address is kept as it is.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("invalid CIDR address: {text}"));
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !digits || prefix > most {
            return Err(bad());
        }
        Ok(Self { address, prefix })
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_are_parsed_and_compared() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/+8",
            "x/8",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        let net = subnet("172.17.3.4/16");
        assert_eq!(net.to_string(), "172.17.3.4/16");
        assert_eq!(Subnet::of(net.address(), 16).to_string(), "172.17.0.0/16");
        assert_eq!(net.end().to_string(), "172.17.255.255");
        for (left, right, overlap) in [
            ("10.0.0.0/8", "10.9.0.0/16", true),
            ("10.0.0.0/16", "10.1.0.0/16", false),
            ("0.0.0.0/0", "10.1.0.0/16", true),
            ("::/0", "10.1.0.0/16", false),
            ("fd00::/8", "fd12::/64", true),
        ] {
            assert_eq!(
                subnet(left).overlaps(&subnet(right)),
                overlap,
                "{left} {right}"
            );
            assert_eq!(
                subnet(right).overlaps(&subnet(left)),
                overlap,
                "{left} {right}"
            );
        }
        assert_eq!(subnet("0.0.0.0/0").last_position(), u128::from(u32::MAX));
        assert_eq!(subnet("::/0").last_position(), u128::MAX);
    }

    #[test]
    fn a_subnet_is_split_into_smaller_ones() {
        let all: Vec<_> = subnet("192.168.0.0/16")
            .split(20)
            .map(|net| net.to_string())
            .collect();
        assert_eq!(all.len(), 16);
        assert_eq!(
            (all[0].as_str(), all[15].as_str()),
            ("192.168.0.0/20", "192.168.240.0/20")
        );
        assert_eq!(subnet("10.0.0.0/24").split(16).count(), 0);
        assert_eq!(subnet("::/0").split(0).count(), 1);
        assert_eq!(subnet("255.255.255.0/24").split(25).count(), 2);
    }
}
