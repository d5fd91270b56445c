//! The net lab: this host between a LAN and its networks. What reaches what is what
//! `docs/networking.md` says, whatever happens to the firewall meanwhile.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use knarr_testkit::{Knarr, Netns, net, wait_for, workspace};

/// How long something that shall not be reached is tried.
const MOMENT: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);
/// The networks, and a container on each that others want to reach; `-2` are those that try.
const NETWORKS: [&str; 4] = ["a", "b", "inside", "apart"];
const LAN: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const HOST: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// `(from, to)` → whether it reaches it.
type Matrix = BTreeMap<(String, String), bool>;

/// A table of the page: titles are columns, first cells are rows.
fn documented(table: &str) -> Result<Matrix> {
    let page = std::fs::read_to_string(workspace().join("docs/networking.md"))?;
    let (_, rest) = page
        .split_once(&format!("<!-- {table} -->\n"))
        .context("no such table")?;
    let (table, _) = rest.split_once("<!-- end -->").context("no end")?;
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = table.lines();
    let titles = cells(lines.next().context("no titles")?);
    let mut all = Matrix::new();
    for line in lines.skip(1) {
        let row = cells(line);
        ensure!(row.len() == titles.len(), "{line}");
        for (title, cell) in titles.iter().zip(&row).skip(1) {
            // What depends on the kernel's modules.
            if cell == "(yes)" {
                continue;
            }
            ensure!(matches!(cell.as_str(), "yes" | "no"), "{cell}");
            all.insert((row[0].clone(), title.clone()), cell == "yes");
        }
    }
    Ok(all)
}

/// A server that answers everybody with its name, in the caller's namespace.
fn serve(name: &'static str) -> Result<()> {
    // For both families.
    let listener = TcpListener::bind("[::]:80")?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 512];
            stream.read(&mut buffer).ok();
            let answer = format!("HTTP/1.0 200 OK\r\n\r\n{name}\n");
            stream.write_all(answer.as_bytes()).ok();
        }
    });
    Ok(())
}

/// What a web server answers.
fn get(address: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.rsplit_once("\r\n\r\n")?.1.trim().to_owned())
}

/// Whether the container's name server knows a name.
fn resolves(name: &str) -> Result<bool> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.push(u8::try_from(name.len())?);
    query.extend(name.bytes());
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&query, "127.0.0.11:53")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    ensure!(length > 12 && answer[..2] == [7, 7], "no answer to {name}");
    Ok(answer[3] & 15 == 0 && answer[7] > 0)
}

struct Lab {
    knarr: Knarr,
    here: Netns,
    lan: Netns,
}

/// One thing to try: from where, what, and who answers there.
struct Probe<'a> {
    cell: (String, String),
    from: &'a Netns,
    to: SocketAddr,
    who: &'static str,
}

impl Lab {
    fn new() -> Result<Self> {
        let knarr = Knarr::with_busybox()?;
        let (here, lan) = (Netns::current()?, Netns::new()?);
        let [v4, v6] = HOST.map(String::from);
        let [lan4, lan6] = LAN.map(String::from);
        here.link(
            ("eth0", &[&format!("{v4}/24"), &format!("{v6}/64")]),
            &lan,
            ("eth0", &[&format!("{lan4}/24"), &format!("{lan6}/64")]),
        )?;
        lan.within(|| {
            net::run(&["ip", "route", "add", "default", "via", &v4])?;
            net::run(&["ip", "-6", "route", "add", "default", "via", &v6])?;
            serve("lan")
        })?;
        serve("host")?;
        let apart = "com.docker.network.bridge.enable_icc=false";
        for (name, flags) in [
            ("a", &[][..]),
            ("b", &[]),
            ("inside", &["--internal"]),
            ("apart", &["-o", apart]),
        ] {
            let args = [&["network", "create", "--ipv6"], flags, &[name]].concat();
            knarr.ok(args)?;
        }
        let lab = Self { knarr, here, lan };
        let address = [
            format!("{v4}:8082:80"),
            format!("[{v6}]:8082:80"),
            "127.0.0.1:8081:80".to_owned(),
            "[::1]:8081:80".to_owned(),
        ];
        let [at4, at6, local4, local6] = &address;
        for name in NETWORKS {
            let ports = match name {
                "a" => &[
                    "-p", "8080:80", "-p", local4, "-p", local6, "-p", at4, "-p", at6,
                ][..],
                "apart" => &["-p", "8090:80"],
                _ => &[],
            };
            lab.start(&format!("{name}-1"), name, ports)?;
            lab.start(&format!("{name}-2"), name, &[])?;
        }
        Ok(lab)
    }

    fn start(&self, name: &str, network: &str, flags: &[&str]) -> Result<()> {
        let script =
            format!("mkdir /www; echo {name} > /www/index.html; exec httpd -f -p 80 -h /www");
        let head = ["run", "-d", "--name", name, "--network", network];
        let command = ["busybox", "sh", "-c", &script];
        self.knarr.ok([&head, flags, &command].concat())?;
        Ok(())
    }

    /// A container's addresses, IPv4 and IPv6, and its gateways'.
    fn addresses(&self, name: &str, network: &str) -> Result<[[IpAddr; 2]; 2]> {
        let fields = ["IPAddress", "GlobalIPv6Address", "Gateway", "IPv6Gateway"]
            .map(|field| format!("{{{{.NetworkSettings.Networks.{network}.{field}}}}}"));
        let text = self.knarr.ok(["inspect", "-f", &fields.join(" "), name])?;
        let all = text.split(' ').map(|address| Ok(address.parse()?));
        let all = all.collect::<Result<Vec<IpAddr>>>().context(text.clone())?;
        ensure!(all.len() == 4, "{text}");
        Ok([[all[0], all[1]], [all[2], all[3]]])
    }

    /// Tries every cell of the table once.
    fn measure(&self, wanted: &Matrix) -> Result<(Matrix, Matrix)> {
        let mut places = BTreeMap::new();
        let mut inner = BTreeMap::new();
        let (mut targets, mut gateways) = (BTreeMap::new(), BTreeMap::new());
        for name in NETWORKS {
            let [one, gateway] = self.addresses(&format!("{name}-1"), name)?;
            targets.insert(name, one);
            gateways.insert(format!("on `{name}`"), gateway);
            inner.insert(name, Netns::of(&self.knarr, &format!("{name}-2"))?);
        }
        for (name, namespace) in &inner {
            // One that knows no way out tries this one.
            let row = format!("on `{name}`");
            let [v4, v6] = gateways[&row].map(|gateway| gateway.to_string());
            namespace.within(|| {
                net::run(&["ip", "route", "replace", "default", "via", &v4])?;
                net::run(&["ip", "-6", "route", "replace", "default", "via", &v6])
            })?;
            places.insert(row, namespace);
        }
        places.insert("this host".to_owned(), &self.here);
        places.insert("LAN".to_owned(), &self.lan);
        let mut probes = Vec::new();
        for (from, to) in wanted.keys() {
            let namespace = *places.get(from).context("no such row")?;
            for family in [0, 1] {
                let host: IpAddr = HOST[family].parse()?;
                let loopback: IpAddr = ["127.0.0.1", "::1"][family].parse()?;
                let here = from == "this host";
                let (address, port, who) = match to.as_str() {
                    "`a`" => (targets["a"][family], 80, "a-1"),
                    "`b`" => (targets["b"][family], 80, "b-1"),
                    "`inside`" => (targets["inside"][family], 80, "inside-1"),
                    "`apart`" => (targets["apart"][family], 80, "apart-1"),
                    "`-p 8080:80` of `a`" => (host, 8080, "a-1"),
                    "`-p 127.0.0.1:8081:80`" => (if here { loopback } else { host }, 8081, "a-1"),
                    "`-p ADDRESS:8082:80`" => (host, 8082, "a-1"),
                    "`-p 8090:80` of `apart`" => (host, 8090, "apart-1"),
                    // What is not on a network tries that of the internal one.
                    "host by its gateway" => {
                        let inside = &gateways["on `inside`"];
                        let own = gateways.get(from).unwrap_or(inside);
                        (own[family], 80, "host")
                    }
                    "host by another address" => (host, 80, "host"),
                    "LAN" => (LAN[family].parse()?, 80, "lan"),
                    other => anyhow::bail!("no such column: {other}"),
                };
                probes.push(Probe {
                    cell: (from.clone(), to.clone()),
                    from: namespace,
                    to: (address, port).into(),
                    who,
                });
            }
        }
        let mut reach = Matrix::new();
        let mut report = Vec::new();
        let queue = std::sync::Mutex::new(probes.iter());
        std::thread::scope(|scope| {
            let worker = || {
                let mut done = Vec::new();
                loop {
                    // Or the lock is held during the probe.
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some(probe) = next else { return done };
                    done.push((probe, try_one(probe, wanted[&probe.cell])));
                }
            };
            let workers: Vec<_> = (0..24).map(|_| scope.spawn(worker)).collect();
            for worker in workers {
                report.extend(worker.join().unwrap_or_default());
            }
        });
        for (probe, reached) in report {
            let expected = wanted[&probe.cell];
            let reached = reached?;
            if reached != expected {
                let (from, to) = &probe.cell;
                reach.insert((from.clone(), format!("{to} ({})", probe.to)), reached);
            }
        }
        let mut names = Matrix::new();
        for (name, namespace) in &inner {
            for other in NETWORKS {
                let known = namespace.within(|| resolves(&format!("{other}-1")))?;
                names.insert((format!("on `{name}`"), format!("`{other}`")), known);
            }
        }
        Ok((reach, names))
    }

    /// Everything is as documented.
    fn is_as_documented(&self, when: &str) -> Result<()> {
        let (different, names) = self.measure(&documented("reach")?)?;
        assert!(different.is_empty(), "{when}: {different:#?}");
        assert_eq!(names, documented("names")?, "{when}");
        Ok(())
    }

    fn monitors(&self) -> Vec<i32> {
        let all = self.knarr.processes().into_iter();
        all.filter(|process| process.is_monitor())
            .map(|process| process.pid)
            .collect()
    }

    fn kill_monitors(&self, which: &[i32]) -> Result<()> {
        for pid in which {
            let pid = rustix::process::Pid::from_raw(*pid).context("no process")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        wait_for(PATIENCE, || {
            let left = self.monitors();
            (!which.iter().any(|pid| left.contains(pid))).then_some(())
        })
        .context("a killed monitor lives")
    }
}

/// Tries for a moment what shall not be reached, and what shall be until it is.
fn try_one(probe: &Probe<'_>, expected: bool) -> Result<bool> {
    probe.from.within(|| {
        let once = |patience| get(probe.to, patience).is_some_and(|who| who == probe.who);
        Ok(match expected {
            false => once(MOMENT),
            true => wait_for(PATIENCE, || once(MOMENT * 4).then_some(())).is_some(),
        })
    })
}

fn nft(text: &str, dir: &Path) -> Result<()> {
    let file = dir.join("rules.nft");
    std::fs::write(&file, text)?;
    net::run(&["nft", "-f", &file.display().to_string()])
}

/// What a host's own firewall may look like, as a service loads it anew.
const RELOAD: &str = "flush ruleset
table inet filter {
  chain input { type filter hook input priority 0; policy accept; ct state invalid drop; }
  chain forward { type filter hook forward priority 0; policy accept; }
}
";

#[test]
fn who_reaches_whom_is_as_documented_whatever_happens() -> Result<()> {
    let lab = Lab::new()?;
    let knarr = &lab.knarr;
    lab.is_as_documented("at first")?;

    net::run(&["nft", "flush", "ruleset"])?;
    nft(RELOAD, &knarr.scratch())?;
    lab.is_as_documented("after a flush and a reload")?;

    // Churn, while somebody flushes.
    std::thread::scope(|scope| -> Result<()> {
        let flushing = scope.spawn(|| -> Result<()> {
            for _ in 0..20 {
                net::run(&["nft", "flush", "ruleset"])?;
            }
            Ok(())
        });
        for round in 0..2 {
            let name = format!("churn{round}");
            knarr.ok(["network", "create", &name])?;
            knarr.ok(["network", "connect", &name, "b-2"])?;
            knarr.ok([
                "run",
                "--rm",
                "--network",
                &name,
                "-p",
                "8099:80",
                "busybox",
                "true",
            ])?;
            knarr.ok(["network", "disconnect", &name, "b-2"])?;
            knarr.ok(["network", "rm", &name])?;
        }
        flushing.join().ok().context("the flushing thread")?
    })?;
    lab.is_as_documented("after churn")?;

    // The owner changes: all but one monitor are killed, and the firewall is flushed meanwhile.
    let monitors = lab.monitors();
    assert_eq!(monitors.len(), 2 * NETWORKS.len());
    lab.kill_monitors(&monitors[1..])?;
    nft(RELOAD, &knarr.scratch())?;
    knarr.ok(["ps"])?;
    lab.is_as_documented("after a flush while the owner changed")?;

    // Nobody is left to guard it.
    lab.kill_monitors(&lab.monitors())?;
    net::run(&["nft", "flush", "ruleset"])?;
    knarr.ok(["ps"])?;
    lab.is_as_documented("after a flush while nobody owned it")?;

    for name in ["a-1", "a-2", "inside-1", "apart-1"] {
        knarr.ok(["restart", "-t", "0", name])?;
    }
    lab.is_as_documented("after restarts")?;
    Ok(())
}
