//! The memory that the runtime's own provider computes in: each thread that runs batches has its own, and they share what
//! long texts take.
//!
//! The runtime's arena hands a block that one thread gave back to whichever asks next. Its lines then lie in the cache of
//! the core that gave it back, and where two cores share none, as on many virtual machines, each of them is fetched from
//! there: with two workers, passages were embedded 12 % slower. Large blocks lie in no cache. A thread may have what another
//! gave back, since pages that the system has to find first cost more than what is computed in them.

mod blocks;

use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;
use std::ptr::{self, NonNull};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use self::blocks::{ALIGNMENT, Memory, Shared, shared_bytes};

/// Some kernels read a little behind the end.
const OVERRUN: usize = 64;

/// The addresses that a thread's memory may have. What of them was never used takes none.
const OWN_BYTES: usize = 256 << 20;

/// A larger block is in the memory that threads share.
const MOST_OWN_BYTES: usize = 32 << 20;

thread_local! {
    static OWN: RefCell<Option<Arc<Mutex<Memory>>>> = const { RefCell::new(None) };
}

/// Where it cannot be mapped, what is too large for a thread's own memory is the process's.
static SHARED: LazyLock<Option<Mutex<Shared>>> = LazyLock::new(|| match Memory::new(shared_bytes()) {
    Ok(memory) => Some(Mutex::new(Shared::new(memory))),
    Err(error) => {
        tracing::warn!(%error, "no memory was mapped for long texts: what they take is asked of the system each time");
        None
    }
});

/// Whose memory a block is from.
enum Owner {
    Process,
    Shared,
    /// It counts as one [`Arc`].
    Own(*const Mutex<Memory>),
}

/// What lies before each block.
struct Header {
    layout: Layout,
    owner: Owner,
}

/// Gives this thread memory of its own for what it will run, in place of any that it has: what that took goes with its last
/// block. Where none can be mapped it goes on with the process's.
pub fn keep_own() {
    match Memory::new(OWN_BYTES) {
        Ok(memory) => OWN.set(Some(Arc::new(Mutex::new(memory)))),
        Err(error) => tracing::warn!(%error, "no memory was mapped for an inference thread: it shares the process's"),
    }
}

/// How many bytes long texts take, or took and are kept for the next ones.
#[must_use]
pub fn kept_bytes() -> u64 {
    shared().map_or(0, |shared| shared.lock().taken as u64)
}

/// Gives back what no text took since this was last called. Some GB take their time.
pub fn give_back_unused() {
    if let Some(shared) = shared() {
        shared.lock().give_back_unused();
    }
}

/// Gives back at once what no text takes that is being computed. Some GB take their time.
pub fn give_back() {
    if let Some(shared) = shared() {
        shared.lock().give_back();
    }
}

/// What threads share, if there was a long text.
fn shared() -> Option<&'static Mutex<Shared>> {
    LazyLock::get(&SHARED)?.as_ref()
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
        NonNull::new(unsafe { alloc(layout) }).map(|start| (start, Owner::Process))
    };
    let Some((start, owner)) = allocate_mapped(whole).or_else(of_process) else { return ptr::null_mut() };
    // SAFETY: the block has room for the header before what is handed out, and is aligned for it.
    unsafe {
        start.cast::<Header>().write(Header { layout, owner });
        start.add(ALIGNMENT).as_ptr()
    }
}

/// In this thread's own memory or in what threads share; none for threads without own memory.
fn allocate_mapped(n_bytes: usize) -> Option<(NonNull<u8>, Owner)> {
    // A thread that is ending has none any more.
    let own = OWN.try_with(|own| own.borrow().clone()).ok()??;
    let start = if n_bytes <= MOST_OWN_BYTES { own.lock().allocate(n_bytes) } else { None };
    if let Some(start) = start {
        return Some((start, Owner::Own(Arc::into_raw(own))));
    }
    Some((SHARED.as_ref()?.lock().allocate(n_bytes)?, Owner::Shared))
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
    match owner {
        // SAFETY: it was allocated so.
        Owner::Process => unsafe { dealloc(start.as_ptr(), layout) },
        Owner::Shared => {
            if let Some(shared) = shared() {
                // SAFETY: the block is from there.
                unsafe { shared.lock().deallocate(start) };
            }
        }
        Owner::Own(own) => {
            // SAFETY: the header held one count of it.
            let own = unsafe { Arc::from_raw(own) };
            // SAFETY: the block is from this memory.
            unsafe { own.lock().deallocate(start) };
        }
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

    fn owner(block: &Block) -> Owner {
        // SAFETY: a header lies before each block.
        unsafe { NonNull::new(block.0).expect("a block").sub(ALIGNMENT).cast::<Header>().read() }.owner
    }

    fn is_own(block: &Block) -> bool {
        let own = OWN.with_borrow(|own| own.as_ref().map_or(ptr::null(), Arc::as_ptr));
        matches!(owner(block), Owner::Own(owner) if owner == own)
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
    fn blocks_of_own_memory_that_was_replaced_stay() {
        thread::spawn(|| {
            keep_own();
            let old = Block::new(100_000, 1);
            keep_own();
            let new = Block::new(100_000, 2);
            assert!(!is_own(&old) && matches!(owner(&old), Owner::Own(_)) && is_own(&new));
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn a_thread_without_own_memory_has_the_processes_and_large_blocks_are_shared() {
        thread::spawn(|| {
            assert!(matches!(owner(&Block::new(1000, 1)), Owner::Process));
            assert!(matches!(owner(&Block::new(MOST_OWN_BYTES, 2)), Owner::Process));
            let memory = Memory::new(1 << 20).expect("as much can be mapped");
            OWN.set(Some(Arc::new(Mutex::new(memory))));
            assert!(is_own(&Block::new(1000, 3)));
            let large = Block::new(MOST_OWN_BYTES, 4);
            assert!(matches!(owner(&large), Owner::Shared));
            assert!(kept_bytes() >= MOST_OWN_BYTES as u64);
            give_back(); // `large` is read when it is dropped
            let full: Vec<Block> = (0..10).map(|i| Block::new(200_000, i)).collect();
            assert!(is_own(&full[0]) && matches!(owner(&full[9]), Owner::Shared), "its own is full");
            assert!(allocate(usize::MAX).is_null() && allocate(1 << 60).is_null(), "nobody has as much");
        })
        .join()
        .expect("no panic");
        assert!(allocate(0).is_null());
        // SAFETY: nothing is given back.
        unsafe { free(ptr::null_mut()) };
    }
}
