//! The container's network: taken before its first process is made, connected before its program
//! runs, given back when it has ended. What is decided about it is in the request's plan.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use knarr_diag::{Explain as _, Report};
use knarr_fs::Durability;
use knarr_net::firewall::Hold;
use knarr_net::port::{PortRequest, Protocol};
use knarr_net::{Attached, Endpoint, Membership, Plan};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::splice::Splices;
use super::{FIREWALL, FIRST_PORT, NAMES, Watch};
use crate::request::Request;
use crate::state::Status;
use crate::{Error, Result, undo};

/// How long the kernel may take to remove the links of a container that has ended. Where it takes
/// longer, another container has joined the namespace; the addresses are swept later.
const LINKS_GO: Duration = Duration::from_secs(2);

impl Watch {
    /// Leases addresses, makes the names lead to them, takes the ports.
    pub(super) fn prepare_network(&mut self, request: &Request) -> Result<()> {
        let Some(plan) = request.network.as_ref() else {
            return Ok(());
        };
        // A restarted container keeps its addresses.
        let mut plan = plan.clone();
        if let Some(last) = self.network.take() {
            for endpoint in &mut plan.endpoints {
                let joint = last.attached().on(&endpoint.network.name);
                let (ipv4, ipv6) = joint.map_or((None, None), |joint| (joint.ipv4, joint.ipv6));
                endpoint.ipv4 = endpoint.ipv4.or(ipv4.map(|place| place.address));
                endpoint.ipv6 = endpoint.ipv6.or(ipv6.map(|place| place.address));
            }
        }
        crate::make_room(sockets(&plan.ports))?;
        let network = Membership::prepare(&self.paths.run_root, &self.id, &plan)?;
        self.keep_network(network)
    }

    /// Takes over what a monitor that died has left of it.
    pub(super) fn adopt_network(&mut self, plan: Option<&Plan>) -> Result<()> {
        let (Some(plan), Some(init)) = (plan, &self.init) else {
            return Ok(());
        };
        let namespace = namespace_of(init.id.pid)?;
        let attached = std::mem::take(&mut self.state.network);
        crate::make_room(attached.ports.len() as u64)?;
        let noted = self.undo.networks().to_vec();
        let network = Membership::adopt(
            &self.paths.run_root,
            &self.id,
            plan,
            attached,
            &noted,
            namespace,
        )?;
        self.keep_network(network)?;
        self.watch_names()
    }

    fn keep_network(&mut self, network: Membership) -> Result<()> {
        self.state.network = network.attached().clone();
        self.network = Some(network);
        self.watch_ports()
    }

    /// Listens on the ports that are held: who comes by an address that cannot be translated is
    /// served by copying.
    fn watch_ports(&self) -> Result<()> {
        let held = self.network.as_ref().map_or(&[][..], Membership::held);
        if !held.is_empty() {
            // With less room fewer connections are served at a time.
            crate::make_room(held.len() as u64 + super::splice::DESCRIPTORS).ok();
        }
        for (token, held) in (FIRST_PORT..).zip(held) {
            if held.bound.protocol != Protocol::Tcp {
                continue;
            }
            let data = EventData::new_u64(token);
            match epoll::add(&self.epoll, &held.socket, data, EventFlags::IN) {
                Err(rustix::io::Errno::EXIST) => {
                    epoll::modify(&self.epoll, &held.socket, data, EventFlags::IN)
                }
                added => added,
            }
            .map_err(Error::of("wait for connections", "epoll_ctl"))?;
        }
        Ok(())
    }

    /// Hosts the container's name server from now on. Questions that came before wait in its
    /// sockets.
    pub(super) fn watch_names(&self) -> Result<()> {
        let server = self.network.as_ref().and_then(Membership::name_server);
        server.map_or(Ok(()), |server| self.add(NAMES, server, EventFlags::IN))?;
        let firewall = self.network.as_ref().and_then(Membership::firewall);
        // One of the monitors is enough.
        let flags = EventFlags::IN | EventFlags::EXCLUSIVE;
        match firewall.and_then(Hold::changes) {
            Some(changes) => self.add(FIREWALL, changes, flags),
            None => Ok(()),
        }
    }

    /// Where the firewall has no owner: somebody has changed something.
    pub(super) fn heal_firewall(&mut self) {
        if let Some(firewall) = self.network.as_ref().and_then(Membership::firewall) {
            // What fails is tried again when something changes, or somebody starts.
            firewall.heal().ok();
        }
    }

    /// Somebody in the container asks for a name, or is due an answer.
    pub(super) fn answer_names(&mut self) {
        if let Some(server) = self.network.as_mut().and_then(Membership::name_server_mut) {
            server.turn(Instant::now());
        }
    }

    /// When the name server has something to do by itself.
    pub(super) fn names_due(&self) -> Option<Instant> {
        self.network.as_ref()?.name_server()?.next_deadline()
    }

    /// Somebody connects to a held port.
    pub(super) fn port_ready(&mut self, token: u64) {
        let index = usize::try_from(token - FIRST_PORT).unwrap_or(usize::MAX);
        let Some(network) = &self.network else { return };
        let (Some(held), Some(target)) = (network.held().get(index), network.target()) else {
            return;
        };
        let to = std::net::SocketAddr::new(target, held.bound.port);
        self.splices
            .accept(self.epoll.as_fd(), held.socket.as_fd(), to);
    }

    /// The container has ended: its ports are closed and its names lead nowhere.
    pub(super) fn leave_network(&mut self) {
        self.splices = Splices::default();
        if let Some(network) = &mut self.network {
            // What fails stays written down, for the next call on the container.
            network.leave().ok();
        }
    }

    /// Gives its addresses back once its links are gone; `false` where they stay leased.
    pub(super) fn give_addresses_back(&mut self) -> bool {
        let Some(network) = &mut self.network else {
            return true;
        };
        let deadline = Instant::now() + LINKS_GO;
        loop {
            match network.give_back() {
                Ok(true) => {
                    self.network = None;
                    return true;
                }
                Ok(false) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(4));
                }
                Ok(false) | Err(_) => return false,
            }
        }
    }

    /// What `state.json` tells is what a monitor that takes over keeps: it tells of what is new once
    /// that is there, and no more of what goes from before it goes.
    pub(super) fn join_network(&mut self, endpoint: &Endpoint) -> std::result::Result<(), Report> {
        // Before the first effect, so that a sweep knows where to look.
        self.undo.note_network(&endpoint.network.name);
        self.undo.save(&self.run).map_err(|error| error.report())?;
        self.change_network(|_| {}, |network| network.join(endpoint))?;
        self.keep_plan(|plan| plan.endpoints.push(endpoint.clone()))
    }

    pub(super) fn part_network(&mut self, name: &str) -> std::result::Result<(), Report> {
        self.change_network(
            |attached| attached.endpoints.retain(|joint| joint.network != name),
            |network| network.part(name),
        )?;
        self.keep_plan(|plan| {
            plan.endpoints
                .retain(|endpoint| endpoint.network.name != name)
        })
    }

    pub(super) fn publish(&mut self, ports: &[PortRequest]) -> std::result::Result<(), Report> {
        let held = self
            .network
            .as_ref()
            .map_or(0, |network| network.held().len());
        crate::make_room(held as u64 + sockets(ports)).map_err(|error| error.report())?;
        self.change_network(|_| {}, |network| network.publish(ports))?;
        self.keep_plan(|plan| plan.ports.extend(ports.iter().cloned()))
    }

    pub(super) fn unpublish(
        &mut self,
        port: Option<(u16, Protocol)>,
    ) -> std::result::Result<(), Report> {
        self.change_network(
            |attached| {
                attached
                    .ports
                    .retain(|bound| port.is_some_and(|port| port != (bound.port, bound.protocol)));
            },
            |network| network.unpublish(port),
        )?;
        self.keep_plan(|plan| {
            plan.ports.retain(|request| {
                port.is_some_and(|(number, protocol)| {
                    let last = request.port.saturating_add(request.count.saturating_sub(1));
                    request.protocol != protocol || !(request.port..=last).contains(&number)
                })
            });
        })
    }

    fn change_network(
        &mut self,
        ahead: impl FnOnce(&mut Attached),
        change: impl FnOnce(&mut Membership) -> knarr_net::Result<()>,
    ) -> std::result::Result<(), Report> {
        if self.init.is_none() || !matches!(self.state.status, Status::Running | Status::Paused) {
            return Err(self.not_running());
        }
        let Some(network) = &mut self.network else {
            return Err(knarr_net::Error::Invalid {
                message: format!("container {} has no network of its own", self.id.short()),
                hint: Some("make it without --network host, none or container:".to_owned()),
            }
            .report());
        };
        ahead(&mut self.state.network);
        if self.state.network != *network.attached() {
            self.state
                .save(&self.run, Durability::Volatile)
                .map_err(|error| error.report())?;
            knarr_fs::failpoint!("monitor.network-changing");
        }
        let done = change(network);
        self.state.network = network.attached().clone();
        let kept = self
            .state
            .save(&self.run, Durability::Volatile)
            .and_then(|()| self.watch_ports());
        knarr_fs::failpoint!("monitor.network-changed");
        done.map_err(|error| error.report())?;
        kept.map_err(|error| error.report())
    }

    /// The next start, and a monitor that takes over, shall find the same.
    fn keep_plan(&self, change: impl FnOnce(&mut Plan)) -> std::result::Result<(), Report> {
        let keep = || -> Result<()> {
            let mut request = Request::load(&self.run)?;
            change(request.network.get_or_insert_default());
            let path = self.run.join(undo::REQUEST_FILE);
            Ok(knarr_fs::write_atomic(
                &path,
                &request.to_json()?,
                Durability::Volatile,
            )?)
        };
        keep().map_err(|error| error.report())
    }
}

/// How many sockets keep these ports.
fn sockets(ports: &[PortRequest]) -> u64 {
    let each = |request: &PortRequest| {
        let families = if request.host.is_none() { 2 } else { 1 };
        u64::from(request.count) * families
    };
    ports.iter().map(each).sum()
}

/// The network namespace of a process; `None` where it has ended.
pub(crate) fn namespace_of(pid: u32) -> Result<Option<OwnedFd>> {
    let path = format!("/proc/{pid}/ns/net");
    match knarr_fs::open_read(Path::new(&path)) {
        Ok(namespace) => Ok(Some(namespace)),
        Err(error)
            if matches!(
                error.errno(),
                Some(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
