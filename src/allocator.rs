//! What the C allocator keeps of memory that was freed, and when it gives it back.

/// What the C allocator may keep at the end of each of its arenas, in bytes. Less costs speed: with 128 KiB, embedding
/// on the `cpu` provider was 5 to 12 % slower.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 1 << 20;

/// From what size on a block is mapped by itself: the most that the allocator would raise it to.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: libc::c_int = 32 << 20;

/// Has the C allocator give back the end of an arena as soon as it is free.
///
/// Left alone, it raises both limits when a large block is freed: each arena may then keep 64 MiB at its end, and
/// `malloc_trim` gives that back for the main arena only. Which threads load a model, and so which arenas, changes with
/// every load. Setting a limit stops its raising.
///
/// Small blocks that are freed join their neighbours at once, but for the few that each thread keeps. Left alone, they
/// wait in lists, until `malloc_trim` itself joins them: what lay before one then becomes the end of its arena, and is
/// kept.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub fn keep_little() {
    // SAFETY: mallopt takes no pointer and may be called at any time from any thread: it takes the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

/// Other allocators have limits of their own.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_little() {}

/// Gives freed memory back to the system: the C allocator keeps the pages of a model, or of a thousand connections, for
/// reuse otherwise.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub fn give_back() {
    // SAFETY: malloc_trim takes no pointer, may be called at any time from any thread, and only returns free pages.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give memory back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
