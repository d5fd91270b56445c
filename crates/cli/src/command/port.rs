//! `port`: what a container publishes.

use std::net::IpAddr;

use knarr_engine::PublishedPort;

use super::{Arguments, Command, USUAL};
use crate::failure::{Failure, Result};
use crate::output;

pub(super) static COMMAND: Command = Command {
    names: &["port", "container port"],
    usage: "CONTAINER [PRIVATE_PORT[/PROTO]]",
    about: "List port mappings or a specific mapping for the container",
    arguments: Arguments::Between(1, 2),
    run: |call| {
        let all = call.engine()?.ports(call.arg(0))?;
        match call.arg(1) {
            "" => {
                let lines = all
                    .iter()
                    .map(|one| format!("{}/{} -> {}\n", one.port, one.protocol, host(one)));
                output::print(&lines.collect::<String>())?;
            }
            wanted => one(&all, wanted, call.arg(0))?,
        }
        Ok(0)
    },
    ..USUAL
};

fn one(all: &[PublishedPort], wanted: &str, container: &str) -> Result<()> {
    let (port, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let number: u16 = port
        .parse()
        .map_err(|_| Failure::invalid(format!("invalid port: {wanted}")))?;
    let lines: String = all
        .iter()
        .filter(|one| one.port == number && one.protocol == protocol)
        .map(|one| host(one) + "\n")
        .collect();
    if lines.is_empty() {
        return Err(Failure::invalid(format!(
            "no public port '{number}/{protocol}' published for {container}"
        )));
    }
    output::print(&lines)
}

fn host(one: &PublishedPort) -> String {
    match one.host {
        IpAddr::V4(address) => format!("{address}:{}", one.host_port),
        IpAddr::V6(address) => format!("[{address}]:{}", one.host_port),
    }
}
