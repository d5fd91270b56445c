//! The net lab: this host between a LAN and its networks. What reaches what is what
//! `docs/networking.md` says, whatever happens to the firewall meanwhile.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _, Write as _};
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
            // All of the request, or closing resets the connection.
            let lines = std::io::BufReader::new(&stream).lines();
            let head = lines.map_while(std::result::Result::ok);
            head.take_while(|line| !line.is_empty()).for_each(drop);
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
    // As resolvers do: what is lost is asked again.
    const ATTEMPTS: u32 = 6;
    socket.set_read_timeout(Some(PATIENCE / ATTEMPTS))?;
    let mut answer = [0; 512];
    let mut length = 0;
    for _ in 0..ATTEMPTS {
        socket.send_to(&query, "127.0.0.11:53")?;
        match socket.recv(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            received => {
                length = received?;
                break;
            }
        }
    }
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
        Self::with(Knarr::with_busybox()?)
    }

    fn with(knarr: Knarr) -> Result<Self> {
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
                let known = namespace
                    .within(|| resolves(&format!("{other}-1")))
                    .with_context(|| format!("{other}-1, asked on {name}"))?;
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

    /// Comes to every container, as any command does that is about one.
    fn adopt(&self) -> Result<()> {
        for name in NETWORKS {
            for number in [1, 2] {
                self.knarr
                    .ok(["exec", &format!("{name}-{number}"), "true"])?;
            }
        }
        Ok(())
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
    lab.adopt()?;
    lab.is_as_documented("after a flush while the owner changed")?;

    // Nobody is left to guard it: without the table the attacks bite.
    lab.kill_monitors(&lab.monitors())?;
    net::run(&["nft", "flush", "ruleset"])?;
    // Those that know the way out.
    let of = |name: &str| Ok::<_, anyhow::Error>(lab.addresses(&format!("{name}-2"), name)?[0]);
    for (from, to) in [
        ("lan", "a"),
        ("b-2", "a"),
        ("lan", "inside"),
        ("b-2", "inside"),
    ] {
        let inner = Netns::of(knarr, "b-2")?;
        let from_there = if from == "lan" { &lab.lan } else { &inner };
        for address in of(to)? {
            let answer = from_there.within(|| Ok(get((address, 80).into(), PATIENCE)))?;
            assert_eq!(answer, Some(format!("{to}-2")), "{from} to {address}");
        }
    }
    lab.adopt()?;
    lab.is_as_documented("after a flush while nobody owned it")?;

    for name in ["a-1", "a-2", "inside-1", "apart-1"] {
        knarr.ok(["restart", "-t", "0", name])?;
    }
    lab.is_as_documented("after restarts")?;
    Ok(())
}

/// A number from `/proc/PID/status`, kilobytes.
fn status(pid: i32, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with(field));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(word.context("no such field")?.parse()?)
}

/// B17: a container that floods its name server with questions that nobody answers, and with
/// connections that say nothing, costs a bounded number of descriptors and memory.
#[test]
fn a_flood_of_questions_costs_little_and_others_are_served() -> Result<()> {
    let lab = Lab::new()?;
    let knarr = &lab.knarr;
    lab.start("flood", "a", &["--dns", LAN[0]])?;
    let mute = lab.lan.within(|| Ok(UdpSocket::bind((LAN[0], 53))?))?;
    let id = knarr.ok(["inspect", "-f", "{{.Id}}", "flood"])?;
    let state = knarr
        .run_root()
        .join("containers")
        .join(id)
        .join("state.json");
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(state)?)?;
    let monitor: i32 = state["monitor"]["pid"].to_string().parse()?;
    let descriptors = || std::fs::read_dir(format!("/proc/{monitor}/fd")).map(Iterator::count);
    let (few, little) = (descriptors()?, status(monitor, "RssAnon")?);
    let inner = Netns::of(knarr, "flood")?;
    let (most, streams) = inner.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut most = 0;
        let mut streams = Vec::new();
        for round in 0..3000u16 {
            let [a, b] = round.to_be_bytes();
            let mut query = vec![a, b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9];
            query.extend(format!("flood{round:04}").bytes());
            query.extend(b"\x07example\0\0\x01\0\x01");
            socket.send_to(&query, "127.0.0.11:53")?;
            if round % 20 == 0 {
                // Half a question.
                let mut stream = TcpStream::connect("127.0.0.11:53")?;
                stream.write_all(&[0, 40, 1]).ok();
                streams.push(stream);
                most = most.max(descriptors()?);
            }
        }
        ensure!(resolves("a-1")?, "its own names");
        Ok((most, streams))
    })?;
    // 192 questions that wait, 32 connections.
    assert!(
        most - few <= 192 + 32 + 8 && most - few >= 100,
        "{few} descriptors became {most}"
    );
    let much = status(monitor, "RssAnon")?;
    assert!(much < little + (16 << 10), "{little} kB became {much} kB");
    for name in ["b", "inside"] {
        let other = Netns::of(knarr, &format!("{name}-2"))?;
        assert!(other.within(|| resolves(&format!("{name}-1")))?);
    }
    drop((streams, mute));
    let calm = wait_for(PATIENCE, || {
        descriptors().ok().filter(|now| *now <= few + 8)
    });
    assert!(calm.is_some(), "{few} descriptors are {:?}", descriptors());
    Ok(())
}

/// Debian's dockerd in this network namespace, with its bridge and its firewall.
struct Dockerd(std::process::Child);

impl Dockerd {
    fn start(dir: &Path) -> Result<Self> {
        let at = |name: &str| dir.join(name).display().to_string();
        let socket = format!("unix://{}", at("docker.sock"));
        let run = at("docker-run");
        std::fs::create_dir_all(&run)?;
        let script =
            "mount --make-rprivate / && mount -t tmpfs tmpfs \"$0\" && exec dockerd \"$@\"";
        let child = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script, &run])
            .args(["--data-root", &at("docker-data"), "--exec-root", &run])
            .args(["--pidfile", &at("docker.pid"), "-H", &socket])
            .args(["--storage-driver", "vfs", "--log-level", "warn"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(dir.join("dockerd.log"))?)
            .spawn()?;
        let dockerd = Self(child);
        let answers = wait_for(PATIENCE * 2, || {
            net::output(&["docker", "-H", &socket, "version"]).ok()
        });
        let log = std::fs::read_to_string(dir.join("dockerd.log")).unwrap_or_default();
        answers.context(log)?;
        Ok(dockerd)
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        self.0.wait().ok();
    }
}

#[test]
fn what_docker_drops_stays_dropped_until_it_is_allowed() -> Result<()> {
    let knarr = Knarr::with_busybox()?;
    // First: it leaves the policy alone where somebody has turned forwarding on before.
    let dockerd = Dockerd::start(&knarr.scratch())?;
    let first = knarr.run(["run", "--rm", "busybox", "true"])?;
    assert!(
        first
            .stderr
            .contains("network bridge: what its containers send out is dropped by Docker's"),
        "{}",
        first.stderr
    );
    assert_eq!(knarr.run(["run", "--rm", "busybox", "true"])?.stderr, "");
    let lab = Lab::with(knarr)?;
    let knarr = &lab.knarr;
    // Its policy is in the way of what is forwarded, and Knarr says so.
    let made = knarr.run(["network", "create", "late"])?;
    assert_eq!(made.code, 0, "{}", made.stderr);
    for words in [
        "network late: what its containers send out is dropped by Docker's table ip filter",
        "iptables -I DOCKER-USER -i kn-",
        "knarr network audit --fix",
    ] {
        assert!(made.stderr.contains(words), "{}", made.stderr);
    }
    let [target, _] = lab.addresses("a-1", "a")?;
    let published = SocketAddr::new(HOST[0].parse()?, 8080);
    let outside = || lab.lan.within(|| Ok(get(published, MOMENT)));
    assert_eq!(outside()?, None);
    let wanted = format!("a-1 {}:80/tcp", target[0]);
    let row = || -> Result<String> {
        let all = knarr.ok(["network", "audit", "--format", "json"])?;
        let found = all.lines().find(|line| {
            line.contains(&wanted) && line.contains("0.0.0.0:8080") && line.contains("outside")
        });
        Ok(found.context(all.clone())?.to_owned())
    };
    let dropped = row()?;
    assert!(
        dropped.contains("\"Reachable\":\"no\"")
            && dropped.contains("dropped by Docker's table ip filter, chain FORWARD"),
        "{dropped}"
    );
    // Only where that is asked for is another's firewall changed.
    let rules = || net::output(&["iptables", "-S", "DOCKER-USER"]);
    assert!(!rules()?.contains("kn-"));
    knarr.ok(["network", "audit", "--fix"])?;
    assert!(rules()?.contains("kn-"));
    let open = row()?;
    assert!(open.contains("\"Reachable\":\"yes\""), "{open}");
    let made = knarr.run(["network", "create", "--fix", "later"])?;
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    lab.is_as_documented("beside dockerd")?;
    net::run(&["nft", "flush", "ruleset"])?;
    lab.is_as_documented("beside dockerd, after a flush")?;
    drop(dockerd);
    lab.is_as_documented("after dockerd")
}

#[test]
fn the_audit_tells_what_the_kernel_does() -> Result<()> {
    let lab = Lab::new()?;
    let knarr = &lab.knarr;
    let all = knarr.ok(["network", "audit"])?;
    let has = |from: &str, to: &str, reachable: &str, why: &str| {
        let found = all.lines().any(|line| {
            let words: Vec<_> = line.split("  ").map(str::trim).collect();
            let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
            words.first() == Some(&from)
                && words.get(1).is_some_and(|word| word.starts_with(to))
                && words.contains(&reachable)
                && words.last().is_some_and(|last| last.contains(why))
        });
        assert!(found, "{from} {to} {reachable} {why} in\n{all}");
    };
    for name in NETWORKS {
        let network = format!("network {name}");
        has(
            "outside",
            &network,
            "no",
            "dropped by nftables' table inet knarr-",
        );
        has("other networks", &network, "no", "chain forward: rule");
        let leaves = if name == "inside" { "no" } else { "yes" };
        has(&network, "outside", leaves, "");
    }
    has("network a", "network a", "yes", "bridged");
    has("network apart", "network apart", "no", "icc=false");
    has("outside", "a-1 ", "yes", "published");
    has("this host", "a-1 ", "yes", "published");
    has("this host", "a-1 port 80/tcp", "yes", "copied");
    // What is not in the kernel is not told as if it were.
    lab.kill_monitors(&lab.monitors())?;
    net::run(&["nft", "flush", "ruleset"])?;
    let all = knarr.ok(["network", "audit"])?;
    assert!(all.contains("is missing"), "{all}");
    assert!(
        all.contains("missing: the kernel's table does not have it"),
        "{all}"
    );
    lab.adopt()?;
    assert!(!knarr.ok(["network", "audit"])?.contains("missing"));
    Ok(())
}
