//! Host names to addresses without getaddrinfo, which a static glibc binary cannot use.
//!
//! `/etc/hosts`, then the name servers of `/etc/resolv.conf` (resolv.conf(5): `nameserver`,
//! `search`, `domain`, `options ndots timeout attempts`) over UDP, and TCP where an answer is
//! truncated (RFC 1035, 3596).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name servers say that it does not exist, or has no address.
    #[error("no such host: {0}")]
    NoSuchHost(String),
    /// No name server answered.
    #[error("no name server answered ({0})")]
    NoAnswer(String),
    /// Too long or empty labels.
    #[error("`{0}` is not a host name")]
    BadName(String),
}

impl Error {
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::NoAnswer(_))
    }
}

const A: u16 = 1;
const AAAA: u16 = 28;
/// EDNS is not asked for, so servers keep to this.
const UDP_LIMIT: usize = 1500;

/// What `/etc/resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    timeout: Duration,
    attempts: usize,
}

/// The addresses of a host name or address, in the order to try.
///
/// # Errors
/// [`Error`].
pub async fn lookup(host: &str) -> Result<Vec<IpAddr>, Error> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let name = host.trim_end_matches('.');
    if name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost") {
        // RFC 6761.
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let hosts = std::fs::read("/etc/hosts").unwrap_or_default();
    let known = parse_hosts(&String::from_utf8_lossy(&hosts), name);
    if !known.is_empty() {
        return Ok(known);
    }
    let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    let config = parse_config(&String::from_utf8_lossy(&text));
    resolve(&config, host).await
}

fn parse_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|word| word.eq_ignore_ascii_case(name))
                .then_some(address)
        })
        .collect()
}

fn parse_config(text: &str) -> Config {
    let mut config = Config {
        servers: Vec::new(),
        search: Vec::new(),
        ndots: 1,
        timeout: Duration::from_secs(3),
        attempts: 2,
    };
    for line in text.lines() {
        let mut words = line
            .split(['#', ';'])
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                // A zone (`fe80::1%eth0`) is left out.
                let address = words.next().and_then(|word| word.split('%').next());
                if let Some(Ok(address)) = address.map(str::parse::<IpAddr>)
                    && config.servers.len() < 3
                {
                    config.servers.push((address, 53).into());
                }
            }
            Some("search" | "domain") => {
                config.search = words
                    .take(6)
                    .map(|w| w.trim_matches('.').to_owned())
                    .collect();
            }
            Some("options") => {
                for word in words {
                    let Some((key, value)) = word.split_once(':') else {
                        continue;
                    };
                    let Ok(value) = value.parse::<u8>() else {
                        continue;
                    };
                    match key {
                        "ndots" => config.ndots = value.min(15).into(),
                        "timeout" => {
                            config.timeout = Duration::from_secs(value.clamp(1, 30).into())
                        }
                        "attempts" => config.attempts = value.clamp(1, 5).into(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if config.servers.is_empty() {
        config.servers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    config
}

async fn resolve(config: &Config, host: &str) -> Result<Vec<IpAddr>, Error> {
    let name = host.trim_end_matches('.');
    let dots = name.bytes().filter(|b| *b == b'.').count();
    let searched = config
        .search
        .iter()
        .map(|domain| format!("{name}.{domain}"));
    let mut candidates: Vec<String> = Vec::new();
    if host.ends_with('.') {
        candidates.push(name.to_owned());
    } else if dots >= config.ndots {
        candidates.push(name.to_owned());
        candidates.extend(searched);
    } else {
        candidates.extend(searched);
        candidates.push(name.to_owned());
    }
    let mut failure = Error::NoSuchHost(host.to_owned());
    for candidate in candidates {
        let (v4, v6) = tokio::join!(ask(config, &candidate, A), ask(config, &candidate, AAAA));
        let mut addresses = Vec::new();
        for answer in [v4, v6] {
            match answer {
                Ok(found) => addresses.extend(found),
                Err(error @ Error::NoAnswer(_)) => failure = error,
                Err(error @ Error::BadName(_)) => return Err(error),
                Err(Error::NoSuchHost(_)) => {}
            }
        }
        if !addresses.is_empty() {
            return Ok(addresses);
        }
    }
    Err(failure)
}

/// Asks every server in turn, as often as configured.
async fn ask(config: &Config, name: &str, kind: u16) -> Result<Vec<IpAddr>, Error> {
    let mut why = String::from("none is configured");
    for _ in 0..config.attempts {
        for server in &config.servers {
            match timeout(config.timeout, exchange(*server, name, kind)).await {
                Ok(Ok(Reply::Addresses(addresses))) => return Ok(addresses),
                Ok(Ok(Reply::NoSuchName)) => return Err(Error::NoSuchHost(name.to_owned())),
                Ok(Ok(Reply::Failure(code))) => why = format!("{} says code {code}", server.ip()),
                Ok(Ok(Reply::Truncated)) => why = format!("{} truncates", server.ip()),
                Ok(Err(Exchange::BadName)) => return Err(Error::BadName(name.to_owned())),
                Ok(Err(Exchange::Io(error))) => why = format!("{}: {error}", server.ip()),
                Err(_) => why = format!("{} is silent", server.ip()),
            }
        }
    }
    Err(Error::NoAnswer(why))
}

enum Exchange {
    Io(std::io::Error),
    BadName,
}

impl From<std::io::Error> for Exchange {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

async fn exchange(server: SocketAddr, name: &str, kind: u16) -> Result<Reply, Exchange> {
    let mut id = [0u8; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(std::io::Error::from)?;
    let query = encode(u16::from_ne_bytes(id), name, kind).ok_or(Exchange::BadName)?;
    let local: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // A fresh socket has a random port, and a connected one hears its server only.
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut buffer = [0u8; UDP_LIMIT];
    loop {
        let size = socket.recv(&mut buffer).await?;
        match decode(buffer.get(..size).unwrap_or_default(), &query, kind) {
            // Not the answer to this question: a late or forged one.
            None => {}
            Some(Reply::Truncated) => return over_tcp(server, &query, kind).await,
            Some(reply) => return Ok(reply),
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8], kind: u16) -> Result<Reply, Exchange> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| Exchange::BadName)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(query).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    decode(&answer, query, kind).ok_or_else(|| {
        Exchange::Io(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "an answer to another question",
        ))
    })
}

/// A query: header with "recursion desired", one question. `None` for what is no name.
fn encode(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(name.len() + 18);
    message.extend(id.to_be_bytes());
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|n| (1..64).contains(n))?;
        message.push(length);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    (name.len() <= 253).then_some(message)
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Addresses(Vec<IpAddr>),
    NoSuchName,
    Truncated,
    Failure(u8),
}

/// Reads an answer; `None` where it does not answer `query`.
fn decode(message: &[u8], query: &[u8], kind: u16) -> Option<Reply> {
    let header = message.get(..12)?;
    let question = query.get(12..)?;
    let flags = header.get(2..4)?;
    let (first, second) = (*flags.first()?, *flags.get(1)?);
    let echoed = message.get(12..12 + question.len())?;
    if header.get(..2) != query.get(..2)
        || first & 0x80 == 0
        || !echoed.eq_ignore_ascii_case(question)
    {
        return None;
    }
    if first & 2 != 0 {
        return Some(Reply::Truncated);
    }
    match second & 0x0f {
        0 => {}
        3 => return Some(Reply::NoSuchName),
        code => return Some(Reply::Failure(code)),
    }
    let count = u16::from_be_bytes([*header.get(6)?, *header.get(7)?]);
    let mut at = 12 + question.len();
    let mut addresses = Vec::new();
    for _ in 0..count {
        // A malformed tail ends the list; what was read before it is good.
        let Some((record, data, next)) = record(message, at) else {
            break;
        };
        at = next;
        // The server followed CNAMEs; every address in the answer is the name's.
        match (record == kind, kind) {
            (true, A) => addresses.extend(<[u8; 4]>::try_from(data).map(IpAddr::from)),
            (true, AAAA) => addresses.extend(<[u8; 16]>::try_from(data).map(IpAddr::from)),
            _ => {}
        }
    }
    Some(Reply::Addresses(addresses))
}

/// Type, data and end of the record at `at`.
fn record(message: &[u8], mut at: usize) -> Option<(u16, &[u8], usize)> {
    // The name is skipped, so a pointer is its end and cannot loop.
    loop {
        match *message.get(at)? {
            0 => {
                at += 1;
                break;
            }
            length if length & 0xc0 == 0xc0 => {
                at += 2;
                break;
            }
            length => at += 1 + usize::from(length & 0x3f),
        }
    }
    let fixed = message.get(at..at + 10)?;
    let kind = u16::from_be_bytes([*fixed.first()?, *fixed.get(1)?]);
    let length = usize::from(u16::from_be_bytes([*fixed.get(8)?, *fixed.get(9)?]));
    let data = message.get(at + 10..at + 10 + length)?;
    Some((kind, data, at + 10 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_resolv_conf_are_read_as_the_libc_does() {
        let hosts = "127.0.0.1 localhost\n10.0.0.7\tReg.Example reg # comment\n::7 reg\nbad reg\n";
        assert_eq!(
            parse_hosts(hosts, "reg"),
            [
                "10.0.0.7".parse::<IpAddr>().unwrap(),
                "::7".parse().unwrap()
            ]
        );
        assert!(parse_hosts(hosts, "comment").is_empty());
        let config = parse_config(
            "# x\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver bad\nsearch a.b c.\n\
             options ndots:2 timeout:1 attempts:9 rotate\n",
        );
        assert_eq!(config.servers.len(), 2);
        assert_eq!(config.search, ["a.b", "c"]);
        assert_eq!((config.ndots, config.attempts), (2, 5));
        assert_eq!(parse_config("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    fn answer(query: &[u8], flags: [u8; 2], records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = query.to_vec();
        message[2..4].copy_from_slice(&flags);
        message[7] = records.len().try_into().unwrap();
        for (kind, data) in records {
            message.extend([0xc0, 12]);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            message.extend(*data);
        }
        message
    }

    #[test]
    fn answers_are_checked_against_the_question() {
        let query = encode(7, "reg.example", A).unwrap();
        let good = answer(
            &query,
            [0x81, 0x80],
            &[(5, b"\x01x\0"), (A, &[10, 0, 0, 7])],
        );
        assert_eq!(
            decode(&good, &query, A),
            Some(Reply::Addresses(vec!["10.0.0.7".parse().unwrap()]))
        );
        let other = encode(8, "reg.example", A).unwrap();
        assert_eq!(decode(&good, &other, A), None);
        let other = encode(7, "reg.evil", A).unwrap();
        assert_eq!(decode(&good, &other, A), None);
        assert_eq!(
            decode(&answer(&query, [0x81, 0x83], &[]), &query, A),
            Some(Reply::NoSuchName)
        );
        assert_eq!(
            decode(&answer(&query, [0x83, 0x80], &[]), &query, A),
            Some(Reply::Truncated)
        );
        // Every truncation and every flipped byte ends without a panic.
        for end in 0..good.len() {
            decode(&good[..end], &query, A);
            let mut bad = good.clone();
            bad[end] ^= 0xff;
            decode(&bad, &query, A);
        }
        for bad in ["", "a..b", &"x".repeat(64), &"x.".repeat(130)] {
            assert_eq!(encode(1, bad, A), None, "{bad}");
        }
    }

    #[test]
    fn a_truncated_answer_is_asked_for_again_over_tcp() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = tcp.local_addr().unwrap();
            let udp = UdpSocket::bind(address).await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0u8; 512];
                loop {
                    let (size, from) = udp.recv_from(&mut buffer).await.unwrap();
                    let query = &buffer[..size];
                    // A forged answer with a wrong id comes first.
                    let mut forged = answer(query, [0x81, 0x80], &[(A, &[6, 6, 6, 6])]);
                    forged[0] ^= 1;
                    udp.send_to(&forged, from).await.unwrap();
                    udp.send_to(&answer(query, [0x83, 0x80], &[]), from)
                        .await
                        .unwrap();
                }
            });
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = tcp.accept().await.unwrap();
                    let size = stream.read_u16().await.unwrap();
                    let mut query = vec![0; size.into()];
                    stream.read_exact(&mut query).await.unwrap();
                    let is_a = query[query.len() - 3] == 1;
                    let records: &[(u16, &[u8])] = if is_a { &[(A, &[10, 0, 0, 9])] } else { &[] };
                    let reply = answer(&query, [0x81, 0x80], records);
                    stream
                        .write_u16(reply.len().try_into().unwrap())
                        .await
                        .unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            });
            let config = Config {
                servers: vec![address],
                search: vec!["example".to_owned()],
                ndots: 1,
                timeout: Duration::from_secs(5),
                attempts: 1,
            };
            assert_eq!(
                resolve(&config, "reg").await.unwrap(),
                ["10.0.0.9".parse::<IpAddr>().unwrap()]
            );
        });
    }
}
