//! The way into a program that is started once per container: what a process does before its
//! `main`, for those in which 0.5 ms count.
//!
//! * [`main!`](crate::main) makes a function the program's `main` without the standard library's
//!   own way in, which reads `/proc/self/maps`, installs handlers and makes a signal stack: 18
//!   system calls.
//! * `knarr_start` is an entry point that goes on from a read-only mount of the program before
//!   anything of the program has run. The linker is told to use it (`-e knarr_start`, see
//!   `bin/knarr-oci/build.rs`).

use std::os::fd::{BorrowedFd, RawFd};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

/// Makes a function (`fn() -> ExitCode`) the program's `main`, in a crate that is `#![no_main]`.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        // SAFETY: a program has one `main`, with this signature (C standard, 5.1.2.2.1).
        #[unsafe(no_mangle)]
        extern "C" fn main(_count: i32, _words: *const *const u8) -> i32 {
            $crate::entry::enter($main)
        }
    };
}

/// Does what the standard library does before and after a `main`, as far as it is needed: open
/// standard files, no death by SIGPIPE, what is printed is flushed, a panic is exit code 101.
pub fn enter(main: fn() -> ExitCode) -> i32 {
    use std::io::Write as _;
    open_standard_files();
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let code = std::panic::catch_unwind(main).map_or(101, |code| {
        // The type does not tell its number, but it can be compared.
        let number = (0..=u8::MAX).find(|number| ExitCode::from(*number) == code);
        i32::from(number.unwrap_or(1))
    });
    // As the standard library does at the end: a closed pipe is nobody's failure.
    std::io::stdout().flush().ok();
    code
}

/// Puts `/dev/null` where a standard file is closed: the next file that is opened must not be taken
/// for it.
fn open_standard_files() {
    let standard = |fd: RawFd| {
        // SAFETY: only asked whether it is open; 0, 1 and 2 are never closed by this program.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        PollFd::from_borrowed_fd(fd, PollFlags::empty())
    };
    let mut files = [standard(0), standard(1), standard(2)];
    if !matches!(poll(&mut files, Some(&Timespec::default())), Ok(1..)) {
        return;
    }
    for file in files {
        if file.revents().contains(PollFlags::NVAL)
            && let Ok(null) = rustix::fs::open(c"/dev/null", OFlags::RDWR, Mode::empty())
        {
            // The lowest that was free.
            std::mem::forget(null);
        }
    }
}

// Before libc is set up: its start reads the processor's features with some 80 CPUID instructions,
// each of which is a trip to the hypervisor in a virtual machine (0.3 ms in all), and a program that
// executes itself again would pay for that twice. So nothing but the registers and the stack as the
// kernel gives them (System V ABI for x86-64, 3.4.1: argument count, arguments, NULL, environment)
// is used here, no relocated address, no thread-local. What the kernel or the dynamic linker left
// for `_start` is left to it: the stack pointer and rdx.
//
// Only the commands that enter a container go on from the mount; a word that merely looks like one
// costs time, nothing else. Whatever fails here is left to `knarr_runtime::seal`, which looks again
// and can also copy.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.knarr_start,\"ax\",@progbits",
    ".globl knarr_start",
    ".type knarr_start,@function",
    "knarr_start:",
    "mov r12, rdx",
    "mov r13, rsp",
    "lea rbx, [r13 + 8]", // argv[0]
    "2:",
    "add rbx, 8",
    "mov rdi, [rbx]",
    "test rdi, rdi",
    "jz 4f",
    "mov eax, [rdi]", // the first four bytes; behind the last word there are eight more
    "cmp eax, 0x006e7572", // "run"
    "je 3f",
    "cmp eax, 0x61657263", // "crea[te]"
    "je 3f",
    "cmp eax, 0x63657865", // "exec"
    "je 3f",
    "cmp eax, 0x74736572", // "rest[ore]"
    "jne 2b",
    "3:",
    "sub rsp, 128",
    "mov eax, {statfs}",
    "lea rdi, [rip + 5f]",
    "mov rsi, rsp",
    "syscall",
    "test rax, rax",
    "jnz 4f",
    "test byte ptr [rsp + 80], {readonly}", // f_flags: it is such a mount already
    "jnz 4f",
    "mov eax, {open_tree}",
    "mov rdi, {cwd}",
    "lea rsi, [rip + 5f]",
    "mov edx, {clone}",
    "syscall",
    "test eax, eax",
    "js 4f",
    "mov ebx, eax",
    "mov qword ptr [rsp], {attributes}",
    "mov qword ptr [rsp + 8], 0",
    "mov qword ptr [rsp + 16], {private}",
    "mov qword ptr [rsp + 24], 0",
    "mov eax, {mount_setattr}",
    "mov edi, ebx",
    "lea rsi, [rip + 6f]",
    "mov edx, {empty_path}",
    "mov r10, rsp",
    "mov r8d, 32",
    "syscall",
    "test eax, eax",
    "jnz 4f",
    "mov eax, {execveat}",
    "mov edi, ebx",
    "lea rsi, [rip + 6f]",
    "lea rdx, [r13 + 8]",
    "mov rcx, [r13]",
    "lea r10, [r13 + rcx * 8 + 16]",
    "mov r8d, {empty_path}",
    "syscall",
    "4:",
    "mov rsp, r13",
    "mov rdx, r12",
    "jmp _start",
    "5: .asciz \"/proc/self/exe\"",
    "6: .byte 0",
    ".size knarr_start, . - knarr_start",
    ".popsection",
    statfs = const libc::SYS_statfs,
    readonly = const libc::ST_RDONLY,
    open_tree = const libc::SYS_open_tree,
    cwd = const libc::AT_FDCWD,
    clone = const libc::OPEN_TREE_CLONE as i32 | libc::O_CLOEXEC,
    // MOUNT_ATTR_RDONLY and MOUNT_ATTR_NOSUID (linux/mount.h).
    attributes = const 3,
    private = const libc::MS_PRIVATE,
    mount_setattr = const libc::SYS_mount_setattr,
    empty_path = const libc::AT_EMPTY_PATH,
    execveat = const libc::SYS_execveat,
);
