//! Waiting for files to change: inotify(7).

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::{Error, Result};

/// Knows when something in a folder was written, made, removed or renamed since it was made.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    /// Watches a folder. What is looked at after that cannot change unseen.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(Error::of("watch a folder", "inotify_init1"))?;
        let what = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&inotify, folder, what)
            .map_err(Error::of("watch a folder", "inotify_add_watch"))?;
        Ok(Self { inotify })
    }

    /// Sleeps until something has changed, or so long at most.
    pub(crate) fn wait(&self, most: Option<Duration>) -> Result<()> {
        let timeout = most.and_then(|most| Timespec::try_from(most).ok());
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::of("watch a folder", "poll")(errno)),
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        // All of them: they say no more than "look again".
        while reader.next().is_ok() {}
        Ok(())
    }
}
