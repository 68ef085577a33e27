//! From the number of a grain to its slot.

use std::collections::HashMap;

const PAGE_BITS: u32 = 9;
const PAGE_LEN: usize = 1 << PAGE_BITS;

/// The part of a number that says where it is on its page.
const PAGE_MASK: i64 = (1 << PAGE_BITS) - 1;

/// No grain has this slot: an index ends far before it.
const VACANT: u32 = u32::MAX;

/// A map from grain numbers to slots.
///
/// The database counts its numbers up from 1 and never gives one twice, so that they lie close together: pages of 512
/// cost about 4 bytes a grain, where a hash map costs 35, and a filter's list, which is sorted, is looked up in the
/// order of memory. Numbers that lie far apart cost a page each (2 KiB) until their page is empty.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pages: HashMap<i64, Page>,
}

#[derive(Debug)]
struct Page {
    slots: Box<[u32; PAGE_LEN]>,
    n_taken: usize,
}

impl Pages {
    pub(super) fn get(&self, number: i64) -> Option<usize> {
        let (page, at) = place(number);
        slot(self.pages.get(&page)?.slots[at])
    }

    /// The slots of `numbers`; a number without one is left out.
    pub(super) fn get_each(&self, numbers: &[i64]) -> Vec<usize> {
        let mut slots = Vec::with_capacity(numbers.len());
        slots.extend(self.look_up(numbers).flatten());
        slots
    }

    /// Whether each of `numbers` has a slot.
    pub(super) fn has_each<'a>(&'a self, numbers: &'a [i64]) -> impl Iterator<Item = bool> + 'a {
        self.look_up(numbers).map(|slot| slot.is_some())
    }

    /// The slot of each of `numbers`. Neighbours are on one page, which is looked for once.
    fn look_up<'a>(&'a self, numbers: &'a [i64]) -> impl Iterator<Item = Option<usize>> + 'a {
        let mut current: Option<(i64, Option<&Page>)> = None;
        numbers.iter().map(move |&number| {
            let (page, at) = place(number);
            let found = match current {
                Some((last, found)) if last == page => found,
                _ => self.pages.get(&page),
            };
            current = Some((page, found));
            found.and_then(|page| slot(page.slots[at]))
        })
    }

    pub(super) fn insert(&mut self, number: i64, new: u32) {
        let (page, at) = place(number);
        let page = self.pages.entry(page).or_insert_with(|| Page { slots: Box::new([VACANT; PAGE_LEN]), n_taken: 0 });
        page.n_taken += usize::from(page.slots[at] == VACANT);
        page.slots[at] = new;
    }

    pub(super) fn remove(&mut self, number: i64) {
        let (key, at) = place(number);
        if let Some(page) = self.pages.get_mut(&key) {
            page.n_taken -= usize::from(page.slots[at] != VACANT);
            page.slots[at] = VACANT;
            if page.n_taken == 0 {
                self.pages.remove(&key);
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.pages.len() * size_of::<[u32; PAGE_LEN]>() + self.pages.capacity() * size_of::<(i64, Page)>()
    }
}

/// Which page a number is on, and where.
fn place(number: i64) -> (i64, usize) {
    (number >> PAGE_BITS, usize::try_from(number & PAGE_MASK).unwrap_or_default())
}

fn slot(entry: u32) -> Option<usize> {
    (entry != VACANT).then_some(entry as usize)
}
