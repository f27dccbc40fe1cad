//! How much freed memory the C library keeps.

/// What is as long is mapped for itself and given back as soon as it is freed.
#[cfg(target_env = "gnu")]
const MAPPED: nix::libc::c_int = 4 << 20;

/// Ends the C library's own judgement, which grows with what is freed: after one buffer of 32 MiB it would take such
/// buffers from its heaps, and keep up to 64 MiB of each heap that nobody uses.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    for what in [nix::libc::M_MMAP_THRESHOLD, nix::libc::M_TRIM_THRESHOLD] {
        // SAFETY: it takes two integers, and sets a parameter of the allocator under the allocator's own lock. One that it
        // refuses stays as it was.
        unsafe { nix::libc::mallopt(what, MAPPED) };
    }
}
