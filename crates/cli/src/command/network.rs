//! `network audit`, `connect`, `create`, `disconnect`, `inspect`, `ls`, `prune`, `publish`, `rm`,
//! `unpublish`.

use knarr_engine::{NetworkCreate, NetworkSummary};
use knarr_spec::docker::{EndpointAddresses, EndpointSettings};
use serde_json::{Map, Value};

use super::{Arguments, Call, Command, USUAL, inspect, prune, ps};
use crate::failure::{Failure, Result, each};
use crate::flag::{Flag, value};
use crate::format::{self, Layout};
use crate::output;
use crate::request::{network, parts};

const ONE_MACHINE: &str = "Knarr runs containers on one machine";

const FIX: Flag = Flag::switch(
    "fix",
    "Run the commands that let networks' packets pass the host's own firewall",
);

pub(super) static AUDIT: Command = Command {
    names: &["network audit"],
    usage: "[OPTIONS]",
    about: "List what can be reached from where, and why",
    flags: &[&[FIX, Flag::with("format", "string", ps::FORMAT)]],
    run: |call| {
        let ways = call.engine()?.network_audit(call.line.on("fix"))?;
        let rows: Vec<Value> = ways
            .iter()
            .map(|way| {
                let reachable = if way.reachable { "yes" } else { "no" };
                let fields = [
                    ("Network", way.network.as_str()),
                    ("From", &way.from),
                    ("To", &way.to),
                    ("By", &way.by),
                    ("Reachable", reachable),
                    ("Why", &way.why),
                ];
                let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
                Value::Object(Map::from_iter(fields))
            })
            .collect();
        let text = format::rows(&WAYS, call.line.text("format"), &rows, &|_, _, _| None)?;
        output::print(&text)?;
        Ok(0)
    },
    ..USUAL
};

static WAYS: Layout = Layout {
    table: "{{.From}}\t{{.To}}\t{{.By}}\t{{.Reachable}}\t{{.Why}}",
    titles: &[
        ("By", "BY"),
        ("From", "FROM"),
        ("Network", "NETWORK"),
        ("Reachable", "REACHABLE"),
        ("To", "TO"),
        ("Why", "WHY"),
    ],
    kind: "*network.auditContext",
};

pub(super) static CONNECT: Command = Command {
    names: &["network connect"],
    usage: "[OPTIONS] NETWORK CONTAINER",
    about: "Connect a container to a network",
    flags: &[&[
        Flag::with("alias", "list", "Add network-scoped alias for the container"),
        Flag::with("driver-opt", "map", "driver options for the network").checked(value::pair),
        Flag::with(
            "gw-priority",
            "int",
            "Highest gw-priority provides the default gateway. Accepts positive and negative values.",
        )
        .checked(value::int),
        Flag::with("ip", "string", "IPv4 address (e.g., \"172.30.100.104\")").checked(parts::ip),
        Flag::with("ip6", "string", "IPv6 address (e.g., \"2001:db8::33\")").checked(parts::ip),
        Flag::with("link", "list", "").refused("containers on the same network reach each other by name"),
        Flag::with("link-local-ip", "list", "").refused("the kernel chooses link-local addresses"),
        Flag::with("mac-address", "string", "MAC address for the container on this network"),
    ]],
    arguments: Arguments::Exactly(2),
    run: |call| {
        let line = &call.line;
        let addresses = EndpointAddresses {
            ipv4_address: line.text("ip").to_owned(),
            ipv6_address: line.text("ip6").to_owned(),
        };
        let priority = line.int("gw-priority").unwrap_or(0);
        let settings = EndpointSettings {
            ipam_config: (addresses != EndpointAddresses::default()).then_some(addresses),
            mac_address: line.text("mac-address").to_owned(),
            aliases: line.list("alias"),
            driver_opts: parts::map(line.all("driver-opt")),
            gw_priority: i32::try_from(priority)
                .map_err(|_| Failure::invalid(format!("--gw-priority: {priority} is out of range")))?,
        };
        call.engine()?.network_connect(call.arg(0), call.arg(1), &settings)?;
        Ok(0)
    },
    ..USUAL
};

pub(super) static CREATE: Command = Command {
    names: &["network create"],
    usage: "[OPTIONS] NETWORK",
    about: "Create a network",
    flags: &[&[
        Flag::switch("attachable", "").refused(ONE_MACHINE),
        Flag::with(
            "aux-address",
            "map",
            "Auxiliary IPv4 or IPv6 addresses used by Network driver",
        )
        .checked(value::pair),
        Flag::with("config-from", "string", "").refused(ONE_MACHINE),
        Flag::switch("config-only", "").refused(ONE_MACHINE),
        Flag::with("driver", "string", "Driver to manage the Network")
            .short('d')
            .default("\"bridge\""),
        FIX,
        Flag::with(
            "gateway",
            "list",
            "IPv4 or IPv6 Gateway for the master subnet",
        ),
        Flag::switch("ingress", "").refused(ONE_MACHINE),
        Flag::switch("internal", "Restrict external access to the network"),
        Flag::with("ip-range", "list", "Allocate container ip from a sub-range"),
        Flag::with("ipam-driver", "string", "IP Address Management Driver").default("\"default\""),
        Flag::with("ipam-opt", "map", "").refused("addresses are given out by Knarr itself"),
        Flag::switch("ipv4", "Enable or disable IPv4 address assignment").default("true"),
        Flag::switch("ipv6", "Enable or disable IPv6 address assignment"),
        Flag::with("label", "list", "Set metadata on a network").checked(value::label),
        Flag::with("opt", "map", "Set driver specific options")
            .short('o')
            .checked(value::pair),
        Flag::with("scope", "string", "").refused(ONE_MACHINE),
        Flag::with(
            "subnet",
            "list",
            "Subnet in CIDR format that represents a network segment",
        ),
    ]],
    arguments: Arguments::Exactly(1),
    run: |call| {
        let line = &call.line;
        if line.given("ipv4") && !line.on("ipv4") {
            return Err(Failure::invalid("--ipv4=false is not served by Knarr yet")
                .hint("leave it out; an --ipv6 network has both"));
        }
        if !matches!(line.text("ipam-driver"), "" | "default") {
            return Err(Failure::invalid(format!(
                "--ipam-driver {} is not served by Knarr: addresses are given out by Knarr itself",
                line.text("ipam-driver")
            )));
        }
        let engine = call.engine()?;
        let id = engine.network_create(&NetworkCreate {
            name: call.arg(0).to_owned(),
            driver: line.text("driver").to_owned(),
            internal: line.on("internal"),
            ipv6: line.on("ipv6"),
            subnets: line.list("subnet"),
            ranges: line.list("ip-range"),
            gateways: line.list("gateway"),
            auxiliary: parts::map(line.all("aux-address")),
            options: parts::map(line.all("opt")),
            labels: parts::map(line.all("label")),
        })?;
        output::line(&id)?;
        for warning in engine.network_obstacles(&id, line.on("fix"))? {
            output::note(&format!("WARNING: {warning}"));
        }
        Ok(0)
    },
    ..USUAL
};

pub(super) static DISCONNECT: Command = Command {
    names: &["network disconnect"],
    usage: "[OPTIONS] NETWORK CONTAINER",
    about: "Disconnect a container from a network",
    flags: &[&[
        Flag::switch("force", "Force the container to disconnect from a network").short('f'),
    ]],
    arguments: Arguments::Exactly(2),
    run: |call| {
        let force = call.line.on("force");
        call.engine()?
            .network_disconnect(call.arg(0), call.arg(1), force)?;
        Ok(0)
    },
    ..USUAL
};

pub(super) static INSPECT: Command = Command {
    names: &["network inspect"],
    usage: "[OPTIONS] NETWORK [NETWORK...]",
    about: "Display detailed information on one or more networks",
    flags: &[&[
        inspect::FORMAT,
        Flag::switch("verbose", "Verbose output for diagnostics").short('v'),
    ]],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let engine = call.engine()?;
        inspect::show(call, |name| Ok(engine.network_inspect(name)?))
    },
    ..USUAL
};

pub(super) static LIST: Command = Command {
    names: &["network ls", "network list"],
    usage: "[OPTIONS]",
    about: "List networks",
    flags: &[&[
        Flag::with(
            "filter",
            "filter",
            "Provide filter values (e.g. \"driver=bridge\")",
        )
        .short('f'),
        Flag::with("format", "string", ps::FORMAT),
        Flag::switch("no-trunc", "Do not truncate the output"),
        Flag::switch("quiet", "Only display network IDs").short('q'),
    ]],
    run: list,
    ..USUAL
};

pub(super) static PRUNE: Command = Command {
    names: &["network prune"],
    usage: "[OPTIONS]",
    about: "Remove all unused networks",
    flags: &[&[
        Flag::with(
            "filter",
            "filter",
            "Provide filter values (e.g. \"until=<timestamp>\")",
        ),
        Flag::switch("force", "Do not prompt for confirmation").short('f'),
    ]],
    run: |call| {
        let what = "This will remove all custom networks not used by at least one container.";
        if !prune::confirmed(call, what)? {
            return Ok(0);
        }
        let removed = call.engine()?.network_prune(&ps::filters(&call.line)?)?;
        if !removed.is_empty() {
            output::print(&format!("Deleted Networks:\n{}\n\n", removed.join("\n")))?;
        }
        Ok(0)
    },
    ..USUAL
};

pub(super) static PUBLISH: Command = Command {
    names: &["network publish"],
    usage: "CONTAINER PORT [PORT...]",
    about: "Publish more ports of a container, as `run -p` does; it may be running",
    arguments: Arguments::AtLeast(2),
    run: |call| {
        let mut bindings = Vec::new();
        for text in call.line.args.get(1..).unwrap_or_default() {
            bindings.extend(network::publish(text).map_err(Failure::invalid)?);
        }
        call.engine()?.publish_ports(call.arg(0), &bindings)?;
        Ok(0)
    },
    ..USUAL
};

pub(super) static REMOVE: Command = Command {
    names: &["network rm", "network remove"],
    usage: "NETWORK [NETWORK...]",
    about: "Remove one or more networks",
    flags: &[&[Flag::switch("force", "Do not error if the network does not exist").short('f')]],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let force = call.line.on("force");
        let engine = call.engine()?;
        each(&call.line.args, |name| {
            match engine.network_remove(name) {
                Err(knarr_engine::Error::NetworkNotFound { .. }) if force => return Ok(()),
                done => done?,
            }
            output::line(name)
        })
    },
    ..USUAL
};

pub(super) static UNPUBLISH: Command = Command {
    names: &["network unpublish"],
    usage: "[OPTIONS] CONTAINER [PORT...]",
    about: "Cease to publish ports of a container (80/tcp); it may be running",
    flags: &[&[Flag::switch("all", "All of them").short('a')]],
    arguments: Arguments::AtLeast(1),
    run: |call| {
        let engine = call.engine()?;
        let ports = call.line.args.get(1..).unwrap_or_default();
        match (ports, call.line.on("all")) {
            ([], false) => {
                return Err(Failure::invalid("no port is named").hint("say which, or --all"));
            }
            (_, true) => engine.unpublish_ports(call.arg(0), None)?,
            (ports, false) => {
                for port in ports {
                    engine.unpublish_ports(call.arg(0), Some(port))?;
                }
            }
        }
        Ok(0)
    },
    ..USUAL
};

static LAYOUT: Layout = Layout {
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    titles: &[
        ("CreatedAt", "CREATED AT"),
        ("Driver", "DRIVER"),
        ("ID", "NETWORK ID"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("Name", "NAME"),
        ("Scope", "SCOPE"),
    ],
    kind: "*network.networkContext",
};

fn list(call: &Call<'_>) -> Result<u8> {
    let line = &call.line;
    let networks = call.engine()?.networks(&ps::filters(line)?)?;
    let long = line.on("no-trunc");
    let text = if line.on("quiet") && line.text("format").is_empty() {
        networks
            .iter()
            .map(|network| format!("{}\n", id(network, long)))
            .collect()
    } else {
        let rows: Vec<Value> = networks.iter().map(|network| row(network, long)).collect();
        format::rows(&LAYOUT, line.text("format"), &rows, &|row, name, args| {
            let ("Label", [Value::String(key)]) = (name, args) else {
                return None;
            };
            let at = rows.iter().position(|other| std::ptr::eq(other, row))?;
            let label = networks.get(at)?.labels.get(key);
            Some(Value::from(label.map_or("", String::as_str)))
        })?
    };
    output::print(&text)?;
    Ok(0)
}

fn id(network: &NetworkSummary, long: bool) -> &str {
    if long {
        &network.id
    } else {
        network.id.get(..12).unwrap_or(&network.id)
    }
}

fn row(network: &NetworkSummary, long: bool) -> Value {
    // In the order of Docker's JSON.
    let fields: [(&str, String); 9] = [
        ("CreatedAt", network.created.clone()),
        ("Driver", network.driver.clone()),
        ("ID", id(network, long).to_owned()),
        ("IPv4", "true".to_owned()),
        ("IPv6", network.ipv6.to_string()),
        ("Internal", network.internal.to_string()),
        ("Labels", format::labels(&network.labels)),
        ("Name", network.name.clone()),
        ("Scope", "local".to_owned()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), Value::from(value)));
    Value::Object(Map::from_iter(fields))
}
