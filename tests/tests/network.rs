//! Networks: who reaches whom, by address and by name, and what is left afterwards.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use knarr_testkit::{Knarr, Netns, eventually, net};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a shell line in a throw-away busybox and gives what it printed.
fn sh(knarr: &Knarr, flags: &[&str], script: &str) -> Result<String> {
    let args = [&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat();
    knarr.ok(args)
}

/// A web server that answers with its name.
fn web(knarr: &Knarr, name: &str, flags: &[&str]) -> Result<String> {
    let script = format!("mkdir /www; echo {name} > /www/index.html; exec httpd -f -p 80 -h /www");
    let args = [
        &["run", "-d", "--name", name],
        flags,
        &["busybox", "sh", "-c", &script],
    ]
    .concat();
    knarr.ok(args)
}

fn inspect(knarr: &Knarr, name: &str, field: &str) -> Result<String> {
    knarr.ok(["inspect", "-f", &format!("{{{{{field}}}}}"), name])
}

fn address(knarr: &Knarr, name: &str) -> Result<String> {
    inspect(knarr, name, ".NetworkSettings.IPAddress")
}

/// What a web server answers, if it does within a moment.
fn try_get(address: &str) -> Option<String> {
    let address = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.rsplit_once("\r\n\r\n")?.1.trim().to_owned())
}

/// Until the server listens.
fn get(address: &str) -> String {
    eventually(PATIENCE, address, || try_get(address))
}

/// A shell line that asks a web server and gives up soon.
fn ask(url: &str) -> String {
    format!("timeout 3 wget -q -O- http://{url}/")
}

fn nothing_is_left(knarr: &Knarr) {
    let mut left = Default::default();
    let clean = knarr_testkit::wait_for(PATIENCE, || {
        left = knarr.leftovers("");
        left.is_empty().then_some(())
    });
    assert!(clean.is_some(), "left: {left:#?}");
}

#[test]
fn containers_of_the_default_network_reach_each_other_and_the_host() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    web(&knarr, "web", &[])?;
    let web = address(&knarr, "web")?;
    assert_eq!(web, "172.17.0.2");
    assert_eq!(get(&format!("{web}:80")), "web");
    let seen = sh(
        &knarr,
        &[],
        &format!(
            "ping -c 1 -W 5 172.17.0.1 >/dev/null && echo host; {}; \
             ip route; grep \"$(hostname)\" /etc/hosts; ip -6 addr show eth0",
            ask(&web)
        ),
    )?;
    let lines: Vec<_> = seen.lines().map(str::trim).collect();
    let (last, rest) = lines.split_last().context("nothing")?;
    assert_eq!(
        rest,
        [
            "host",
            "web",
            "default via 172.17.0.1 dev eth0",
            "172.17.0.0/20 dev eth0 scope link  src 172.17.0.3"
        ]
    );
    assert!(last.starts_with("172.17.0.3\t"), "{last}");
    // An address is not used again at once.
    assert!(sh(&knarr, &[], "ip -4 addr show eth0")?.contains("172.17.0.4/20"));
    knarr.ok(["rm", "-f", "web"])?;
    nothing_is_left(&knarr);
    Ok(())
}

#[test]
fn the_default_subnet_passes_by_the_hosts_routes() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    net::run(&[
        "ip", "link", "add", "vpn", "type", "veth", "peer", "name", "vpn2",
    ])?;
    net::run(&["ip", "addr", "add", "172.17.0.9/16", "dev", "vpn"])?;
    net::run(&["ip", "link", "set", "vpn", "up"])?;
    net::run(&["ip", "route", "add", "172.18.0.0/20", "dev", "vpn"])?;
    assert!(sh(&knarr, &[], "ip route")?.contains("default via 172.18.16.1"));
    let refused = knarr.run(["network", "create", "--subnet", "172.18.16.0/24", "x"])?;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("network bridge has 172.18.16.0/20"),
        "{}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn ports_are_published_and_closed() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    web(
        &knarr,
        "web",
        &["-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "80"],
    )?;
    let ports = knarr.ok(["port", "web"])?;
    let random = ports
        .lines()
        .find_map(|line| {
            line.strip_prefix("80/tcp -> 0.0.0.0:")
                .filter(|port| *port != "8080")
        })
        .context("no random port")?
        .to_owned();
    for url in [
        "127.0.0.1:8080".to_owned(),
        "127.0.0.1:8081".to_owned(),
        "[::1]:8080".to_owned(),
        "172.17.0.1:8080".to_owned(),
        format!("127.0.0.1:{random}"),
    ] {
        assert_eq!(get(&url), "web", "{url}");
    }
    // From a container by the host's address, its own included: the hairpin.
    assert_eq!(sh(&knarr, &[], &ask("172.17.0.1:8080"))?, "web");
    assert_eq!(
        knarr.ok(["exec", "web", "sh", "-c", &ask("172.17.0.1:8080")])?,
        "web"
    );
    // One that is bound to loopback is not for them.
    let outside = knarr.run([
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        &ask("172.17.0.1:8081"),
    ])?;
    assert_ne!(outside.code, 0, "{outside:?}");
    let taken = knarr.run(["run", "--rm", "-p", "8080:80", "busybox", "true"])?;
    assert_eq!(taken.code, 125);
    assert!(
        taken.stderr.contains("8080/tcp") && taken.stderr.contains("container "),
        "{}",
        taken.stderr
    );
    let ps = knarr.ok(["ps", "--format", "{{.Ports}}"])?;
    assert!(
        ps.contains("0.0.0.0:8080->80/tcp") && ps.contains("[::]:8080->80/tcp"),
        "{ps}"
    );
    // On a container that runs.
    knarr.ok(["network", "publish", "web", "9090:80"])?;
    assert_eq!(get("127.0.0.1:9090"), "web");
    assert_eq!(knarr.ok(["port", "web", "80"])?.lines().count(), 7);
    knarr.ok(["network", "unpublish", "--all", "web"])?;
    assert_eq!(knarr.ok(["port", "web"])?, "");
    assert_eq!(try_get("127.0.0.1:8080"), None);
    knarr.ok(["rm", "-f", "web"])?;
    nothing_is_left(&knarr);
    Ok(())
}

#[test]
fn a_range_of_ports_is_one_element() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let script = "nc -ll -p 9042 -e echo range & sleep 600";
    knarr.ok([
        "run",
        "-d",
        "--init",
        "--name",
        "many",
        "-p",
        "9000-9099:9000-9099",
        "-p",
        "5300:5300/udp",
        "busybox",
        "sh",
        "-c",
        script,
    ])?;
    let rules = net::output(&["nft", "list", "ruleset"])?;
    assert!(
        rules.contains("0.0.0.0/0 . tcp . 9000-9099 : 172.17.0.2"),
        "{rules}"
    );
    let answer = eventually(PATIENCE, "the port in the range", || {
        let text = net::output(&["sh", "-c", "busybox nc -w 2 127.0.0.1 9042 </dev/null"]).ok()?;
        (text == "range\n").then_some(text)
    });
    assert_eq!(answer, "range\n");
    // One of them goes; the others stay.
    knarr.ok(["network", "unpublish", "many", "9050"])?;
    let rules = net::output(&["nft", "list", "ruleset"])?;
    for part in ["9000-9049", "9051-9099"] {
        let element = format!("0.0.0.0/0 . tcp . {part} : 172.17.0.2");
        assert!(rules.contains(&element), "{rules}");
    }
    let again = net::output(&["sh", "-c", "busybox nc -w 2 127.0.0.1 9042 </dev/null"])?;
    assert_eq!(again, "range\n");
    // UDP, from loopback, which becomes the gateway's address.
    let server = Netns::of(&knarr, "many")?.within(|| Ok(UdpSocket::bind("0.0.0.0:5300")?))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.send_to(b"ping", "127.0.0.1:5300")?;
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer)?;
    assert_eq!(
        (&buffer[..length], from.ip().to_string()),
        (&b"ping"[..], "172.17.0.1".to_owned())
    );
    server.send_to(b"pong", from)?;
    let (length, from) = client.recv_from(&mut buffer)?;
    assert_eq!(
        (&buffer[..length], from.to_string()),
        (&b"pong"[..], "127.0.0.1:5300".to_owned())
    );
    assert_eq!(
        knarr
            .ok(["ps", "--format", "{{.Ports}}"])?
            .split(", ")
            .count(),
        7,
        "{}",
        knarr.ok(["ps", "--format", "{{.Ports}}"])?
    );
    // It holds the namespace, and so the address.
    drop(server);
    knarr.ok(["rm", "-f", "many"])?;
    nothing_is_left(&knarr);
    Ok(())
}

/// What cannot be reached: the shell line fails, and soon.
fn refused(knarr: &Knarr, flags: &[&str], script: &str) -> Result<()> {
    // Not as the first process, which nobody inside can end.
    let line = format!("{script} || exit 1");
    let args = [&["run", "--rm"], flags, &["busybox", "sh", "-c", &line]].concat();
    let output = knarr.run(args)?;
    anyhow::ensure!(output.code != 0, "{script} worked: {output:?}");
    Ok(())
}

fn on(knarr: &Knarr, name: &str, network: &str, field: &str) -> Result<String> {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").{field}}}}}");
    knarr.ok(["inspect", "-f", &format, name])
}

#[test]
fn networks_keep_to_themselves_and_internal_ones_to_the_machine() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let outside = Netns::new()?;
    Netns::current()?.link(
        ("lan0", &["10.80.0.1/24"]),
        &outside,
        ("lan0", &["10.80.0.2/24"]),
    )?;
    let server = outside.within(|| Ok(std::net::TcpListener::bind("10.80.0.2:80")?))?;
    let served = std::thread::spawn(move || -> Result<String> {
        let (mut stream, from) = server.accept()?;
        // What is not read when it closes would cut the answer off.
        let count = stream.read(&mut [0; 1024])?;
        anyhow::ensure!(count > 0, "it asks for nothing");
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\noutside")?;
        Ok(from.ip().to_string())
    });
    knarr.ok(["network", "create", "front"])?;
    knarr.ok(["network", "create", "--internal", "inside"])?;
    web(&knarr, "web", &["--network", "front"])?;
    web(&knarr, "db", &["--network", "inside"])?;
    let (web, db) = (
        on(&knarr, "web", "front", "IPAddress")?,
        on(&knarr, "db", "inside", "IPAddress")?,
    );
    assert_eq!(sh(&knarr, &["--network", "front"], &ask("web"))?, "web");
    assert_eq!(sh(&knarr, &["--network", "inside"], &ask("db"))?, "db");
    for (network, script) in [
        ("bridge", ask(&web)),
        ("bridge", ask(&db)),
        ("front", ask(&db)),
        ("inside", ask(&web)),
        ("inside", ask("10.80.0.2")),
        ("inside", "ip route | grep default".to_owned()),
    ] {
        refused(&knarr, &["--network", network], &script)?;
    }
    // Outside sees this host's address.
    assert_eq!(
        sh(&knarr, &["--network", "front"], &ask("10.80.0.2"))?,
        "outside"
    );
    let from = served.join().ok().context("the server panicked")??;
    assert_eq!(from, "10.80.0.1");
    // One that is on both reaches both.
    knarr.ok(["network", "connect", "--alias", "store", "inside", "web"])?;
    assert_eq!(knarr.ok(["exec", "web", "sh", "-c", &ask("db")])?, "db");
    assert_eq!(sh(&knarr, &["--network", "inside"], &ask("store"))?, "web");
    let used = knarr.run(["network", "rm", "inside"])?;
    assert_eq!(used.code, 1);
    assert!(
        used.stderr.contains("active endpoints: db, web")
            || used.stderr.contains("active endpoints: web, db"),
        "{}",
        used.stderr
    );
    knarr.ok(["network", "disconnect", "inside", "web"])?;
    assert_eq!(
        knarr.ok(["exec", "web", "ls", "/sys/class/net"])?,
        "eth0\nlo"
    );
    knarr.ok(["rm", "-f", "web", "db"])?;
    knarr.ok(["network", "rm", "front", "inside"])?;
    let left = net::output(&["ip", "-br", "link"])?;
    assert!(!left.contains("kn-"), "{left}");
    nothing_is_left(&knarr);
    Ok(())
}

#[test]
fn options_of_a_bridge_are_obeyed() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "network",
        "create",
        "-o",
        "com.docker.network.bridge.enable_icc=false",
        "-o",
        "com.docker.network.driver.mtu=1400",
        "-o",
        "com.docker.network.bridge.name=br-own",
        "--subnet",
        "10.90.0.0/24",
        "--gateway",
        "10.90.0.254",
        "--ip-range",
        "10.90.0.64/28",
        "--aux-address",
        "router=10.90.0.64",
        "apart",
    ])?;
    web(&knarr, "web", &["--network", "apart", "-p", "8080:80"])?;
    let web = on(&knarr, "web", "apart", "IPAddress")?;
    assert!(
        ["10.90.0.65", "10.90.0.66"].contains(&web.as_str()),
        "{web}"
    );
    assert_eq!(get(&format!("{web}:80")), "web");
    assert_eq!(get("127.0.0.1:8080"), "web");
    // By name and address it is there, but not for its neighbours.
    refused(&knarr, &["--network", "apart"], &ask("web"))?;
    let seen = sh(
        &knarr,
        &["--network", "apart", "--ip", "10.90.0.7"],
        "cat /sys/class/net/eth0/mtu; ip route; ip -4 addr show eth0 | grep -c 10.90.0.7/24",
    )?;
    let seen: Vec<_> = seen.lines().map(str::trim).collect();
    assert_eq!(
        seen,
        [
            "1400",
            "default via 10.90.0.254 dev eth0",
            "10.90.0.0/24 dev eth0 scope link  src 10.90.0.7",
            "1"
        ]
    );
    net::run(&["ip", "link", "show", "br-own"])?;
    let taken = knarr.run([
        "run",
        "--rm",
        "--network",
        "apart",
        "--ip",
        &web,
        "busybox",
        "true",
    ])?;
    assert_eq!(taken.code, 125);
    assert!(taken.stderr.contains("in use by container"), "{taken:?}");
    knarr.ok(["rm", "-f", "web"])?;
    nothing_is_left(&knarr);
    Ok(())
}

#[test]
fn a_network_may_have_ipv6() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let outside = Netns::new()?;
    Netns::current()?.link(
        ("lan0", &["fd80::1/64"]),
        &outside,
        ("lan0", &["fd80::2/64"]),
    )?;
    knarr.ok([
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd90::/64",
        "six",
    ])?;
    web(
        &knarr,
        "web",
        &["--network", "six", "--ip6", "fd90::80", "-p", "8080:80"],
    )?;
    assert_eq!(on(&knarr, "web", "six", "GlobalIPv6Address")?, "fd90::80");
    for url in [
        "[fd90::80]:80",
        "[fd80::1]:8080",
        "[::1]:8080",
        "127.0.0.1:8080",
    ] {
        assert_eq!(get(url), "web", "{url}");
    }
    // From a neighbour by the published port, and not by the container's own address.
    let by_port = outside.within(|| {
        Ok(knarr_testkit::wait_for(PATIENCE, || {
            try_get("[fd80::1]:8080")
        }))
    })?;
    assert_eq!(by_port.as_deref(), Some("web"));
    let by_route = outside.within(|| {
        net::run(&["ip", "-6", "route", "add", "fd90::/64", "via", "fd80::1"])?;
        Ok(try_get("[fd90::80]:80"))
    })?;
    assert_eq!(by_route, None);
    let names = sh(&knarr, &["--network", "six"], "nslookup -type=aaaa web")?;
    assert!(names.contains("fd90::80"), "{names}");
    // Without, there is none.
    let plain = sh(&knarr, &[], "ip -6 addr show eth0")?;
    assert_eq!(plain, "");
    knarr.ok(["rm", "-f", "web"])?;
    nothing_is_left(&knarr);
    Ok(())
}

#[test]
fn macvlan_puts_containers_on_the_hosts_network() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    let outside = Netns::new()?;
    Netns::current()?.link(("lan0", &[]), &outside, ("lan0", &["10.70.0.1/24"]))?;
    let missing = knarr.run([
        "network",
        "create",
        "-d",
        "macvlan",
        "-o",
        "parent=no0",
        "x",
    ])?;
    assert_eq!(missing.code, 1);
    assert!(
        missing
            .stderr
            .contains("the parent interface no0 is not there"),
        "{}",
        missing.stderr
    );
    knarr.ok([
        "network",
        "create",
        "-d",
        "macvlan",
        "-o",
        "parent=lan0",
        "--subnet",
        "10.70.0.0/24",
        "--gateway",
        "10.70.0.1",
        "lan",
    ])?;
    web(&knarr, "web", &["--network", "lan", "--ip", "10.70.0.9"])?;
    let answer = outside.within(|| {
        Ok(knarr_testkit::wait_for(PATIENCE, || {
            try_get("10.70.0.9:80")
        }))
    })?;
    assert_eq!(answer.as_deref(), Some("web"));
    assert_eq!(sh(&knarr, &["--network", "lan"], &ask("web"))?, "web");
    let publishing = knarr.run([
        "run",
        "--rm",
        "--network",
        "lan",
        "-p",
        "80:80",
        "busybox",
        "true",
    ])?;
    assert_eq!(publishing.code, 125);
    assert!(
        publishing.stderr.contains("on no network behind this host"),
        "{}",
        publishing.stderr
    );
    knarr.ok(["rm", "-f", "web"])?;
    knarr.ok(["network", "rm", "lan"])?;
    nothing_is_left(&knarr);
    Ok(())
}

#[test]
fn a_thousand_ports_are_held() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    knarr.ok([
        "run",
        "-d",
        "--name",
        "many",
        "-p",
        "20000-20999:20000-20999",
        "busybox",
        "sh",
        "-c",
        "ulimit -n; nc -ll -p 20999 -e echo last",
    ])?;
    let answer = eventually(PATIENCE, "the last port", || {
        let text = net::output(&["sh", "-c", "busybox nc -w 2 127.0.0.1 20999 </dev/null"]).ok()?;
        (text == "last\n").then_some(text)
    });
    assert_eq!(answer, "last\n");
    // It does not see that its monitor needs more.
    assert_eq!(knarr.ok(["logs", "many"])?, "1024");
    assert!(
        std::net::TcpListener::bind("127.0.0.1:20500").is_err(),
        "a port in the middle is free"
    );
    knarr.ok(["rm", "-f", "many"])?;
    nothing_is_left(&knarr);
    Ok(())
}
