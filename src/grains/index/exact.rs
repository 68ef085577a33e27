//! Small spaces: all vectors in memory, every one compared.

use super::dot::{dot, dot_each};
use super::error::IndexError;
use super::ranking::{Nearest, Scored};
use super::slots::Slots;
use super::vectors::VectorFile;

/// The vectors of all slots, `[n_slots][dimensions]`.
#[derive(Debug)]
pub(super) struct ExactScan {
    dimensions: usize,
    rows: Vec<f32>,
}

impl ExactScan {
    pub(super) fn new(dimensions: usize) -> Self {
        Self { dimensions, rows: Vec::new() }
    }

    /// Takes all vectors of a file into memory.
    pub(super) fn read(vectors: &VectorFile, dimensions: usize) -> Result<Self, IndexError> {
        let mut rows = Vec::with_capacity(vectors.len() * dimensions);
        vectors.each(|run| rows.extend_from_slice(run))?;
        Ok(Self { dimensions, rows })
    }

    pub(super) fn push(&mut self, vector: &[f32]) {
        self.rows.extend_from_slice(vector);
    }

    /// The vector of the last slot moves to this one.
    pub(super) fn swap_remove(&mut self, slot: usize) {
        let last = self.rows.len() - self.dimensions;
        self.rows.copy_within(last.., slot * self.dimensions);
        self.rows.truncate(last);
    }

    /// The vectors in the order of slots.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.rows.chunks_exact(self.dimensions)
    }

    pub(super) fn row(&self, slot: usize) -> &[f32] {
        &self.rows[slot * self.dimensions..][..self.dimensions]
    }

    pub(super) fn nearest(&self, query: &[f32], n: usize, slots: &Slots) -> Vec<Scored> {
        let mut nearest = Nearest::new(n, slots.n_served());
        let (numbers, served) = (slots.numbers(), slots.served());
        dot_each(query, &self.rows, |slot, score| {
            if served[slot] {
                nearest.show(Scored { number: numbers[slot], score });
            }
        });
        nearest.into_vec()
    }

    /// The nearest among these slots, which are served.
    pub(super) fn nearest_among(&self, query: &[f32], n: usize, among: &[usize], slots: &Slots) -> Vec<Scored> {
        let mut nearest = Nearest::new(n, among.len());
        for &slot in among {
            nearest.show(Scored { number: slots.numbers()[slot], score: dot(query, self.row(slot)) });
        }
        nearest.into_vec()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<f32>()
    }
}
