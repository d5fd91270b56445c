//! Giving memory back: for processes that stay long and do little.

/// Makes glibc's allocator serve blocks of 64 KiB and more by mmap(2), for good, so that freeing
/// them returns them to the kernel, and keep no arena but the first.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt sets numbers of the allocator.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, 16 * 1024) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_TOP_PAD, 4 * 1024) };
    }
}

/// Returns every free page of the heap to the kernel (malloc_trim(3)).
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches free memory only.
    unsafe {
        libc::malloc_trim(0)
    };
}
