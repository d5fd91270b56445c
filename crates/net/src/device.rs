//! Links of the host that move into a container (runtime-spec, config-linux.md, "Network Devices").

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::netlink::{Batch, Socket, within};
use crate::route::{self, Link};
use crate::{Error, Result, Subnet};

/// A link of the caller's network namespace, and what it is called where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Here.
    pub name: String,
    /// There.
    pub new_name: String,
}

/// That the kernel can call a link so (`dev_valid_name` of Linux).
pub fn is_link_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 16
        && !matches!(name, "." | "..")
        && !name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// Moves the links into another network namespace, with their permanent addresses of global scope, and
/// sets them up. None is moved unless all are there: a virtual link dies with the namespace that it is in.
///
/// # Errors
/// [`Error::Kernel`] for a link that is not there, a name that is taken, and without CAP_NET_ADMIN here and
/// there.
pub fn move_into(namespace: BorrowedFd<'_>, devices: &[Device]) -> Result<()> {
    let socket = Socket::route()?;
    let mut found: Vec<(&Device, Link)> = Vec::with_capacity(devices.len());
    for device in devices {
        let link = socket.link(&device.name)?.ok_or_else(|| {
            let what = format!("find the network device {}", device.name);
            Error::of("netlink", what)(rustix::io::Errno::NODEV)
        })?;
        found.push((device, link));
    }
    let addresses = socket.lasting_addresses()?;
    for (device, link) in found {
        let own: Vec<Subnet> = addresses
            .iter()
            .filter(|(index, _)| *index == link.index)
            .map(|(_, address)| *address)
            .collect();
        let mut batch = Batch::default();
        route::move_link(&mut batch, &link, namespace.as_raw_fd(), &device.new_name);
        socket.apply(&batch)?;
        within(namespace, || settle(&device.new_name, &own))?;
    }
    Ok(())
}

/// Gives a link in the caller's namespace its addresses, and sets it up.
fn settle(name: &str, addresses: &[Subnet]) -> Result<()> {
    let socket = Socket::route()?;
    let link = socket.link(name)?.ok_or_else(|| {
        Error::of("netlink", format!("find the network device {name}"))(rustix::io::Errno::NODEV)
    })?;
    let mut batch = Batch::default();
    for address in addresses {
        route::add_address(&mut batch, link.index, address.address(), address.prefix());
    }
    route::set_up(&mut batch, name, None);
    socket.apply(&batch)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn names_are_the_kernels() {
        for good in ["eth0", "a", "fifteen-letters", "é"] {
            assert!(is_link_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "sixteen-letters!",
            "a\n",
        ] {
            assert!(!is_link_name(bad), "{bad}");
        }
    }

    /// In a network namespace of this test's thread alone.
    #[test]
    fn a_link_moves_with_its_addresses() {
        if !crate::testing::private("a_link_moves_with_its_addresses") {
            return;
        }
        let inner = crate::testing::namespace();
        let socket = Socket::route().unwrap();
        let made = std::process::Command::new("ip")
            .args([
                "link", "add", "dev0", "type", "veth", "peer", "name", "dev1",
            ])
            .status();
        assert!(made.unwrap().success());
        let index = socket.link("dev0").unwrap().unwrap().index;
        let mut batch = Batch::default();
        for (address, prefix) in [("10.9.0.1", 24), ("fd09::1", 64)] {
            route::add_address(&mut batch, index, address.parse().unwrap(), prefix);
        }
        route::set_up(&mut batch, "dev0", None);
        socket.apply(&batch).unwrap();
        let device = |name: &str, new_name: &str| Device {
            name: name.to_owned(),
            new_name: new_name.to_owned(),
        };
        // One that is not there keeps all where they are.
        let missing = [device("dev0", "eth0"), device("none", "eth1")];
        let error = move_into(inner.as_fd(), &missing).unwrap_err();
        assert_eq!(error.to_string(), "cannot find the network device none");
        assert!(socket.link("dev0").unwrap().is_some());

        move_into(inner.as_fd(), &[device("dev0", "eth0")]).unwrap();
        assert!(socket.link("dev0").unwrap().is_none());
        within(inner.as_fd(), || {
            let socket = Socket::route()?;
            let link = socket.link("eth0")?.unwrap();
            assert!(link.up);
            // The kernel's own of scope link is made anew, not carried along.
            let mut addresses: Vec<String> = socket
                .lasting_addresses()?
                .into_iter()
                .filter(|(index, _)| *index == link.index)
                .map(|(_, address)| address.to_string())
                .collect();
            addresses.sort();
            assert_eq!(addresses, ["10.9.0.1/24", "fd09::1/64"]);
            Ok(())
        })
        .unwrap();
        let taken = move_into(inner.as_fd(), &[device("dev1", "eth0")]).unwrap_err();
        assert_eq!(
            taken.to_string(),
            "cannot move the network device dev1 as eth0"
        );
        assert_eq!(taken.errno(), Some(rustix::io::Errno::EXIST));
    }
}
