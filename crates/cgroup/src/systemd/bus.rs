//! A connection to a systemd manager: to its bus, or to its own socket where no bus runs.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use knarr_sys::Failure;
use knarr_sys::rustix::io::Errno;

use super::message::{self, Kind, Message, Method, Writer};
use crate::{Error, Result};

/// How long an answer, or a job's end, may take.
const PATIENCE: Duration = Duration::from_secs(30);

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";

/// Why a call was refused: the error's name and what it says.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) name: String,
    pub(super) text: String,
}

/// An open connection. Calls are answered one after the other.
pub(super) struct Connection {
    stream: UnixStream,
    socket: PathBuf,
    serial: u32,
    /// Jobs whose end was told while something else was waited for.
    ended: Vec<(String, String)>,
}

impl Connection {
    /// Connects to the system's manager, or to that of the calling user.
    pub(super) fn open(user: bool) -> Result<Self> {
        let mut first = None;
        for (socket, is_bus) in sockets(user) {
            match UnixStream::connect(&socket) {
                Ok(stream) => return Self::greet(stream, socket, is_bus),
                Err(error) => {
                    let cause = Failure::from_io("connect", &error);
                    first.get_or_insert((socket, cause));
                }
            }
        }
        Err(match first {
            Some((socket, cause)) => Error::NoManager { socket, cause },
            None => Error::NoManager {
                socket: PathBuf::from("$XDG_RUNTIME_DIR/bus"),
                cause: Failure {
                    call: "connect",
                    errno: Errno::NOENT,
                },
            },
        })
    }

    fn greet(stream: UnixStream, socket: PathBuf, is_bus: bool) -> Result<Self> {
        let mut connection = Self {
            stream,
            socket,
            serial: 0,
            ended: Vec::new(),
        };
        let patience = Some(PATIENCE);
        connection
            .stream
            .set_read_timeout(patience)
            .and_then(|()| connection.stream.set_write_timeout(patience))
            .map_err(|error| connection.lost("setsockopt", &error))?;
        // The identity is taken from the socket's credentials, also out of a user namespace.
        connection.write(b"\0AUTH EXTERNAL\r\nDATA\r\n")?;
        let mut answer = Vec::new();
        while answer.iter().filter(|byte| **byte == b'\n').count() < 2 {
            let mut byte = [0];
            connection.read(&mut byte)?;
            answer.extend(byte);
            if answer.len() > 4096 || answer.starts_with(b"REJECTED") {
                return Err(connection.nonsense("it refuses this user"));
            }
        }
        if !answer
            .split(|byte| *byte == b'\n')
            .any(|line| line.starts_with(b"OK "))
        {
            return Err(connection.nonsense("it refuses this user"));
        }
        connection.write(b"BEGIN\r\n")?;
        if is_bus {
            connection.bus("Hello", None)?;
            connection.bus(
                "AddMatch",
                Some(
                    "type='signal',sender='org.freedesktop.systemd1',\
                     interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
                ),
            )?;
        }
        connection.manager("Subscribe", "", Writer::default())?.ok();
        Ok(connection)
    }

    fn bus(&mut self, member: &str, argument: Option<&str>) -> Result<()> {
        let method = Method {
            destination: BUS,
            path: "/org/freedesktop/DBus",
            interface: BUS,
            member,
        };
        let mut body = Writer::default();
        if let Some(argument) = argument {
            body.text(argument);
        }
        let signature = if argument.is_some() { "s" } else { "" };
        match self.ask(method, signature, body)? {
            Ok(_) => Ok(()),
            Err(_) => Err(self.nonsense("its bus refuses this program")),
        }
    }

    /// Calls a method of the manager and waits for its answer.
    pub(super) fn manager(
        &mut self,
        member: &str,
        signature: &str,
        body: Writer,
    ) -> Result<std::result::Result<Message, Refusal>> {
        let method = Method {
            destination: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: MANAGER,
            member,
        };
        self.ask(method, signature, body)
    }

    fn ask(
        &mut self,
        method: Method<'_>,
        signature: &str,
        body: Writer,
    ) -> Result<std::result::Result<Message, Refusal>> {
        self.serial += 1;
        let bytes = message::call(self.serial, method, signature, body);
        self.write(&bytes)?;
        loop {
            let message = self.receive()?;
            if message.answers == Some(self.serial) {
                return Ok(match message.kind {
                    Kind::Error => Err(Refusal {
                        text: message.first_text().unwrap_or_default(),
                        name: message.error,
                    }),
                    _ => Ok(message),
                });
            }
            self.ended.extend(message.removed_job());
        }
    }

    /// Waits until a job has ended, and gives its result: `done`, `failed`, `canceled`, …
    pub(super) fn job(&mut self, path: &str) -> Result<String> {
        loop {
            if let Some(at) = self.ended.iter().position(|(job, _)| job == path) {
                return Ok(self.ended.swap_remove(at).1);
            }
            let message = self.receive()?;
            self.ended.extend(message.removed_job());
        }
    }

    fn receive(&mut self) -> Result<Message> {
        let mut head = [0; 16];
        self.read(&mut head)?;
        let length =
            Message::length(&head).ok_or_else(|| self.nonsense("its answer is no message"))?;
        let mut bytes = vec![0; length];
        let (start, rest) = bytes.split_at_mut(head.len());
        start.copy_from_slice(&head);
        self.read(rest)?;
        Message::parse(&bytes).ok_or_else(|| self.nonsense("its answer is no message"))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .map_err(|error| self.lost("write", &error))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.stream
            .read_exact(bytes)
            .map_err(|error| self.lost("read", &error))
    }

    fn lost(&self, call: &'static str, error: &std::io::Error) -> Error {
        Error::NoManager {
            socket: self.socket.clone(),
            cause: match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Failure {
                    call,
                    errno: Errno::CONNRESET,
                },
                _ => Failure::from_io(call, error),
            },
        }
    }

    fn nonsense(&self, reason: &'static str) -> Error {
        Error::Manager {
            socket: self.socket.clone(),
            reason,
        }
    }
}

/// Where a manager listens, the best first, and whether a bus is between.
fn sockets(user: bool) -> Vec<(PathBuf, bool)> {
    if !user {
        return vec![
            (PathBuf::from("/run/dbus/system_bus_socket"), true),
            (PathBuf::from("/run/systemd/private"), false),
        ];
    }
    let mut found = Vec::new();
    let address = std::env::var("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default();
    if let Some(path) = address
        .split(';')
        .find_map(|address| address.strip_prefix("unix:path="))
    {
        let path = path.split(',').next().unwrap_or(path);
        found.push((PathBuf::from(path), true));
    }
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(
        || Path::new("/run/user").join(super::caller().to_string()),
        PathBuf::from,
    );
    found.push((folder.join("bus"), true));
    found.push((folder.join("systemd/private"), false));
    found
}
