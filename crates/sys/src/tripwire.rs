//! An allocator for tests that ends any child of [`crate::child::fork`] that allocates: there, a
//! lock of the heap may be held by a thread that does not exist.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, Ordering};

/// Use it as the `#[global_allocator]` of a test, and [`Tripwire::arm`] it.
#[derive(Debug)]
pub struct Tripwire {
    process: AtomicI32,
}

impl Tripwire {
    /// Not armed: the system's allocator.
    pub const fn new() -> Self {
        Self {
            process: AtomicI32::new(0),
        }
    }

    /// From now on only this process may allocate; others end with code 99 and a word on standard
    /// error.
    pub fn arm(&self) {
        self.process.store(process_id(), Ordering::Relaxed);
    }

    fn check(&self) {
        let armed = self.process.load(Ordering::Relaxed);
        if armed != 0 && armed != process_id() {
            let text = b"allocation in a forked child\n";
            // SAFETY: the text is valid for its length.
            unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
            crate::process::exit_now(99);
        }
    }
}

impl Default for Tripwire {
    fn default() -> Self {
        Self::new()
    }
}

fn process_id() -> i32 {
    // SAFETY: getpid has no preconditions.
    unsafe { libc::getpid() }
}

// SAFETY: every call is handed to the system's allocator as it came; `check` does not allocate.
unsafe impl GlobalAlloc for Tripwire {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.check();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.check();
        // SAFETY: the caller's promise; the block came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.check();
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
