//! Giving memory back to the system.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "malloc_trim(3) has no safe wrapper"))]

/// Has the allocator give pages back that it holds for nobody. Takes milliseconds where much was freed; does nothing
/// with an allocator that has no such call.
#[cfg(target_env = "gnu")]
pub fn give_memory_back() {
    // SAFETY: malloc_trim(3) may be called at any time, from any thread.
    let _released = unsafe { libc::malloc_trim(0) };
}

/// Has the allocator give pages back that it holds for nobody: here it has no such call.
#[cfg(not(target_env = "gnu"))]
pub const fn give_memory_back() {}
