//! Network namespaces that tests make, so that nothing touches the machine's own network.

use std::cell::Cell;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context as _, Result, ensure};

thread_local! {
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// Moves the calling thread (a test has one of its own) into a network namespace of its own with
/// loopback up; what it starts is there, too. Once is enough. Without root nothing happens: then
/// there is no Knarr either.
///
/// # Errors
/// When the kernel refuses.
pub fn private_network() -> Result<()> {
    if PRIVATE.get() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    knarr_sys::namespace::unshare_network()?;
    knarr_net::loopback_up()?;
    PRIVATE.set(true);
    Ok(())
}

/// Another network namespace: a neighbour, a firewall host.
#[derive(Debug)]
pub struct Netns {
    namespace: OwnedFd,
    /// A thread that is in it, for `ip`, which takes numbers of processes.
    thread: i32,
    /// Dropping it ends a thread that was made for this.
    _parked: Option<Sender<()>>,
}

impl Netns {
    /// An empty one, with loopback up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let (parked, wait) = channel::<()>();
        let (tell, hear) = channel();
        std::thread::spawn(move || {
            let made = || -> Result<(OwnedFd, i32)> {
                knarr_sys::namespace::unshare_network()?;
                knarr_net::loopback_up()?;
                Ok((knarr_net::own_namespace()?, thread_number()))
            };
            // Nobody listens any more: then it is not needed.
            if tell.send(made()).is_ok() {
                wait.recv().ok();
            }
        });
        let (namespace, thread) = hear.recv()??;
        Ok(Self {
            namespace,
            thread,
            _parked: Some(parked),
        })
    }

    /// The one that the calling thread is in, as long as that lives.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> Result<Self> {
        Ok(Self {
            namespace: knarr_net::own_namespace()?,
            thread: thread_number(),
            _parked: None,
        })
    }

    /// That of a running container.
    ///
    /// # Errors
    /// When it does not run.
    pub fn of(knarr: &crate::Knarr, container: &str) -> Result<Self> {
        let pid = knarr.ok(["inspect", "-f", "{{.State.Pid}}", container])?;
        Ok(Self {
            namespace: knarr_net::open_namespace(&format!("/proc/{pid}/ns/net"))?,
            thread: pid.parse()?,
            _parked: None,
        })
    }

    /// Does something in it, on the calling thread.
    ///
    /// # Errors
    /// What `act` fails with.
    pub fn within<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut done = None;
        knarr_net::within(self.namespace.as_fd(), || {
            done = Some(act());
            Ok(())
        })?;
        done.context("nothing was done")?
    }

    /// The path by which others find it, as long as this lives.
    pub fn path(&self) -> String {
        let (process, fd) = (std::process::id(), self.namespace.as_raw_fd());
        format!("/proc/{process}/fd/{fd}")
    }

    /// A pair of links between this one and another: `(name, addresses)` of each end, both up.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link(&self, own: (&str, &[&str]), other: &Self, their: (&str, &[&str])) -> Result<()> {
        let thread = other.thread.to_string();
        self.within(|| {
            run(&[
                "ip", "link", "add", own.0, "type", "veth", "peer", "name", their.0, "netns",
                &thread,
            ])
        })?;
        for (namespace, (name, addresses)) in [(self, own), (other, their)] {
            namespace.within(|| {
                for address in addresses {
                    let nodad: &[&str] = if address.contains(':') {
                        &["nodad"]
                    } else {
                        &[]
                    };
                    run(&[&["ip", "addr", "add", address, "dev", name], nodad].concat())?;
                }
                run(&["ip", "link", "set", name, "up"])
            })?;
        }
        Ok(())
    }
}

fn thread_number() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Runs a program to its end, which must be good; gives what it printed.
///
/// # Errors
/// With what it said.
pub fn output(words: &[&str]) -> Result<String> {
    let (program, args) = words.split_first().context("no program")?;
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("{words:?}"))?;
    ensure!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`output`], for what prints nothing of interest.
///
/// # Errors
/// With what it said.
pub fn run(words: &[&str]) -> Result<()> {
    output(words).map(drop)
}
