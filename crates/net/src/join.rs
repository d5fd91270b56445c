//! A container joins its networks, changes them while it runs, and leaves them.
//!
//! In this order, so that a kill at any instant leaves nothing that the next call cannot find:
//! addresses are leased and ports held, names lead to them, ports are written down; then, once the
//! namespace is there, links, addresses and routes are made and the firewall opens. Links are born
//! in the container's namespace and die with it. Leaving goes the other way round.

use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use knarr_fs::failpoint;
use knarr_spec::ContainerId;
use rustix::fs::{Mode, OFlags};

use crate::dns::{self, Responder, Servers, Sockets};
use crate::driver::{self, Wanted};
use crate::firewall::{self, Change, Published};
use crate::network::DriverKind;
use crate::plan::{Attached, Endpoint, Hosts, Joint, Place, Plan};
use crate::port::{self, Held, PortRequest, Target};
use crate::route::Mac;
use crate::{Error, Result, conntrack, lease};

/// A container's part in its networks, held by its monitor.
#[derive(Debug)]
pub struct Membership {
    run_root: PathBuf,
    id: ContainerId,
    /// As it is now.
    attached: Attached,
    /// The networks' own descriptions, in the same order.
    endpoints: Vec<Endpoint>,
    hosts: Option<Hosts>,
    held: Vec<Held>,
    published: Vec<Published>,
    servers: Servers,
    responder: Option<Responder>,
    namespace: Option<OwnedFd>,
    /// From when there are links until it is dropped.
    firewall: Option<firewall::Hold>,
}

impl Membership {
    /// Before there is a namespace: addresses, names, ports, `/etc/hosts`. A name resolves from here
    /// on. What was taken is given back on failure.
    ///
    /// # Errors
    /// An address or port in use, named with its holder; no address left.
    pub fn prepare(run_root: &Path, id: &ContainerId, plan: &Plan) -> Result<Self> {
        let mut membership = Self {
            run_root: run_root.to_owned(),
            id: id.clone(),
            attached: Attached::default(),
            endpoints: Vec::new(),
            hosts: plan.hosts.clone(),
            held: Vec::new(),
            published: Vec::new(),
            servers: plan.servers.clone(),
            responder: None,
            namespace: None,
            firewall: None,
        };
        match membership.prepare_all(plan) {
            Ok(()) => Ok(membership),
            Err(error) => {
                // The first failure is the one to tell; the next call on the container sweeps.
                membership.leave().ok();
                membership.give_back().ok();
                Err(error)
            }
        }
    }

    fn prepare_all(&mut self, plan: &Plan) -> Result<()> {
        for endpoint in &plan.endpoints {
            self.take_place(endpoint)?;
        }
        self.write_hosts()?;
        failpoint!("net.leased");
        self.take_ports(&plan.ports)
    }

    /// Its networks and ports as they are.
    pub fn attached(&self) -> &Attached {
        &self.attached
    }

    /// The sockets that keep its ports.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// Where a connection to a held socket is to go: the container's address on the network that its
    /// ports are published from.
    pub fn target(&self) -> Option<IpAddr> {
        self.attached.behind_host()?.addresses().next()
    }

    /// Leases addresses and makes the names lead to them.
    fn take_place(&mut self, endpoint: &Endpoint) -> Result<()> {
        let network = &endpoint.network;
        let mut joint = Joint {
            network: network.name.clone(),
            network_id: network.id.clone(),
            interface: self.free_interface(network.prefix()),
            link: String::new(),
            mac: Mac([0; 6]),
            ipv4: None,
            ipv6: None,
            names: endpoint.names.clone(),
            internal: network.internal,
            gateway_priority: endpoint.gateway_priority,
            behind_host: driver::of(network.driver).is_behind_host() && !network.internal,
        };
        let lease = |ipv6: bool, wanted: Option<IpAddr>| {
            network
                .pool(ipv6)
                .map(|pool| {
                    let address = lease::take(&self.run_root, network, pool, wanted, &self.id)?;
                    Ok::<_, Error>((address, pool.subnet.prefix(), pool.gateway))
                })
                .transpose()
        };
        let ipv4 = lease(false, endpoint.ipv4.map(IpAddr::from))?;
        // What is leased already must be known before the next step can fail.
        if let Some((IpAddr::V4(address), prefix, gateway)) = ipv4 {
            joint.ipv4 = Some(Place {
                address,
                prefix,
                gateway: gateway.and_then(|gateway| match gateway {
                    IpAddr::V4(gateway) => Some(gateway),
                    IpAddr::V6(_) => None,
                }),
            });
        }
        let ipv6 = lease(true, endpoint.ipv6.map(IpAddr::from));
        if let Ok(Some((IpAddr::V6(address), prefix, gateway))) = ipv6 {
            joint.ipv6 = Some(Place {
                address,
                prefix,
                gateway: gateway.and_then(|gateway| match gateway {
                    IpAddr::V6(gateway) => Some(gateway),
                    IpAddr::V4(_) => None,
                }),
            });
        }
        let first = joint.addresses().next();
        joint.mac = match (endpoint.mac, first) {
            (Some(mac), _) => mac,
            (None, Some(address)) => Mac::of_any(address),
            (None, None) => {
                return Err(Error::invalid(format!(
                    "network {} has no addresses",
                    network.name
                )));
            }
        };
        let addresses: Vec<IpAddr> = joint.addresses().collect();
        self.attached.endpoints.push(joint);
        self.endpoints.push(endpoint.clone());
        ipv6?;
        failpoint!("net.address");
        for address in addresses {
            lease::add_names(
                &self.run_root,
                &network.name,
                &self.id,
                &endpoint.names,
                address,
            )?;
        }
        failpoint!("net.named");
        Ok(())
    }

    fn free_interface(&self, prefix: &str) -> String {
        let taken = |name: &String| {
            self.attached
                .endpoints
                .iter()
                .any(|joint| joint.interface == *name)
        };
        (0..)
            .map(|number| format!("{prefix}{number}"))
            .find(|name| !taken(name))
            .unwrap_or_default()
    }

    fn take_ports(&mut self, ports: &[PortRequest]) -> Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        let Some(joint) = self.attached.behind_host() else {
            return Err(Error::invalid_hint(
                "ports cannot be published: the container is on no network behind this host",
                "join a network of the driver bridge that is not internal",
            ));
        };
        let target = Target {
            ipv4: joint.ipv4.map(|place| place.address),
            ipv6: joint.ipv6.map(|place| place.address),
        };
        let taken = port::take(ports, target)?;
        self.held.extend(taken.held);
        self.attached.ports.extend(taken.bound);
        self.attached.ports.sort_unstable();
        self.published.extend(taken.published);
        // Written down before the firewall knows them.
        firewall::remember(&self.run_root, &self.id, &self.published)?;
        failpoint!("net.ports");
        Ok(())
    }

    /// Once there is a namespace: links, addresses, routes; then the ports are open.
    ///
    /// # Errors
    /// When the kernel refuses. The links go with the namespace, the rest with [`Self::leave`].
    pub fn connect(&mut self, namespace: OwnedFd) -> Result<()> {
        let ipv6 = self
            .attached
            .endpoints
            .iter()
            .any(|joint| joint.ipv6.is_some());
        if !ipv6 {
            // No link-local address that nobody asked for.
            crate::netlink::within(as_fd(&namespace), || {
                crate::host::sysctl_if_there("ipv6/conf/default/disable_ipv6", "1")
            })?;
        }
        self.firewall = Some(firewall::hold(&self.run_root)?);
        for index in 0..self.endpoints.len() {
            self.make_link(as_fd(&namespace), index, index + 1 == self.endpoints.len())?;
        }
        self.responder = Some(self.serve_names(as_fd(&namespace))?);
        self.namespace = Some(namespace);
        failpoint!("net.linked");
        if !self.published.is_empty() {
            firewall::change(&self.run_root, &Change::Publish(self.published.clone()))?;
            conntrack::forget(&self.published);
        }
        failpoint!("net.published");
        Ok(())
    }

    fn make_link(&mut self, namespace: BorrowedFd<'_>, index: usize, route: bool) -> Result<()> {
        let (Some(endpoint), Some(joint)) = (
            self.endpoints.get(index),
            self.attached.endpoints.get_mut(index),
        ) else {
            return Ok(());
        };
        let driver = driver::of(endpoint.network.driver);
        let wanted = Wanted {
            run_root: &self.run_root,
            network: &endpoint.network,
            namespace,
            id: &self.id,
            publishes: !self.published.is_empty(),
        };
        driver.connect(&wanted, joint)?;
        if endpoint.network.driver == DriverKind::Ipvlan {
            // Its Ethernet address is the lower link's.
            joint.mac = Mac([0; 6]);
        }
        let joint = joint.clone();
        driver::configure(namespace, &joint, route.then_some(&self.attached))
    }

    /// Takes over from a monitor that died: the container goes on, and its ports are held again.
    /// One that somebody else has taken meanwhile is left out. What `attached` does not tell of was
    /// being made or taken away when the monitor died, and goes: ports, and what is on the networks
    /// `noted`.
    ///
    /// # Errors
    /// When the kernel or the disk refuses.
    pub fn adopt(
        run_root: &Path,
        id: &ContainerId,
        plan: &Plan,
        attached: Attached,
        noted: &[String],
        namespace: Option<OwnedFd>,
    ) -> Result<Self> {
        // Without it the container is worth adopting, too; the next start makes the table anew.
        let firewall = firewall::hold(run_root).ok();
        let mut attached = attached;
        for joint in attached
            .endpoints
            .iter_mut()
            .filter(|joint| joint.link.is_empty())
        {
            joint.link = lease::newest_link(&joint.network, id)?.unwrap_or_default();
        }
        let endpoints = attached
            .endpoints
            .iter()
            .filter_map(|joint| {
                plan.endpoints
                    .iter()
                    .find(|endpoint| endpoint.network.name == joint.network)
                    .cloned()
            })
            .collect();
        let mut published = firewall::remembered(run_root, id)?;
        published.retain(|one| {
            let mut addresses = attached.endpoints.iter().flat_map(Joint::addresses);
            addresses.any(|address| address == one.target)
                && attached
                    .ports
                    .iter()
                    .any(|bound| one.covers(bound.protocol, bound.port))
        });
        attached.ports.retain(|bound| {
            bound.host.is_ipv6()
                || published
                    .iter()
                    .any(|one| one.covers(bound.protocol, bound.port))
        });
        conntrack::forget(&firewall::close(run_root, id, &published)?);
        for network in noted.iter().filter(|name| attached.on(name).is_none()) {
            leave_behind(run_root, id, network, namespace.as_ref())?;
        }
        let held = attached
            .ports
            .iter()
            .filter_map(|bound| port::hold_again(*bound))
            .collect();
        let mut membership = Self {
            run_root: run_root.to_owned(),
            id: id.clone(),
            attached,
            endpoints,
            hosts: plan.hosts.clone(),
            held,
            published,
            servers: plan.servers.clone(),
            responder: None,
            namespace,
            firewall,
        };
        if let Some(namespace) = &membership.namespace {
            membership.responder = Some(membership.serve_names(as_fd(namespace))?);
        }
        // The dead one may have been about to. Without it the container is worth adopting, too.
        membership.write_hosts().ok();
        Ok(membership)
    }

    /// Its part in keeping the firewall, from [`Self::connect`] on.
    pub fn firewall(&self) -> Option<&firewall::Hold> {
        self.firewall.as_ref()
    }

    /// The container's name server, from [`Self::connect`] on: its monitor's loop hosts it.
    pub fn name_server(&self) -> Option<&Responder> {
        self.responder.as_ref()
    }

    /// The same, to have its turn.
    pub fn name_server_mut(&mut self) -> Option<&mut Responder> {
        self.responder.as_mut()
    }

    /// Makes the sockets of the name server and leads port 53 to them. The port is a function of
    /// the container: a program that goes on asking from the same socket is led where it was led
    /// before, also when the monitor is another one.
    fn serve_names(&self, namespace: BorrowedFd<'_>) -> Result<Responder> {
        const FIRST: u16 = 49152;
        let hash = knarr_spec::fnv1a(self.id.as_str().as_bytes()).to_be_bytes();
        let port = FIRST | u16::from_be_bytes([hash[0], hash[1]]) >> 2;
        let sockets = Sockets::open_in(namespace, port)?;
        dns::redirect(namespace, &sockets)?;
        Responder::new(&self.names(), sockets)
    }

    /// What names are answered from. On internal networks only, names lead nowhere else.
    fn names(&self) -> dns::Config {
        let endpoints = &self.attached.endpoints;
        let servers = if endpoints.iter().all(|joint| joint.internal) {
            Servers::None
        } else {
            self.servers.clone()
        };
        dns::Config {
            run_root: self.run_root.clone(),
            networks: endpoints
                .iter()
                .map(|joint| joint.network.clone())
                .collect(),
            servers,
        }
    }

    /// The networks have changed.
    fn renew_names(&mut self) {
        let names = self.names();
        if let Some(responder) = &mut self.responder {
            responder.set_config(&names);
        }
    }

    /// Joins one more network while it runs.
    ///
    /// # Errors
    /// As [`Self::prepare`] and [`Self::connect`]; nothing is left of it then.
    pub fn join(&mut self, endpoint: &Endpoint) -> Result<()> {
        let name = endpoint.network.name.clone();
        if self.attached.on(&name).is_some() {
            return Err(Error::invalid(format!(
                "endpoint with name {} already exists in network {name}",
                self.id.short()
            )));
        }
        let before = self.attached.endpoints.len();
        let joined = self.take_place(endpoint).and_then(|()| {
            failpoint!("net.joining");
            let namespace = self.own_namespace()?;
            if endpoint.network.ipv6 {
                crate::netlink::within(as_fd(&namespace), || {
                    crate::host::sysctl_if_there("ipv6/conf/default/disable_ipv6", "0")
                })?;
            }
            self.make_link(as_fd(&namespace), before, true)?;
            self.renew_names();
            self.write_hosts()
        });
        if joined.is_err() && self.attached.endpoints.len() > before {
            // The first failure is the one to tell.
            self.part(&name).ok();
        }
        joined
    }

    /// Leaves a network while it runs.
    ///
    /// # Errors
    /// When it is not on it, or the kernel refuses.
    pub fn part(&mut self, network: &str) -> Result<()> {
        let Some(index) = self
            .attached
            .endpoints
            .iter()
            .position(|joint| joint.network == network)
        else {
            return Err(Error::invalid(format!(
                "container {} is not connected to network {network}",
                self.id.short()
            )));
        };
        let joint = self.attached.endpoints[index].clone();
        let addresses: Vec<IpAddr> = joint.addresses().collect();
        let kept = self.published.iter();
        let kept = kept.filter(|published| !addresses.contains(&published.target));
        self.close_ports_but(kept.cloned().collect())?;
        for address in &addresses {
            lease::remove_names(&self.run_root, network, &self.id, &joint.names, *address)?;
        }
        failpoint!("net.parting");
        let namespace = self.own_namespace()?;
        let kind = self
            .endpoints
            .get(index)
            .map_or(DriverKind::Bridge, |e| e.network.driver);
        driver::of(kind).disconnect(as_fd(&namespace), &joint)?;
        failpoint!("net.unlinked");
        for address in &addresses {
            lease::give_back(&self.run_root, network, &self.id, *address)?;
        }
        self.attached.endpoints.remove(index);
        if index < self.endpoints.len() {
            self.endpoints.remove(index);
        }
        self.renew_names();
        driver::reroute(as_fd(&namespace), &self.attached)?;
        self.write_hosts()
    }

    /// Publishes more ports while it runs.
    ///
    /// # Errors
    /// When one is taken; nothing is published then.
    pub fn publish(&mut self, ports: &[PortRequest]) -> Result<()> {
        let (held, bound, before) = (
            self.held.len(),
            self.attached.ports.clone(),
            self.published.len(),
        );
        let done = self.take_ports(ports).and_then(|()| {
            if let Some(joint) = self.attached.behind_host() {
                driver::publishes(joint)?;
            }
            let new = self.published.get(before..).unwrap_or_default().to_vec();
            firewall::change(&self.run_root, &Change::Publish(new.clone()))?;
            conntrack::forget(&new);
            Ok(())
        });
        if done.is_err() {
            self.held.truncate(held);
            self.attached.ports = bound;
            self.published.truncate(before);
            firewall::close(&self.run_root, &self.id, &self.published)?;
        }
        done
    }

    /// Ceases to publish a port of the container, or all of them.
    ///
    /// # Errors
    /// When none is published, or the kernel refuses.
    pub fn unpublish(&mut self, port: Option<(u16, port::Protocol)>) -> Result<()> {
        let bound = |bound: &port::Bound| {
            port.is_none_or(|(number, protocol)| bound.port == number && bound.protocol == protocol)
        };
        if !self.attached.ports.iter().any(bound) {
            return Err(Error::invalid(match port {
                Some((number, protocol)) => format!(
                    "no public port '{number}/{protocol}' published for {}",
                    self.id.short()
                ),
                None => format!("container {} publishes no port", self.id.short()),
            }));
        }
        let kept = match port {
            Some((number, protocol)) => {
                let all = self.published.iter();
                all.flat_map(|one| match one.covers(protocol, number) {
                    true => one.without(number).collect(),
                    false => vec![one.clone()],
                })
                .collect()
            }
            None => Vec::new(),
        };
        self.close_ports_but(kept)?;
        self.held.retain(|held| !bound(&held.bound));
        self.attached.ports.retain(|one| !bound(one));
        Ok(())
    }

    /// Takes all ports but these out of the firewall.
    fn close_ports_but(&mut self, kept: Vec<Published>) -> Result<()> {
        self.published = kept;
        let gone = firewall::close(&self.run_root, &self.id, &self.published)?;
        conntrack::forget(&gone);
        let within = |all: &[Published], bound: &port::Bound| {
            let mut all = all.iter();
            all.any(|one| one.covers(bound.protocol, bound.port))
        };
        let stays = |bound: &port::Bound| !within(&gone, bound) || within(&self.published, bound);
        self.held.retain(|held| stays(&held.bound));
        self.attached.ports.retain(stays);
        Ok(())
    }

    /// The container has ended: ports are closed, names lead nowhere. Its addresses are kept until
    /// [`Self::give_back`].
    ///
    /// # Errors
    /// The first failure, after trying everything.
    pub fn leave(&mut self) -> Result<()> {
        self.responder = None;
        self.namespace = None;
        let closed = self.close_ports_but(Vec::new());
        self.held.clear();
        self.attached.ports.clear();
        let mut named = Ok(());
        for joint in &self.attached.endpoints {
            for address in joint.addresses() {
                let removed = lease::remove_names(
                    &self.run_root,
                    &joint.network,
                    &self.id,
                    &joint.names,
                    address,
                );
                named = named.and(removed);
            }
        }
        failpoint!("net.left");
        closed.and(named)
    }

    /// Gives the addresses back whose links are gone. `false` where a link is still there: the
    /// kernel takes it away a moment after the namespace, which another container may have joined.
    ///
    /// # Errors
    /// When the kernel does not tell, or a symlink cannot be removed.
    pub fn give_back(&mut self) -> Result<bool> {
        let mut all = true;
        let mut result = Ok(());
        self.attached.endpoints.retain(|joint| {
            let free = lease::has_link(&joint.network, &self.id).map(|there| !there);
            if !matches!(free, Ok(true)) {
                all = false;
                return true;
            }
            // Those included that an earlier start could not give back.
            let given = lease::give_back_all(&self.run_root, &joint.network, &self.id);
            if result.is_ok() {
                result = given;
            }
            false
        });
        result.map(|()| all)
    }

    fn own_namespace(&self) -> Result<OwnedFd> {
        match &self.namespace {
            Some(namespace) => namespace.try_clone().map_err(|error| Error::Kernel {
                what: "hold the container's network namespace".to_owned(),
                cause: knarr_sys::Failure::from_io("dup", &error),
            }),
            None => Err(Error::invalid(format!(
                "container {} has no network namespace of its own",
                self.id.short()
            ))),
        }
    }

    /// Writes the file anew, in place: the container has it as a bind mount.
    fn write_hosts(&self) -> Result<()> {
        let Some(hosts) = &self.hosts else {
            return Ok(());
        };
        let text = format!("{}{}", hosts.head, self.attached.hosts_lines(&hosts.names));
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&hosts.path, flags, Mode::empty())
            .map_err(knarr_fs::Error::of("open", "open", &hosts.path))?;
        std::io::Write::write_all(&mut std::fs::File::from(file), text.as_bytes())
            .map_err(knarr_fs::Error::of_io("write", "write", &hosts.path))?;
        Ok(())
    }
}

/// Takes away what somebody who was killed at it has left of a live container on a network.
fn leave_behind(
    run_root: &Path,
    id: &ContainerId,
    network: &str,
    namespace: Option<&OwnedFd>,
) -> Result<()> {
    lease::forget_names(run_root, network, id)?;
    let leased = lease::holders(run_root, network)?;
    let leased = leased.iter().filter(|(_, holder)| holder == id);
    let macs: Vec<Mac> = leased.map(|(address, _)| Mac::of_any(*address)).collect();
    if let Some(link) = lease::newest_link(network, id)? {
        driver::delete(&link)?;
    }
    // One that is above a link of the host's has no end there.
    if let Some(namespace) = namespace {
        crate::netlink::within(as_fd(namespace), || driver::delete_by_mac(&macs))?;
    }
    lease::give_back_all(run_root, network, id)
}

fn as_fd(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

/// Undoes what a killed monitor left of a container that does not live: ports, names, and the
/// addresses whose links are gone. The kernel takes a link away soon after the last process, so
/// this waits for a moment.
///
/// # Errors
/// The first failure, after trying everything.
pub fn sweep(run_root: &Path, id: &ContainerId, networks: &[String]) -> Result<()> {
    let mut result = firewall::close(run_root, id, &[]).map(|gone| conntrack::forget(&gone));
    for network in networks {
        result = result.and(lease::forget_names(run_root, network, id));
        let deadline = Instant::now() + Duration::from_secs(2);
        while lease::has_link(network, id)? && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !lease::has_link(network, id)? {
            result = result.and(lease::give_back_all(run_root, network, id));
        }
    }
    result
}
