//! Which grain is in which slot, and whether it is served.

use super::pages::Pages;

/// Whether searches return a grain from this space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serving {
    /// This space serves the grain.
    Served,
    /// The vector is kept, but a space of higher priority serves the grain.
    Withheld,
}

/// The grains of an index. Slots are `0..len`: what is taken out is replaced by the last.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slot_of: Pages,
    numbers: Vec<i64>,
    /// One `bool` a slot is what the quantised scan takes as its mask.
    served: Vec<bool>,
    n_served: usize,
}

impl Slots {
    pub(super) fn with_rows(rows: impl Iterator<Item = (i64, Serving)>) -> Self {
        let mut slots = Self::default();
        for (number, serving) in rows {
            slots.push(number, serving);
        }
        slots
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn n_served(&self) -> usize {
        self.n_served
    }

    pub(super) fn numbers(&self) -> &[i64] {
        &self.numbers
    }

    pub(super) fn served(&self) -> &[bool] {
        &self.served
    }

    pub(super) fn slot_of(&self, number: i64) -> Option<usize> {
        self.slot_of.get(number)
    }

    /// The slots of those of `numbers` that are served, ascending, each once.
    pub(super) fn served_among(&self, numbers: &[i64]) -> Vec<usize> {
        let mut slots = self.slot_of.get_each(numbers);
        slots.retain(|&slot| self.served[slot]);
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// The grain takes the next slot. It must not have one.
    pub(super) fn push(&mut self, number: i64, serving: Serving) {
        let slot = u32::try_from(self.len()).unwrap_or(u32::MAX);
        self.slot_of.insert(number, slot);
        self.numbers.push(number);
        self.served.push(serving == Serving::Served);
        self.n_served += usize::from(serving == Serving::Served);
    }

    /// The grain of the last slot moves to this one.
    pub(super) fn swap_remove(&mut self, slot: usize) {
        let number = self.numbers.swap_remove(slot);
        self.n_served -= usize::from(self.served.swap_remove(slot));
        self.slot_of.remove(number);
        if let Some(&moved) = self.numbers.get(slot) {
            self.slot_of.insert(moved, u32::try_from(slot).unwrap_or(u32::MAX));
        }
    }

    pub(super) fn set_serving(&mut self, slot: usize, serving: Serving) {
        let served = serving == Serving::Served;
        let before = std::mem::replace(&mut self.served[slot], served);
        self.n_served = self.n_served + usize::from(served) - usize::from(before);
    }

    /// Whether a grain has a slot here and in the other, and in none of these.
    pub(super) fn shares_one(&self, other: &Self, unless_in: &[&Self]) -> bool {
        let has_each = other.slot_of.has_each(&self.numbers);
        let is_in_none = |number: i64| unless_in.iter().all(|slots| slots.slot_of(number).is_none());
        self.numbers.iter().zip(has_each).any(|(number, is_there)| is_there && is_in_none(*number))
    }

    /// Serves the grain of every slot that has none among `others`.
    pub(super) fn serve_unless_in(&mut self, others: &[&Self]) {
        self.served.fill(true);
        for other in others {
            for (served, is_there) in self.served.iter_mut().zip(other.slot_of.has_each(&self.numbers)) {
                *served &= !is_there;
            }
        }
        self.n_served = self.served.iter().filter(|served| **served).count();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slot_of.memory_bytes() + self.numbers.capacity() * size_of::<i64>() + self.served.capacity()
    }
}
