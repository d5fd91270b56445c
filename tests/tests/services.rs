//! Real services from Debian's packages on one network: nginx in front of an application that asks
//! Redis and PostgreSQL, each found by name, whatever is restarted; a DNS server in a container; two
//! hundred neighbours.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use knarr_testkit::{Knarr, eventually, fixture, net, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// Counts visits in Redis and says what PostgreSQL answers, over HTTP.
const APPLICATION: &str = r#"
import http.server, socket, subprocess

def visits():
    redis = socket.create_connection(("cache", 6379), 5)
    redis.sendall(b"INCR visits\r\n")
    return redis.recv(64).decode().strip().lstrip(":")

def greeting():
    query = ["psql", "-h", "db", "-U", "postgres", "-Atc", "select greeting from greetings"]
    return subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, body = 200, greeting() + " " + visits()
        except Exception as error:
            status, body = 503, repr(error)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"#;

/// Asks the name server again every second, as people configure nginx in containers.
const NGINX: &str = "daemon off;
events {}
http {
  access_log off;
  resolver 127.0.0.11 valid=1s ipv6=off;
  server {
    listen 80;
    set $application http://app:8000;
    location / { proxy_pass $application; proxy_connect_timeout 5s; }
  }
}
";

const DATABASE: &str = "set -e
if [ ! -e /data/pg/PG_VERSION ]; then
  install -d -o postgres /data/pg
  setpriv --reuid=postgres --regid=postgres --clear-groups initdb -D /data/pg -A trust --no-sync >/dev/null
  echo 'host all all all trust' >> /data/pg/pg_hba.conf
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D /data/pg -k /tmp -c listen_addresses='*' -c fsync=off";

fn start(knarr: &Knarr, name: &str, flags: &[&str], script: &str) -> Result<()> {
    let args = [
        &["run", "-d", "--name", name, "--network", "shop"],
        flags,
        &["services", "sh", "-c", script],
    ]
    .concat();
    knarr.ok(args).map(drop)
}

/// What the shop answers to curl on the host.
fn visit() -> Option<String> {
    net::output(&[
        "curl",
        "-sS",
        "--fail",
        "-m",
        "10",
        "http://127.0.0.1:8080/",
    ])
    .ok()
}

/// The count of a good answer.
fn count(answer: &str) -> Result<u32> {
    let visits = answer.strip_prefix("hello ").context(answer.to_owned())?;
    Ok(visits.parse()?)
}

#[test]
fn a_web_shop_finds_its_parts_by_name_across_restarts() -> Result<()> {
    let knarr = Knarr::with_image(&fixture::services_image()?)?;
    knarr.ok(["network", "create", "shop"])?;
    knarr.ok(["volume", "create", "rows"])?;
    start(&knarr, "db", &["-v", "rows:/data"], DATABASE)?;
    start(
        &knarr,
        "cache",
        &[],
        "exec redis-server --bind 0.0.0.0 --protected-mode no --save ''",
    )?;
    start(
        &knarr,
        "app",
        &["-e", &format!("APPLICATION={APPLICATION}")],
        "exec python3 -c \"$APPLICATION\"",
    )?;
    let script = "echo \"$NGINX\" > /etc/nginx/nginx.conf; exec nginx";
    start(
        &knarr,
        "web",
        &["-p", "8080:80", "-e", &format!("NGINX={NGINX}")],
        script,
    )?;
    let psql = |query: &str| {
        let args = [
            "exec", "app", "psql", "-h", "db", "-U", "postgres", "-qAtc", query,
        ];
        knarr.run(args)
    };
    let mut said = String::new();
    let up = wait_for(PATIENCE, || {
        let output = psql("select 1").ok()?;
        said = output.stderr;
        (output.code == 0).then_some(())
    });
    assert!(up.is_some(), "{said}");
    let made = psql("create table greetings as select 'hello' as greeting")?;
    assert_eq!(made.code, 0, "{}", made.stderr);
    let first = eventually(PATIENCE, "the first visit", visit);
    let mut visits = count(&first)?;
    assert!(visits >= 1);

    for part in ["web", "app", "db", "cache"] {
        let before = knarr.ok([
            "inspect",
            "-f",
            "{{.NetworkSettings.Networks.shop.IPAddress}}",
            part,
        ])?;
        knarr.ok(["restart", "-t", "5", part])?;
        let answer = eventually(PATIENCE, "the shop after a restart", visit);
        if part == "cache" {
            // It keeps nothing.
            visits = 0;
        }
        let now = count(&answer).with_context(|| format!("{part} had {before}"))?;
        assert!(now > visits, "{part}: {now} after {visits}");
        visits = now;
    }

    // A new cache under the old name takes over; without one, the reason comes through.
    knarr.ok(["rm", "-f", "cache"])?;
    let failed = net::output(&["curl", "-sS", "-m", "20", "http://127.0.0.1:8080/"])?;
    assert!(
        failed.contains("Name or service not known") || failed.contains("gaierror"),
        "{failed}"
    );
    start(
        &knarr,
        "cache",
        &[],
        "exec redis-server --bind 0.0.0.0 --protected-mode no --save ''",
    )?;
    let answer = eventually(PATIENCE, "the shop with a new cache", visit);
    assert_eq!(count(&answer)?, 1);

    knarr.ok(["rm", "-f", "web", "app", "cache", "db"])?;
    knarr.ok(["network", "rm", "shop"])?;
    Ok(())
}

#[test]
fn a_dns_server_runs_in_a_container() -> Result<()> {
    let knarr = Knarr::with_image(&fixture::services_image()?)?;
    knarr.ok(["network", "create", "shop"])?;
    let dnsmasq = "exec dnsmasq -k -u root --no-resolv --no-hosts --address=/corp.example/192.0.2.77 \
                   --host-record=printer.corp.example,192.0.2.78";
    start(&knarr, "ns", &["-p", "5353:53/udp"], dnsmasq)?;
    let address = knarr.ok([
        "inspect",
        "-f",
        "{{.NetworkSettings.Networks.shop.IPAddress}}",
        "ns",
    ])?;
    let lookup = |flags: &[&str], name: &str| {
        let args = [
            &["run", "--rm", "--network", "shop"],
            flags,
            &["services", "getent", "ahostsv4", name],
        ]
        .concat();
        knarr.run(args)
    };
    // Names of containers from the monitor, all others from the server that the user named.
    let asked = eventually(PATIENCE, "dnsmasq to answer", || {
        let output = lookup(&["--dns", &address], "printer.corp.example").ok()?;
        (output.code == 0).then_some(output.stdout)
    });
    assert!(asked.starts_with("192.0.2.78 "), "{asked}");
    let container = lookup(&["--dns", &address], "ns")?;
    assert!(container.stdout.starts_with(&address), "{container:?}");
    // The container with the server asks itself at :53 without being in its own way.
    let own = knarr.ok([
        "exec", "ns", "python3", "-c",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); \
         s.sendto(bytes.fromhex('0001010000010000000000000466616b6504636f7270076578616d706c650000010001'), ('127.0.0.1', 53)); \
         print(socket.inet_ntoa(s.recv(512)[-4:]))",
    ])?;
    assert_eq!(own, "192.0.2.77");
    Ok(())
}

#[test]
fn two_hundred_containers_share_a_network() -> Result<()> {
    const COUNT: usize = 200;
    let knarr = Knarr::with_busybox()?;
    knarr.ok(["network", "create", "crowd"])?;
    for n in 0..COUNT {
        let name = format!("c{n}");
        let script =
            format!("mkdir /www; echo {name} >/www/index.html; exec httpd -f -p 80 -h /www");
        knarr.ok([
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "crowd",
            "busybox",
            "sh",
            "-c",
            &script,
        ])?;
    }
    let addresses: BTreeSet<String> = knarr
        .ok([
            "network",
            "inspect",
            "-f",
            "{{range .Containers}}{{println .IPv4Address}}{{end}}",
            "crowd",
        ])?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(addresses.len(), COUNT);
    // The last asks every one by name (Debian's static busybox has only nslookup for that).
    let script = format!(
        "for n in $(seq 0 {}); do \
           ip=$(nslookup -type=a c$n | sed -n '/^Name/,$s/^Address: //p'); \
           timeout 10 wget -q -O- http://$ip/ 2>&1 || echo no answer from c$n at $ip; \
         done",
        COUNT - 1
    );
    let answers = knarr.ok(["exec", "c199", "sh", "-c", &script])?;
    let expected: Vec<String> = (0..COUNT).map(|n| format!("c{n}")).collect();
    assert_eq!(answers.lines().collect::<Vec<_>>(), expected);
    let names: Vec<&str> = expected.iter().map(String::as_str).collect();
    knarr.ok([&["rm", "-f"], names.as_slice()].concat())?;
    knarr.ok(["network", "rm", "crowd"])?;
    let mut left = Default::default();
    let clean = wait_for(PATIENCE, || {
        left = knarr.leftovers("");
        left.is_empty().then_some(())
    });
    assert!(clean.is_some(), "left: {left:#?}");
    Ok(())
}
