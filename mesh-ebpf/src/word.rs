//! Words of maps that several programs change at once. The target's own atomics have no addition.

/// Adds to a word in one instruction.
///
/// # Safety
/// `word` is an aligned value of a map, and is changed by this function only.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, change: u64) {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) change, options(nostack));
    }
}
