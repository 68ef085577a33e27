//! Large spaces: four bits a dimension in memory, the vectors in a file.
//!
//! A scan of the codes finds candidates, and the vectors of those, read from the file, decide. The codes come from
//! `turbovec`, which this file alone names. What it leaves to its caller: lengths that are a multiple of 8 (vectors
//! are padded with zeros, which change no product), finite values below 10^16, and slots that exist. Its calibration
//! is left out: it would be fitted to the vectors of the first day, costs a pass over all codes at the first search
//! after each change, and comparing vectors finds what it would find.
//!
//! One search is spread over rayon's global pool, to which `main` gives a few threads. Several at once take the CPU time
//! of one each (6.8 ms at a million vectors), whether they share the pool, take turns, or have a pool of one thread each:
//! they share it.

use std::io::{Read, Write};

use turbovec::TurboQuantIndex;

use super::dot::dot;
use super::error::IndexError;
use super::ranking::{self, Scored};
use super::slots::Slots;
use super::vectors::VectorFile;

/// Bits that a dimension is kept in.
const CODE_BITS: usize = 4;

/// What the length of a vector must be a multiple of.
const CODE_DIMENSIONS: usize = 8;

/// Vectors whose codes are made at once, from a copy of them.
const ENCODED_AT_ONCE: usize = 4096;

/// Candidates whose vectors are compared, at least.
///
/// Measured by `benches/index` (Zen 4, 384 dimensions, 200 queries, the nearest 10), recall by candidates:
///
/// | vectors | 10 | 20 | 30 | 50 | 100 | 200 |
/// |---|---|---|---|---|---|---|
/// | 100,000 in 10,000 clusters | 0.937 | 0.973 | 0.979 | 0.9945 | 0.996 | 0.9985 |
/// | 1,000,000 in 10,000 clusters | 0.851 | 0.9955 | 1 | 1 | 1 | 1 |
/// | 40,000 of all-MiniLM-L6-v2, of package descriptions | 0.954 | 1 | 1 | 1 | 1 | 1 |
///
/// Of 100,000 vectors without clusters, whose mean cosine is 0.8, 100 candidates have 0.982 of the nearest 10, with 0.9
/// 0.844, with 0.95 0.519 (Zen 3); in clusters of 50 all of them. Comparing up to 4,000 wherever codes leave it open finds
/// 0.999, 0.998 and 0.990, in 20 to 40 times the time.
///
/// More than the codes themselves need, because the scan looks at one bit a dimension first and keeps 20 for each
/// candidate that is asked for: where clusters are small, the nearest are no nearer by that bit than many others. 100
/// reads cost 0.1 ms.
const MIN_CANDIDATES: usize = 100;

/// Candidates whose vectors are compared, for each hit that is wanted: at 30 hits it takes over from the least number.
/// With three a hit the scan's own first look keeps 48 or more.
const CANDIDATES_PER_HIT: usize = 3;

/// Listed grains up to which each one's vector is read and compared, instead of scanning the codes of all.
///
/// Measured by `benches/index` at a million vectors of 384 dimensions, files in the page cache: reading 1,000 takes
/// 0.8 ms, 2,000 1.6 ms, 4,000 3.4 ms and 8,000 8 ms; scanning the codes of 10,000 listed ones takes 5 ms.
const MAX_READ: usize = 4_000;

/// The codes and vectors of all slots.
#[derive(Debug)]
pub(super) struct QuantisedScan {
    codes: TurboQuantIndex,
    /// The most slots that there were: what the codes of removed ones took is not given back.
    most_slots: usize,
    vectors: VectorFile,
    dimensions: usize,
}

impl QuantisedScan {
    /// Codes for `rows`, which are the rows of the file.
    pub(super) fn new<'a>(
        rows: impl Iterator<Item = &'a [f32]>,
        vectors: VectorFile,
        dimensions: usize,
    ) -> Result<Self, IndexError> {
        let codes = TurboQuantIndex::new(padded(dimensions), CODE_BITS).map_err(refused("begin"))?;
        let mut scan = Self { codes, most_slots: 0, vectors, dimensions };
        let rows: Vec<&[f32]> = rows.collect();
        rows.chunks(ENCODED_AT_ONCE).try_for_each(|rows| scan.encode(rows.iter().copied()))?;
        Ok(scan)
    }

    /// Reads what [`write_codes`](Self::write_codes) wrote; `None` when it does not go with the vectors.
    pub(super) fn read(
        codes: &mut impl Read,
        vectors: VectorFile,
        dimensions: usize,
    ) -> Result<Option<Self>, std::io::Error> {
        let codes = TurboQuantIndex::load_from_reader(codes)?;
        let fits = codes.len() == vectors.len()
            && codes.bit_width() == CODE_BITS
            && codes.dim_opt().is_none_or(|found| found == padded(dimensions));
        Ok(fits.then_some(Self { most_slots: codes.len(), codes, vectors, dimensions }))
    }

    pub(super) fn vectors(&self) -> &VectorFile {
        &self.vectors
    }

    pub(super) fn codes_bytes(&self) -> usize {
        self.codes.serialized_len()
    }

    pub(super) fn write_codes(&self, file: &mut impl Write) -> Result<(), std::io::Error> {
        self.codes.write_to_writer(file)
    }

    pub(super) fn push_all<'a>(&mut self, vectors: impl Iterator<Item = &'a [f32]> + Clone) -> Result<(), IndexError> {
        // The file first: it can fail, and then the codes have none of the vectors.
        vectors.clone().try_for_each(|vector| self.vectors.push(vector))?;
        self.encode(vectors)
    }

    /// Makes the codes of all of them at once, which `turbovec` spreads over rayon's global pool.
    fn encode<'a>(&mut self, vectors: impl Iterator<Item = &'a [f32]>) -> Result<(), IndexError> {
        let dimensions = padded(self.dimensions);
        let mut rows = Vec::new();
        for vector in vectors {
            rows.extend_from_slice(vector);
            rows.resize(rows.len().next_multiple_of(dimensions), 0.0);
        }
        self.codes.add_2d(&rows, dimensions).map_err(refused("add vectors"))?;
        self.most_slots = self.most_slots.max(self.codes.len());
        Ok(())
    }

    /// The vector of the last slot moves to this one, which must exist.
    pub(super) fn swap_remove(&mut self, slot: usize) -> Result<(), IndexError> {
        self.vectors.swap_remove(slot)?;
        self.codes.swap_remove(slot);
        Ok(())
    }

    /// The nearest among all that are served.
    pub(super) fn nearest(&self, query: &[f32], n: usize, slots: &Slots) -> Result<Vec<Scored>, IndexError> {
        let candidates = self.scan(query, n_candidates(n), served_mask(slots))?;
        let candidates = candidates.into_iter().map(|(slot, _)| slot).collect();
        Ok(ranking::nearest(self.score(query, candidates, slots)?, n))
    }

    /// The nearest among these slots, ascending and served.
    pub(super) fn nearest_among(
        &self,
        query: &[f32],
        n: usize,
        among: Vec<usize>,
        slots: &Slots,
    ) -> Result<Vec<Scored>, IndexError> {
        let compared = if among.len() <= MAX_READ.max(n_candidates(n)) {
            among
        } else {
            let mut mask = vec![false; slots.len()];
            for slot in among {
                mask[slot] = true;
            }
            let candidates = self.scan(query, n_candidates(n), Some(&mask))?;
            candidates.into_iter().map(|(slot, _)| slot).collect()
        };
        Ok(ranking::nearest(self.score(query, compared, slots)?, n))
    }

    /// The best by their codes alone.
    pub(super) fn candidates(&self, query: &[f32], n: usize, slots: &Slots) -> Result<Vec<Scored>, IndexError> {
        let found = self.scan(query, n, served_mask(slots))?;
        let scored = found.into_iter().map(|(slot, score)| Scored { number: slots.numbers()[slot], score });
        Ok(ranking::nearest(scored.collect(), n))
    }

    /// Compares the query with the vectors of these slots, in their order in the file.
    pub(super) fn score(&self, query: &[f32], mut of: Vec<usize>, slots: &Slots) -> Result<Vec<Scored>, IndexError> {
        of.sort_unstable();
        let mut row = vec![0.0; self.dimensions];
        of.into_iter()
            .map(|slot| {
                self.vectors.read(slot, &mut row)?;
                Ok(Scored { number: slots.numbers()[slot], score: dot(query, &row) })
            })
            .collect()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let bytes_per_row = padded(self.dimensions) * CODE_BITS / 8 + size_of::<f32>();
        self.most_slots * bytes_per_row + self.vectors.memory_bytes()
    }

    /// Slots and approximate scores.
    fn scan(&self, query: &[f32], n: usize, mask: Option<&[bool]>) -> Result<Vec<(usize, f32)>, IndexError> {
        let found = if padded(self.dimensions) == self.dimensions {
            self.codes.try_search_with_mask(query, n, mask)
        } else {
            self.codes.try_search_with_mask(&self.padded(query), n, mask)
        };
        let found = found.map_err(refused("search"))?;
        let slots = found.indices.iter().filter_map(|&slot| usize::try_from(slot).ok());
        Ok(slots.zip(found.scores.iter().copied()).filter(|&(slot, _)| slot < self.codes.len()).collect())
    }

    fn padded(&self, vector: &[f32]) -> Vec<f32> {
        let mut longer = vector.to_vec();
        longer.resize(padded(self.dimensions), 0.0);
        longer
    }
}

/// How many candidates are compared for `n` hits.
fn n_candidates(n: usize) -> usize {
    n.saturating_mul(CANDIDATES_PER_HIT).max(MIN_CANDIDATES)
}

/// `None` when all are served, which spares the scan the mask.
fn served_mask(slots: &Slots) -> Option<&[bool]> {
    (slots.n_served() < slots.len()).then_some(slots.served())
}

fn padded(dimensions: usize) -> usize {
    dimensions.next_multiple_of(CODE_DIMENSIONS)
}

fn refused<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl Fn(E) -> IndexError {
    move |error| IndexError::Codes { doing, source: Box::new(error) }
}
