//! Blocks in memory that is mapped once: a list of free ones, and how much of the map is in memory.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
#[cfg(target_os = "linux")]
use procfs::Current;
use rlsf::Tlsf;

/// What the runtime's kernels want, and the size of what lies before a block.
pub(super) const ALIGNMENT: usize = 64;

/// The most addresses of what threads share: a text of 8,192 tokens takes 6.5 GB in BERT-base.
const MOST_SHARED_BYTES: usize = 64 << 30;

/// A multiple of every system's pages.
const PAGE_BYTES: usize = 64 << 10;

/// Classes of sizes that the list has between two powers of two.
const N_CLASSES: usize = 32;

/// What the list puts before a block. It never pads: maps begin at multiples of [`ALIGNMENT`], and blocks are multiples of
/// it long.
const HEADER_BYTES: usize = ALIGNMENT;

/// Blocks in one map.
pub(super) struct Memory {
    blocks: Tlsf<'static, u32, u32, 32, N_CLASSES>,
    map: MmapRaw,
}

impl Memory {
    #[allow(unsafe_code, reason = "the list of blocks wants its memory as a pointer")]
    pub(super) fn new(n_bytes: usize) -> std::io::Result<Self> {
        let map = MmapRaw::from(MmapOptions::new().len(n_bytes).no_reserve_swap().map_anon()?);
        let mut blocks = Tlsf::new();
        if let Some(start) = NonNull::new(map.as_mut_ptr()) {
            // SAFETY: the map is kept as long as its blocks, does not move, and nobody else touches it.
            unsafe { blocks.insert_free_block_ptr(NonNull::slice_from_raw_parts(start, n_bytes)) };
        }
        Ok(Self { blocks, map })
    }

    pub(super) fn allocate(&mut self, n_bytes: usize) -> Option<NonNull<u8>> {
        self.blocks.allocate(Layout::from_size_align(without_rest(n_bytes)?, ALIGNMENT).ok()?)
    }

    /// # Safety
    /// The block is from this memory, and is not used any more.
    #[allow(unsafe_code, reason = "memory for foreign code")]
    pub(super) unsafe fn deallocate(&mut self, start: NonNull<u8>) {
        // SAFETY: every block was made with this alignment.
        unsafe { self.blocks.deallocate(start, ALIGNMENT) };
    }
}

/// Memory that is given back where no block lies.
pub(super) struct Shared {
    memory: Memory,
    /// From where to where blocks lie, counted from the start of the map.
    lying: BTreeMap<usize, usize>,
    /// As far as any lay since that was last looked at.
    reached: usize,
    /// As far as any lay since the rest was given back: so much of the map is in memory.
    pub(super) taken: usize,
}

impl Shared {
    pub(super) fn new(memory: Memory) -> Self {
        Self { memory, lying: BTreeMap::new(), reached: 0, taken: 0 }
    }

    pub(super) fn allocate(&mut self, n_bytes: usize) -> Option<NonNull<u8>> {
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
    pub(super) unsafe fn deallocate(&mut self, block: NonNull<u8>) {
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
    pub(super) fn give_back_unused(&mut self) {
        self.give_back_from(self.reached);
    }

    /// Gives back what lies behind the last block.
    pub(super) fn give_back(&mut self) {
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
pub(super) fn shared_bytes() -> usize {
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

#[cfg(test)]
#[allow(unsafe_code, reason = "what is tested takes and gives pointers")]
mod tests {
    use super::*;

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
