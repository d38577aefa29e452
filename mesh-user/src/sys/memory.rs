//! Memory that was freed and that the allocator keeps.

/// Gives what is free back to the kernel: reading a large mesh's files takes several times what is kept of them. Takes
/// the time of a walk over the heap; does nothing where the C library is not glibc. Source: `malloc_trim(3)`.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer of ours is involved, and glibc locks each of its arenas itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
