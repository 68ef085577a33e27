//! The memory that the runtime's own provider computes in: each thread that runs batches has its own.
//!
//! The runtime's arena hands a block that one thread gave back to whichever asks next. Its lines then lie in the cache of
//! the core that gave it back, and where two cores share none, as on many virtual machines, each of them is fetched from
//! there: with two workers, passages were embedded 12 % slower.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::OnceCell;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};
use parking_lot::Mutex;
use rlsf::Tlsf;

/// What the runtime's kernels want, and the size of what lies before a block.
const ALIGNMENT: usize = 64;

/// Some kernels read a little behind the end.
const OVERRUN: usize = 64;

/// The addresses that a thread's memory may have. What of them was never used takes none.
const MAPPED_BYTES: usize = 256 << 20;

/// A larger block is the process's, and given back at once: it comes with texts so long that this does not count.
const MOST_BYTES: usize = 32 << 20;

thread_local! {
    static OWN: OnceCell<Arc<Mutex<Memory>>> = const { OnceCell::new() };
}

/// One thread's memory. It takes what the largest run took, until the thread and its last block are gone.
struct Memory {
    blocks: Tlsf<'static, u32, u32, 24, 32>,
    /// Where they lie.
    _map: MmapMut,
}

impl Memory {
    #[allow(unsafe_code, reason = "the allocator of blocks wants its memory as a pointer")]
    fn new() -> std::io::Result<Self> {
        let mut map = MmapOptions::new().len(MAPPED_BYTES).no_reserve_swap().map_anon()?;
        let mut blocks = Tlsf::new();
        // SAFETY: the map is kept as long as `blocks`, does not move, and nobody else touches it.
        unsafe { blocks.insert_free_block_ptr(NonNull::from(&mut map[..])) };
        Ok(Self { blocks, _map: map })
    }
}

/// What lies before each block.
struct Header {
    layout: Layout,
    /// Whose memory it is from; null for the process's. It counts as one [`Arc`].
    owner: *const Mutex<Memory>,
}

/// Gives this thread memory of its own for what it will run. Where none can be mapped it goes on with the process's.
pub fn keep_own() {
    match Memory::new() {
        Ok(memory) => OWN.with(|own| drop(own.set(Arc::new(Mutex::new(memory))))),
        Err(error) => tracing::warn!(%error, "no memory was mapped for an inference thread: it shares the process's"),
    }
}

/// A block of that many bytes, aligned to a cache line; null for none, and where no memory is left.
#[allow(unsafe_code, reason = "memory for foreign code")]
pub(super) fn allocate(n_bytes: usize) -> *mut u8 {
    if n_bytes == 0 {
        return ptr::null_mut();
    }
    let whole = n_bytes.saturating_add(ALIGNMENT + OVERRUN);
    let Ok(layout) = Layout::from_size_align(whole, ALIGNMENT) else { return ptr::null_mut() };
    let of_process = || {
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc(layout) }).map(|start| (start, ptr::null()))
    };
    let Some((start, owner)) = allocate_own(layout).or_else(of_process) else { return ptr::null_mut() };
    // SAFETY: the block has room for the header before what is handed out, and is aligned for it.
    unsafe {
        start.cast::<Header>().write(Header { layout, owner });
        start.add(ALIGNMENT).as_ptr()
    }
}

fn allocate_own(layout: Layout) -> Option<(NonNull<u8>, *const Mutex<Memory>)> {
    // A thread that is ending has none any more.
    let own = OWN.try_with(|own| own.get().filter(|_| layout.size() <= MOST_BYTES).cloned()).ok()??;
    let start = own.lock().blocks.allocate(layout)?;
    Some((start, Arc::into_raw(own)))
}

/// Takes a block back, on whichever thread.
///
/// # Safety
/// The block is from [`allocate`], and is not used any more; or it is null.
#[allow(unsafe_code, reason = "memory for foreign code")]
pub(super) unsafe fn free(block: *mut u8) {
    let Some(block) = NonNull::new(block) else { return };
    // SAFETY: `allocate` put the header there, and the block is its own start again.
    let (start, Header { layout, owner }) = unsafe {
        let start = block.sub(ALIGNMENT);
        (start, start.cast::<Header>().read())
    };
    if owner.is_null() {
        // SAFETY: it was allocated so.
        unsafe { dealloc(start.as_ptr(), layout) };
    } else {
        // SAFETY: the header held one count of it.
        let owner = unsafe { Arc::from_raw(owner) };
        // SAFETY: the block is from this memory.
        unsafe { owner.lock().blocks.deallocate(start, ALIGNMENT) };
    }
}

const _: () = assert!(size_of::<Header>() <= ALIGNMENT, "the header lies in the first line of a block");

#[cfg(test)]
#[allow(unsafe_code, reason = "what is tested takes and gives pointers")]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Writes the whole block, and reads it again before it is given back.
    struct Block(*mut u8, usize, u8);

    // SAFETY: nobody else has the pointer.
    unsafe impl Send for Block {}

    impl Block {
        fn new(n_bytes: usize, mark: u8) -> Self {
            let start = allocate(n_bytes);
            assert_eq!(start.align_offset(ALIGNMENT), 0);
            // SAFETY: the block is that large.
            unsafe { start.write_bytes(mark, n_bytes) };
            Self(start, n_bytes, mark)
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            // SAFETY: the block is that large, written, and given back once.
            unsafe {
                assert!(std::slice::from_raw_parts(self.0, self.1).iter().all(|byte| *byte == self.2), "written over");
                free(self.0);
            }
        }
    }

    fn is_own(block: &Block) -> bool {
        // SAFETY: a header lies before each block.
        let header = unsafe { NonNull::new(block.0).expect("a block").sub(ALIGNMENT).cast::<Header>().read() };
        let own = OWN.with(|own| own.get().map_or(ptr::null(), Arc::as_ptr));
        !header.owner.is_null() && header.owner == own
    }

    #[test]
    fn blocks_do_not_overlap_and_their_memory_is_used_again() {
        thread::spawn(|| {
            keep_own();
            for _ in 0..50 {
                let mut live = Vec::new();
                for i in 0..200_usize {
                    live.push(Block::new(1 + i * i * 17 % 400_000, u8::try_from(i).expect("below 256")));
                    if i % 3 == 0 {
                        live.swap_remove(i * 7 % live.len());
                    }
                }
                assert!(live.iter().all(is_own), "what was given back is not found again");
            }
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn a_block_outlives_its_thread_and_may_be_given_back_on_another() {
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            keep_own();
            for i in 0..100 {
                send.send(Block::new(100_000, i)).expect("somebody listens");
            }
        })
        .join()
        .expect("no panic");
        assert_eq!(receive.iter().count(), 100);
    }

    #[test]
    fn what_is_too_large_or_finds_no_room_or_has_no_own_memory_is_the_processes() {
        thread::spawn(|| {
            assert!(!is_own(&Block::new(1000, 1)));
            keep_own();
            assert!(is_own(&Block::new(1000, 2)));
            assert!(!is_own(&Block::new(MOST_BYTES, 3)));
            let full: Vec<Block> = (0..10).map(|i| Block::new(MOST_BYTES - ALIGNMENT - OVERRUN, i)).collect();
            assert!(is_own(&full[0]) && !is_own(&full[9]));
        })
        .join()
        .expect("no panic");
        assert!(allocate(0).is_null());
        assert!(allocate(usize::MAX).is_null() && allocate(1 << 60).is_null(), "nobody has as much");
        // SAFETY: nothing is given back.
        unsafe { free(ptr::null_mut()) };
    }
}
