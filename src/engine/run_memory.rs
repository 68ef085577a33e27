//! The memory that the runtime's own provider computes in: each thread that runs batches has its own, and they share what
//! long texts take.
//!
//! The runtime's arena hands a block that one thread gave back to whichever asks next. Its lines then lie in the cache of
//! the core that gave it back, and where two cores share none, as on many virtual machines, each of them is fetched from
//! there: with two workers, passages were embedded 12 % slower. Large blocks lie in no cache. A thread may have what another
//! gave back, since pages that the system has to find first cost more than what is computed in them.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::sync::{Arc, LazyLock};

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
use parking_lot::Mutex;
#[cfg(target_os = "linux")]
use procfs::Current;
use rlsf::Tlsf;

/// What the runtime's kernels want, and the size of what lies before a block.
const ALIGNMENT: usize = 64;

/// Some kernels read a little behind the end.
const OVERRUN: usize = 64;

/// The addresses that a thread's memory may have. What of them was never used takes none.
const OWN_BYTES: usize = 256 << 20;

/// A larger block is in the memory that threads share.
const MOST_OWN_BYTES: usize = 32 << 20;

/// The most addresses of what threads share: a text of 8,192 tokens takes 6.5 GB in BERT-base.
const MOST_SHARED_BYTES: usize = 64 << 30;

/// A multiple of every system's pages.
const PAGE_BYTES: usize = 64 << 10;

/// Classes of sizes that the list has between two powers of two.
const N_CLASSES: usize = 32;

/// What the list puts before a block. It never pads: maps begin at multiples of [`ALIGNMENT`], and blocks are multiples of
/// it long.
const HEADER_BYTES: usize = ALIGNMENT;

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

/// Blocks in one map.
struct Memory {
    blocks: Tlsf<'static, u32, u32, 32, N_CLASSES>,
    map: MmapRaw,
}

impl Memory {
    #[allow(unsafe_code, reason = "the list of blocks wants its memory as a pointer")]
    fn new(n_bytes: usize) -> std::io::Result<Self> {
        let map = MmapRaw::from(MmapOptions::new().len(n_bytes).no_reserve_swap().map_anon()?);
        let mut blocks = Tlsf::new();
        if let Some(start) = NonNull::new(map.as_mut_ptr()) {
            // SAFETY: the map is kept as long as its blocks, does not move, and nobody else touches it.
            unsafe { blocks.insert_free_block_ptr(NonNull::slice_from_raw_parts(start, n_bytes)) };
        }
        Ok(Self { blocks, map })
    }

    fn allocate(&mut self, n_bytes: usize) -> Option<NonNull<u8>> {
        self.blocks.allocate(Layout::from_size_align(without_rest(n_bytes)?, ALIGNMENT).ok()?)
    }

    /// # Safety
    /// The block is from this memory, and is not used any more.
    #[allow(unsafe_code, reason = "memory for foreign code")]
    unsafe fn deallocate(&mut self, start: NonNull<u8>) {
        // SAFETY: every block was made with this alignment.
        unsafe { self.blocks.deallocate(start, ALIGNMENT) };
    }
}

/// Memory that is given back where no block lies.
struct Shared {
    memory: Memory,
    /// From where to where blocks lie, counted from the start of the map.
    lying: BTreeMap<usize, usize>,
    /// As far as any lay since that was last looked at.
    reached: usize,
    /// As far as any lay since the rest was given back: so much of the map is in memory.
    taken: usize,
}

impl Shared {
    fn new(memory: Memory) -> Self {
        Self { memory, lying: BTreeMap::new(), reached: 0, taken: 0 }
    }

    fn allocate(&mut self, n_bytes: usize) -> Option<NonNull<u8>> {
        let block = self.memory.allocate(n_bytes)?;
        let start = self.place(block);
        let end = start + without_rest(n_bytes)?;
        self.lying.insert(start, end);
        self.reached = self.reached.max(end);
        self.taken = self.taken.max(end);
        Some(block)
    }

    /// # Safety
    /// The block is from this memory, and is not used any more.
    #[allow(unsafe_code, reason = "memory for foreign code")]
    unsafe fn deallocate(&mut self, block: NonNull<u8>) {
        self.lying.remove(&self.place(block));
        // SAFETY: by this function's own condition.
        unsafe { self.memory.deallocate(block) };
    }

    fn place(&self, block: NonNull<u8>) -> usize {
        block.addr().get() - self.memory.map.as_ptr().addr()
    }

    /// As far as blocks lie.
    fn lies_to(&self) -> usize {
        self.lying.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// Gives back what lies further than any block since this was last called.
    fn give_back_unused(&mut self) {
        self.give_back_from(self.reached);
    }

    /// Gives back what lies behind the last block.
    fn give_back(&mut self) {
        self.give_back_from(self.lies_to());
    }

    #[allow(unsafe_code, reason = "what is given back must not be used")]
    fn give_back_from(&mut self, end: usize) {
        self.reached = self.lies_to();
        let page = (end + HEADER_BYTES).next_multiple_of(PAGE_BYTES);
        // The list ends the map with a mark.
        let last = self.taken.min(self.memory.map.len() - PAGE_BYTES);
        if page >= last {
            return;
        }
        // SAFETY: no block lies there. Behind the last one all is one free block, of which the list keeps and reads nothing
        // but its header, which lies at its start.
        unsafe {
            let gone = self.memory.map.unchecked_advise_range(UncheckedAdvice::DontNeed, page, last - page);
            if let Err(error) = gone {
                tracing::warn!(%error, "memory that long texts took cannot be given back");
                return;
            }
        }
        self.taken = end;
    }
}

/// As many as the machine has: a block that is larger is the process's, which is refused it at once, where a map that
/// promises more ends the process when it is used.
fn shared_bytes() -> usize {
    #[cfg(target_os = "linux")]
    if let Ok(memory) = procfs::Meminfo::current() {
        let n_bytes = memory.mem_total.saturating_add(memory.swap_total);
        return usize::try_from(n_bytes).unwrap_or(MOST_SHARED_BYTES).min(MOST_SHARED_BYTES);
    }
    MOST_SHARED_BYTES
}

/// The size to ask for: at most a 32nd or a line more, so that the block fills its class of the list. A block that is a
/// little larger than its class is not found when as many bytes are asked for again.
fn without_rest(n_bytes: usize) -> Option<usize> {
    let with_header = n_bytes.checked_add(HEADER_BYTES)?;
    let class = (1_usize << with_header.ilog2()) / N_CLASSES;
    Some(with_header.checked_next_multiple_of(class.max(ALIGNMENT))? - HEADER_BYTES)
}

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

    #[test]
    fn a_block_as_large_as_one_that_was_given_back_takes_its_place() {
        let mut memory = Memory::new(64 << 20).expect("as much can be mapped");
        for n_bytes in [1, 64, 1000, 4096, 100_001, 3_145_728, 4_000_000] {
            let first = memory.allocate(n_bytes).expect("room");
            let second = memory.allocate(n_bytes).expect("room");
            let fence = memory.allocate(1).expect("room");
            for block in [first, second] {
                // SAFETY: it is from there, and given back once before it is made again.
                unsafe { memory.deallocate(block) };
                assert_eq!(memory.allocate(n_bytes), Some(block), "{n_bytes} bytes");
            }
            for block in [first, second, fence] {
                // SAFETY: it is from there, and given back once.
                unsafe { memory.deallocate(block) };
            }
        }
    }

    #[test]
    fn what_was_used_is_given_back_behind_the_last_block() {
        const N_BYTES: usize = 1 << 20;
        let mut shared = Shared::new(Memory::new(4 * N_BYTES).expect("as much can be mapped"));
        let [first, second] = [(); 2].map(|()| shared.allocate(N_BYTES).expect("room"));
        let whole = shared.taken;
        assert!(whole > 2 * N_BYTES);
        let [last_of_first, last_of_second] = [first, second].map(|block| block.as_ptr().wrapping_add(N_BYTES - 1));
        // SAFETY: both are mapped, and nobody writes there at the same time.
        let last_bytes = || unsafe { (last_of_first.read(), last_of_second.read()) };
        // SAFETY: each is the block's own last byte.
        unsafe {
            last_of_first.write(7);
            last_of_second.write(8);
        }
        shared.give_back();
        assert_eq!((shared.taken, last_bytes()), (whole, (7, 8)), "blocks lie there");
        // SAFETY: it is from there, and given back once.
        unsafe { shared.deallocate(second) };
        shared.give_back_unused();
        assert_eq!((shared.taken, last_bytes()), (whole, (7, 8)), "one lay there since it was last looked at");
        shared.give_back_unused();
        assert_eq!(last_bytes(), (7, 0));
        assert_eq!(shared.taken, shared.lies_to());
        let second = shared.allocate(N_BYTES).expect("room");
        // SAFETY: both are from there, and given back once.
        unsafe {
            shared.deallocate(second);
            shared.deallocate(first);
        }
        shared.give_back();
        assert_eq!((shared.taken, last_bytes()), (0, (0, 0)));
        assert!(shared.allocate(3 * N_BYTES).is_some(), "all of it is there again");
    }
}
