//! What the network benchmark runs inside containers, and outside as the other end: an echo
//! server, a request-and-response client, and a client for names.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::sample::Samples;

/// How many clients ask for names at a time.
const ASKING: usize = 8;

/// `echo PORT`, `rr HOST PORT COUNT`, `dns NAME COUNT`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match *words {
        ["echo", port] => echo(port.parse()?),
        ["rr", host, port, count] => round_trips(host, port.parse()?, count.parse()?),
        ["dns", name, count] => names(name, count.parse()?),
        _ => bail!("`probe {}` is not known", words.join(" ")),
    }
}

/// Sends back every byte, one connection a thread, until it is killed.
fn echo(port: u16) -> Result<()> {
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        std::thread::spawn(move || {
            let mut byte = [0; 1];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
    }
    Ok(())
}

/// One byte there and back, `count` times over one connection; prints p50 and p99 in µs.
fn round_trips(host: &str, port: u16, count: usize) -> Result<()> {
    let mut stream =
        TcpStream::connect((host, port)).with_context(|| format!("{host} port {port}"))?;
    stream.set_nodelay(true)?;
    let mut byte = [0; 1];
    let mut samples = Samples::default();
    for _ in 0..count {
        samples.time(|| {
            stream.write_all(&byte)?;
            Ok(stream.read_exact(&mut byte)?)
        })?;
    }
    println!("{} {}", micros(samples.median()), micros(samples.tail()));
    Ok(())
}

/// Asks the first server of /etc/resolv.conf for a name's address, `count` times from each of
/// some clients; prints queries per second, p50 and p99 in µs.
fn names(name: &str, count: usize) -> Result<()> {
    let text = std::fs::read_to_string("/etc/resolv.conf")?;
    let server = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver "))
        .context("no server in /etc/resolv.conf")?
        .trim();
    let query = query(name)?;
    let start = Instant::now();
    let clients: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ASKING)
            .map(|_| scope.spawn(|| ask(server, &query, count)))
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut samples = Samples::default();
    for client in clients {
        samples.extend(client.map_err(|_| anyhow::anyhow!("a client panicked"))??);
    }
    #[expect(clippy::cast_precision_loss, reason = "some ten thousands")]
    let rate = (count * ASKING) as f64 / start.elapsed().as_secs_f64();
    println!(
        "{rate} {} {}",
        micros(samples.median()),
        micros(samples.tail())
    );
    Ok(())
}

/// A question for the A record of a name, RFC 1035 section 4.1.
fn query(name: &str) -> Result<Vec<u8>> {
    let mut query = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(query)
}

fn ask(server: &str, query: &[u8], count: usize) -> Result<Samples> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((server, 53))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut answer = [0; 512];
    let mut samples = Samples::default();
    for _ in 0..count {
        samples.time(|| {
            socket.send(query)?;
            let length = socket.recv(&mut answer).context("no answer")?;
            // RCODE 0, at least one answer.
            ensure!(
                length > query.len() && answer.get(3).is_some_and(|flags| flags & 15 == 0),
                "no address in the answer"
            );
            Ok(())
        })?;
    }
    Ok(samples)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
