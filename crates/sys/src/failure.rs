//! The error of a system call.

use std::fmt;

use rustix::io::Errno;

/// A system call that failed: which one, and how. The object it failed on is the caller's to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The name of the call, as its manual page has it.
    pub call: &'static str,
    /// What the kernel answered.
    pub errno: Errno,
}

/// What every wrapper returns.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// For `map_err`: names the call that an `Errno` came from.
    ///
    /// ```
    /// # use knarr_sys::Failure;
    /// let gone = rustix::fs::stat("/no/such/file").map_err(Failure::of("stat"));
    /// assert_eq!(gone.unwrap_err().to_string(), "stat: ENOENT (no such file or directory)");
    /// ```
    pub fn of(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { call, errno }
    }

    /// The same from an error of the standard library.
    pub fn from_io(call: &'static str, error: &std::io::Error) -> Self {
        Self {
            call,
            errno: Errno::from_io_error(error).unwrap_or(Errno::IO),
        }
    }

    /// The errno of the call that just returned -1, from libc's thread-local.
    pub(crate) fn last(call: &'static str) -> Self {
        Self::from_io(call, &std::io::Error::last_os_error())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.errno) {
            Some((name, meaning)) => write!(f, "{}: {name} ({meaning})", self.call),
            None => write!(f, "{}: errno {}", self.call, self.errno.raw_os_error()),
        }
    }
}

impl std::error::Error for Failure {}

/// The errors that occur in practice (errno(3)).
fn name(errno: Errno) -> Option<(&'static str, &'static str)> {
    Some(match errno {
        Errno::PERM => ("EPERM", "operation not permitted"),
        Errno::NOENT => ("ENOENT", "no such file or directory"),
        Errno::SRCH => ("ESRCH", "no such process"),
        Errno::INTR => ("EINTR", "interrupted"),
        Errno::IO => ("EIO", "input/output error"),
        Errno::NXIO => ("ENXIO", "no such device or address"),
        Errno::TOOBIG => ("E2BIG", "argument list too long"),
        Errno::NOEXEC => ("ENOEXEC", "exec format error"),
        Errno::BADF => ("EBADF", "bad file descriptor"),
        Errno::CHILD => ("ECHILD", "no child processes"),
        Errno::AGAIN => ("EAGAIN", "resource temporarily unavailable"),
        Errno::NOMEM => ("ENOMEM", "out of memory"),
        Errno::ACCESS => ("EACCES", "permission denied"),
        Errno::FAULT => ("EFAULT", "bad address"),
        Errno::NOTBLK => ("ENOTBLK", "block device required"),
        Errno::BUSY => ("EBUSY", "device or resource busy"),
        Errno::EXIST => ("EEXIST", "file exists"),
        Errno::XDEV => ("EXDEV", "crosses file systems or leaves the root"),
        Errno::NODEV => ("ENODEV", "no such device"),
        Errno::NOTDIR => ("ENOTDIR", "not a directory"),
        Errno::ISDIR => ("EISDIR", "is a directory"),
        Errno::INVAL => ("EINVAL", "invalid argument"),
        Errno::NFILE => ("ENFILE", "too many open files in the system"),
        Errno::MFILE => ("EMFILE", "too many open files"),
        Errno::NOTTY => ("ENOTTY", "not a terminal, or no such ioctl"),
        Errno::TXTBSY => ("ETXTBSY", "text file busy"),
        Errno::FBIG => ("EFBIG", "file too large"),
        Errno::NOSPC => ("ENOSPC", "no space left on device"),
        Errno::SPIPE => ("ESPIPE", "illegal seek"),
        Errno::ROFS => ("EROFS", "read-only file system"),
        Errno::MLINK => ("EMLINK", "too many links"),
        Errno::PIPE => ("EPIPE", "broken pipe"),
        Errno::RANGE => ("ERANGE", "result too large"),
        Errno::DEADLK => ("EDEADLK", "deadlock avoided"),
        Errno::NAMETOOLONG => ("ENAMETOOLONG", "file name too long"),
        Errno::NOSYS => ("ENOSYS", "not in this kernel"),
        Errno::NOTEMPTY => ("ENOTEMPTY", "directory not empty"),
        Errno::LOOP => ("ELOOP", "too many symbolic links, or one where none may be"),
        Errno::NODATA => ("ENODATA", "no data"),
        Errno::OVERFLOW => ("EOVERFLOW", "value too large"),
        Errno::ILSEQ => ("EILSEQ", "illegal byte sequence"),
        Errno::USERS => ("EUSERS", "too many nested user namespaces"),
        Errno::OPNOTSUPP => ("EOPNOTSUPP", "operation not supported"),
        Errno::ADDRINUSE => ("EADDRINUSE", "address in use"),
        Errno::CONNREFUSED => ("ECONNREFUSED", "connection refused"),
        Errno::CONNRESET => ("ECONNRESET", "connection reset"),
        Errno::TIMEDOUT => ("ETIMEDOUT", "timed out"),
        Errno::STALE => ("ESTALE", "stale file handle"),
        Errno::DQUOT => ("EDQUOT", "disk quota exceeded"),
        _ => return None,
    })
}
