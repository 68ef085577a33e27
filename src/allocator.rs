//! What the C allocator keeps of memory that was freed, and when it gives it back.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::ffi::OsStr;

/// What the C allocator may keep at the end of each of its arenas, in bytes. Less costs speed: with 128 KiB, embedding
/// on the `cpu` provider was 5 to 12 % slower.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 1 << 20;

/// From what size on a block is mapped by itself: the most that the allocator would raise it to.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: libc::c_int = 32 << 20;

/// Has the C allocator give back the end of an arena as soon as it is free, and make no more arenas than that many cores
/// need. To be called before there are other threads: once a few arenas are made, their number is not limited any more.
///
/// Left alone, it raises both limits when a large block is freed: each arena may then keep 64 MiB at its end, and
/// `malloc_trim` gives that back for the main arena only. Which threads load a model, and so which arenas, changes with
/// every load. Setting a limit stops its raising.
///
/// Small blocks that are freed join their neighbours at once, but for the few that each thread keeps. Left alone, they
/// wait in lists, until `malloc_trim` itself joins them: what lay before one then becomes the end of its arena, and is
/// kept.
///
/// Left alone, it makes up to eight arenas for each core of the machine, whatever part of it the process may use, and each
/// keeps something. Whoever sets their number outside, by `MALLOC_ARENA_MAX` or `GLIBC_TUNABLES`, is obeyed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub fn keep_little(cores: usize) {
    let [arenas, tunables] = ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"].map(std::env::var_os);
    let is_set_outside = are_arenas_set(arenas.as_deref(), tunables.as_deref());
    // SAFETY: mallopt takes no pointer and may be called at any time from any thread: it takes the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_MXFAST, 0);
        if !is_set_outside {
            libc::mallopt(libc::M_ARENA_MAX, n_arenas(cores));
        }
    }
}

/// Whether the environment says how many arenas there may be: a call would win over that.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn are_arenas_set(arenas: Option<&OsStr>, tunables: Option<&OsStr>) -> bool {
    arenas.is_some() || tunables.is_some_and(|tunables| tunables.to_string_lossy().contains("arena_max"))
}

/// Two for each core, within 8 and 32, so that threads seldom wait for one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn n_arenas(cores: usize) -> libc::c_int {
    libc::c_int::try_from(cores).unwrap_or(libc::c_int::MAX).saturating_mul(2).clamp(8, 32)
}

/// Other allocators have limits of their own.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_little(_cores: usize) {}

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

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn arenas_grow_with_the_cores_within_bounds() {
        for (cores, expected) in [(1, 8), (4, 8), (12, 24), (128, 32), (usize::MAX, 32)] {
            assert_eq!(n_arenas(cores), expected, "{cores} cores");
        }
    }

    #[test]
    fn arenas_that_the_environment_limits_are_left_to_it() {
        for (arenas, tunables, expected) in [
            (None, None, false),
            (Some("2"), None, true),
            (None, Some("glibc.malloc.tcache_count=0:glibc.malloc.arena_max=2"), true),
            (None, Some("glibc.malloc.tcache_count=0"), false),
        ] {
            let are_set = are_arenas_set(arenas.map(OsStr::new), tunables.map(OsStr::new));
            assert_eq!(are_set, expected, "{arenas:?}, {tunables:?}");
        }
    }
}
