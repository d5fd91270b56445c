//! What a process does to itself around `execve`, and signals. No function here allocates.

use std::ffi::{CStr, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::{Failure, Result};

/// A NULL-terminated array of C strings for `execve`, made before the fork.
#[derive(Debug)]
pub struct CStringArray {
    // Kept so that the pointers stay valid.
    _strings: Vec<std::ffi::CString>,
    pointers: Vec<*const c_char>,
}

impl CStringArray {
    /// Takes the strings over.
    pub fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|s| s.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect();
        Self {
            _strings: strings,
            pointers,
        }
    }
}

/// execve(2). Returns only if it failed.
pub fn execve(path: &CStr, args: &CStringArray, env: &CStringArray) -> Failure {
    // SAFETY: all three are NUL-terminated, the arrays NULL-terminated, and live through the call.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    Failure::last("execve")
}

/// execveat(2) of the file that `file` refers to (`AT_EMPTY_PATH`). Returns only if it failed.
pub fn execveat<Fd: AsFd>(file: Fd, args: &CStringArray, env: &CStringArray) -> Failure {
    // SAFETY: as for `execve`; the empty path is a NUL-terminated literal.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Failure::last("execveat")
}

/// Ends the process at once, without destructors or buffers (_exit(2)).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// What [`close_range`] does with the descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseRange {
    /// Closes them now.
    Close,
    /// Marks them close-on-exec (`CLOSE_RANGE_CLOEXEC`, Linux 5.11).
    CloseOnExec,
}

/// close_range(2): all descriptors from `first` on.
///
/// With [`CloseRange::Close`] this closes descriptors that Rust values still own: only for a child
/// that is about to exec, or a process that owns nothing yet.
///
/// # Safety
/// With [`CloseRange::Close`], no owned descriptor from `first` on is used or dropped afterwards.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub unsafe fn close_range(first: RawFd, action: CloseRange) -> Result<()> {
    let flags = match action {
        CloseRange::Close => 0,
        CloseRange::CloseOnExec => libc::CLOSE_RANGE_CLOEXEC,
    };
    // SAFETY: no memory is passed; the caller vouches for the descriptors.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("close_range"))
    }
}

/// Sets the signals of `ignored` (bit 0 is signal 1; `u64::MAX` where it is not known which are) to
/// their default action and empties the mask, so that what is executed next inherits neither
/// ignored nor blocked signals. Handlers do not live through an execve.
///
/// # Errors
/// None in practice.
pub fn reset_signals(ignored: u64) -> Result<()> {
    // The kernel's own call: glibc's refuses two real-time signals that it keeps for itself, but an
    // ignored one of those is inherited like any other.
    let default = [0u64; 4];
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP || ignored & 1 << (signal - 1) == 0 {
            continue;
        }
        // SAFETY: the kernel reads a `struct sigaction` of four words (handler SIG_DFL, flags,
        // restorer, mask; three on other architectures), which installs no handler.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    set_signal_mask(&SignalSet::empty()).map(drop)
}

/// Ignores a signal (`SIG_IGN`).
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalSet")
    }
}

impl SignalSet {
    /// No signal.
    pub fn empty() -> Self {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: sigemptyset initializes all of `set`.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: just initialized.
        Self(unsafe { set.assume_init() })
    }

    /// For calls in this crate.
    pub(crate) fn raw(&self) -> *const libc::sigset_t {
        &raw const self.0
    }

    /// Every signal.
    pub fn full() -> Self {
        let mut set = Self::empty();
        // SAFETY: `set` is an initialized sigset_t.
        unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    /// The set with `signal` in it.
    #[must_use]
    pub fn with(mut self, signal: i32) -> Self {
        // SAFETY: `self.0` is an initialized sigset_t; a bad number is refused with EINVAL.
        unsafe { libc::sigaddset(&raw mut self.0, signal) };
        self
    }
}

/// Sets the thread's signal mask, giving the old one.
///
/// # Errors
/// None in practice.
pub fn set_signal_mask(set: &SignalSet) -> Result<SignalSet> {
    let mut old = SignalSet::empty();
    // SAFETY: both are initialized sets that outlive the call.
    let done = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set.0, &raw mut old.0) };
    if done == 0 {
        Ok(old)
    } else {
        Err(Failure::last("sigprocmask"))
    }
}

/// signalfd(2): a descriptor that becomes readable when one of `set` (blocked by the caller) is
/// pending; reads give `signalfd_siginfo` records of 128 bytes, the signal number in the first four.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM.
pub fn signalfd(set: &SignalSet) -> Result<std::os::fd::OwnedFd> {
    // SAFETY: `set` outlives the call.
    let fd =
        unsafe { libc::signalfd(-1, &raw const set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(Failure::last("signalfd"));
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// setns(2) into all the `namespaces` (bits of [`crate::clone::Namespaces`]) of the process behind
/// a pidfd at once (Linux 5.8).
///
/// # Errors
/// EPERM without the right; EINVAL for a time or user namespace with several threads.
pub fn setns(fd: BorrowedFd<'_>, namespaces: crate::clone::Namespaces) -> Result<()> {
    let bits = i32::try_from(namespaces.bits()).map_err(|_| Failure {
        call: "setns",
        errno: rustix::io::Errno::INVAL,
    })?;
    // SAFETY: no memory is passed.
    let done = unsafe { libc::setns(fd.as_raw_fd(), bits) };
    if done == 0 {
        Ok(())
    } else {
        Err(Failure::last("setns"))
    }
}
