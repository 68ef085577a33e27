//! The nearest vectors of one space, searched in this process.
//!
//! Owns the vectors of a space in the form in which they are searched, which of them the space serves, and the files
//! that carry both over a restart. It refuses to be the truth: that is the database, from which an index can always be
//! made again, so that files which are not beyond doubt are thrown away. It knows neither SQL nor HTTP, and nothing in
//! it waits for another thread: callers decide on which thread to search and who may change what when.
//!
//! Start at [`SpaceIndex`]. Up to [`QUANTISE_ABOVE`] vectors are all compared (`exact`); above, codes of 4 bits a
//! dimension find candidates, whose vectors are then compared (`quantised`). Scores are of the vectors either way. An
//! index that becomes smaller keeps its codes until it is loaded again, so that it does not go to and fro.

mod dot;
mod error;
mod exact;
mod pages;
mod quantised;
mod ranking;
mod saved;
mod slots;
#[cfg(test)]
mod tests;
mod vectors;

use std::path::PathBuf;

use self::exact::ExactScan;
use self::quantised::QuantisedScan;
use self::saved::{Files, Header, Reader, Tables};
use self::slots::Slots;
use self::vectors::{MAX_WAITING, VectorFile};

pub(crate) use self::dot::dot;
pub use self::error::{IndexError, NotLoaded};
pub use self::ranking::Scored;
pub use self::saved::Identity;
pub(super) use self::saved::discard_others;
pub use self::slots::Serving;

/// Vectors up to which all are compared.
///
/// Measured by `benches/index` (Zen 4, two cores shared with others, 384 dimensions), p50 in ms of the nearest 10:
///
/// | vectors | 2,000 | 5,000 | 10,000 | 20,000 | 50,000 |
/// |---|---|---|---|---|---|
/// | all compared, one thread | 0.06 | 0.14 | 0.33 | 1.19 | 4.27 |
/// | codes, two threads | 0.17 | 0.25 | 0.36 | 0.54 | 0.46 |
///
/// 10,000 vectors of 384 dimensions are 15 MB, which the caches still hold.
pub const QUANTISE_ABOVE: usize = 10_000;

/// Threads that share one scan of codes, at most: into so many pieces is one of a million vectors cut, and more threads
/// only wake each other.
const MAX_SCAN_THREADS: usize = 8;

/// Values from which sums of squares may overflow.
const MAX_VALUE: f32 = 1e15;

/// Has scans of all indexes of this process share so many threads as suit these cores. To be called once, before the first
/// scan: without it there is a thread for each core of the machine.
///
/// # Errors
/// When there are threads for scans already.
pub fn scan_on(cores: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(cores.min(MAX_SCAN_THREADS)).build_global()
}

/// What an index is of, and where its files are.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// The folder of the files; made when it is missing.
    pub folder: PathBuf,
    /// The length of every vector.
    pub dimensions: usize,
    /// What the files are marked with.
    pub identity: Identity,
    /// Vectors up to which all are compared; [`QUANTISE_ABOVE`] outside tests and measurements.
    pub quantise_above: usize,
}

impl IndexOptions {
    /// Options for a space, with the measured crossover.
    #[must_use]
    pub fn new(folder: PathBuf, dimensions: usize, identity: Identity) -> Self {
        Self { folder, dimensions, identity, quantise_above: QUANTISE_ABOVE }
    }
}

/// What an index takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexSize {
    /// In this process's memory.
    pub memory: u64,
    /// In files.
    pub disk: u64,
}

/// The vectors of one space, by the number of their grain.
///
/// Every change is visible to the next search. A search takes `&self` and may run on several threads at once.
///
/// When a change fails with another error than of the vector that was given, the index may lack the grain: it is not
/// saved any more, and should be made again.
#[derive(Debug)]
pub struct SpaceIndex {
    options: IndexOptions,
    files: Files,
    slots: Slots,
    vectors: Vectors,
    /// Vectors up to which all are compared: more than the options say while the disk has no room for the others.
    exact_up_to: usize,
    /// Whether the files say what this index says, so that the next change must take them away.
    is_saved: bool,
    /// Whether a change failed, so that this index must not be saved.
    lacks_a_change: bool,
}

#[derive(Debug)]
enum Vectors {
    Exact(ExactScan),
    Quantised(Box<QuantisedScan>),
}

impl SpaceIndex {
    /// An empty index. Files of the space in the folder are removed, whoever's they are.
    pub fn create(options: IndexOptions) -> Result<Self, IndexError> {
        let files = Files::of(&options.folder, &options.identity.space);
        files.discard()?;
        let vectors = Vectors::Exact(ExactScan::new(options.dimensions));
        let (slots, exact_up_to) = (Slots::default(), options.quantise_above);
        Ok(Self { options, files, slots, vectors, exact_up_to, is_saved: false, lacks_a_change: false })
    }

    /// The index that [`save`](Self::save) wrote under exactly this identity. The files are read and checked whole. Of so
    /// few vectors that all are compared no codes are taken over: there were more of them once.
    ///
    /// # Errors
    /// The reason why there is none. Files that are not good are left for [`create`](Self::create) to remove.
    pub fn load(options: IndexOptions) -> Result<Self, NotLoaded> {
        let files = Files::of(&options.folder, &options.identity.space);
        let Reader { tables, codes } = files.read(&options.identity, options.dimensions)?;
        let damaged = |path: &PathBuf, what| NotLoaded::Damaged { path: path.clone(), what };
        let Tables { numbers, served, checksums } = tables;
        let file = VectorFile::open(&files.vectors, options.dimensions, checksums)
            .map_err(|_| damaged(&files.vectors, "it is missing"))?;
        let wrong = |_| damaged(&files.vectors, "it is cut off, or a checksum is wrong");
        let codes = codes.filter(|_| numbers.len() > options.quantise_above);
        let vectors = if let Some(mut codes) = codes {
            file.each(|_| ()).map_err(wrong)?;
            let scan = QuantisedScan::read(&mut codes, file, options.dimensions);
            let scan = scan.map_err(|source| NotLoaded::Unreadable { path: files.index.clone(), source })?;
            let scan = scan.ok_or_else(|| damaged(&files.index, "its codes are of other vectors"))?;
            Vectors::Quantised(Box::new(scan))
        } else {
            Vectors::Exact(ExactScan::read(&file, options.dimensions).map_err(wrong)?)
        };
        let servings = served.iter().map(|&served| if served == 1 { Serving::Served } else { Serving::Withheld });
        let slots = Slots::with_rows(numbers.into_iter().zip(servings));
        let exact_up_to = options.quantise_above;
        Ok(Self { options, files, slots, vectors, exact_up_to, is_saved: true, lacks_a_change: false })
    }

    /// Adds the vector of a grain, or replaces the one it has. Vectors have length 1.
    pub fn put(&mut self, number: i64, vector: &[f32], serving: Serving) -> Result<(), IndexError> {
        self.put_all(&[(number, vector, serving)])
    }

    /// The same for several grains, each named once: their codes are made on the threads of a scan.
    pub fn put_all(&mut self, grains: &[(i64, &[f32], Serving)]) -> Result<(), IndexError> {
        grains.iter().try_for_each(|(_, vector, _)| self.check(vector))?;
        let done = self.try_put_all(grains);
        self.lacks_a_change |= done.is_err();
        done
    }

    fn try_put_all(&mut self, grains: &[(i64, &[f32], Serving)]) -> Result<(), IndexError> {
        grains.iter().try_for_each(|(number, ..)| self.try_remove(*number))?;
        self.distrust_files()?;
        let n_vectors = self.slots.len() + grains.len();
        if n_vectors > self.exact_up_to {
            self.quantise(n_vectors)?;
        }
        let vectors = grains.iter().map(|(_, vector, _)| *vector);
        match &mut self.vectors {
            Vectors::Exact(scan) => vectors.for_each(|vector| scan.push(vector)),
            Vectors::Quantised(scan) => scan.push_all(vectors)?,
        }
        for (number, _, serving) in grains {
            self.slots.push(*number, *serving);
        }
        Ok(())
    }

    /// Takes the vector of a grain out. A grain without one stays without one.
    pub fn remove(&mut self, number: i64) -> Result<(), IndexError> {
        let done = self.try_remove(number);
        self.lacks_a_change |= done.is_err();
        done
    }

    fn try_remove(&mut self, number: i64) -> Result<(), IndexError> {
        let Some(slot) = self.slots.slot_of(number) else { return Ok(()) };
        self.distrust_files()?;
        match &mut self.vectors {
            Vectors::Exact(scan) => scan.swap_remove(slot),
            Vectors::Quantised(scan) => scan.swap_remove(slot)?,
        }
        self.slots.swap_remove(slot);
        if self.is_empty() {
            // What was taken out has left its room behind, in memory and in the file of vectors.
            let anew = Self::create(self.options.clone())?;
            *self = Self { lacks_a_change: self.lacks_a_change, ..anew };
        }
        Ok(())
    }

    /// Says whether searches return the grain. Nothing happens to a grain without a vector here.
    pub fn set_serving(&mut self, number: i64, serving: Serving) -> Result<(), IndexError> {
        if let Some(slot) = self.slots.slot_of(number) {
            let done = self.distrust_files();
            self.lacks_a_change |= done.is_err();
            done?;
            self.slots.set_serving(slot, serving);
        }
        Ok(())
    }

    /// Serves every grain but those that one of the other indexes has: they come before this one.
    pub fn serve_unless_in(&mut self, others: &[&Self]) -> Result<(), IndexError> {
        let done = self.distrust_files();
        self.lacks_a_change |= done.is_err();
        done?;
        let others: Vec<&Slots> = others.iter().map(|other| &other.slots).collect();
        self.slots.serve_unless_in(&others);
        Ok(())
    }

    /// Whether a grain has a vector here and in the other index, and in none of these.
    #[must_use]
    pub fn shares_one(&self, other: &Self, unless_in: &[&Self]) -> bool {
        let unless_in: Vec<&Slots> = unless_in.iter().map(|index| &index.slots).collect();
        self.slots.shares_one(&other.slots, &unless_in)
    }

    /// How many grains have a vector here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no grain has a vector here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many grains searches may return.
    #[must_use]
    pub fn n_served(&self) -> usize {
        self.slots.n_served()
    }

    /// Whether the grain has a vector here, and whether it is served.
    #[must_use]
    pub fn serving(&self, number: i64) -> Option<Serving> {
        let slot = self.slots.slot_of(number)?;
        Some(if self.slots.served()[slot] { Serving::Served } else { Serving::Withheld })
    }

    /// The length of every vector.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.options.dimensions
    }

    /// What the index takes now.
    #[must_use]
    pub fn size(&self) -> IndexSize {
        let (vectors, disk) = match &self.vectors {
            Vectors::Exact(scan) => (scan.memory_bytes(), 0),
            Vectors::Quantised(scan) => (scan.memory_bytes(), scan.vectors().size_bytes()),
        };
        IndexSize { memory: (vectors + self.slots.memory_bytes()) as u64, disk }
    }

    /// The nearest `n` served grains, best first, with exact scores. Above the crossover, a grain whose code is far
    /// worse than its vector may be missed.
    pub fn nearest(&self, query: &[f32], n: usize) -> Result<Vec<Scored>, IndexError> {
        self.check(query)?;
        match &self.vectors {
            _ if n == 0 || self.n_served() == 0 => Ok(Vec::new()),
            Vectors::Exact(scan) => Ok(scan.nearest(query, n, &self.slots)),
            Vectors::Quantised(scan) => scan.nearest(query, n, &self.slots),
        }
    }

    /// The nearest `n` served grains by their codes alone, best first. Scores are approximate above the crossover:
    /// [`nearest_among`](Self::nearest_among) compares those that remain when the caller has looked at them.
    pub fn candidates(&self, query: &[f32], n: usize) -> Result<Vec<Scored>, IndexError> {
        self.check(query)?;
        match &self.vectors {
            _ if n == 0 || self.n_served() == 0 => Ok(Vec::new()),
            Vectors::Exact(scan) => Ok(scan.nearest(query, n, &self.slots)),
            Vectors::Quantised(scan) => scan.candidates(query, n, &self.slots),
        }
    }

    /// The nearest `n` of the grains with these numbers, best first. Those that are unknown or not served are left
    /// out. Numbers in ascending order are looked up fastest. Exact up to some thousands of grains; more are found by
    /// their codes, as in [`nearest`](Self::nearest).
    pub fn nearest_among(&self, query: &[f32], numbers: &[i64], n: usize) -> Result<Vec<Scored>, IndexError> {
        self.check(query)?;
        let among = self.slots.served_among(numbers);
        match &self.vectors {
            _ if n == 0 || among.is_empty() => Ok(Vec::new()),
            Vectors::Exact(scan) => Ok(scan.nearest_among(query, n, &among, &self.slots)),
            Vectors::Quantised(scan) => scan.nearest_among(query, n, among, &self.slots),
        }
    }

    /// The exact score of each of these grains, best first; those that are unknown or not served are left out. Searches
    /// do not ask for it: tests and benchmarks judge them by it.
    pub fn score(&self, query: &[f32], numbers: &[i64]) -> Result<Vec<Scored>, IndexError> {
        self.check(query)?;
        let among = self.slots.served_among(numbers);
        match &self.vectors {
            Vectors::Exact(scan) => Ok(scan.nearest_among(query, among.len(), &among, &self.slots)),
            Vectors::Quantised(scan) => {
                let n = among.len();
                Ok(ranking::nearest(scan.score(query, among, &self.slots)?, n))
            }
        }
    }

    /// The vector of a grain, served or not; `None` when it has none here.
    pub fn vector(&self, number: i64) -> Result<Option<Vec<f32>>, IndexError> {
        let Some(slot) = self.slots.slot_of(number) else { return Ok(None) };
        match &self.vectors {
            Vectors::Exact(scan) => Ok(Some(scan.row(slot).to_vec())),
            Vectors::Quantised(scan) => {
                let mut row = vec![0.0; self.options.dimensions];
                scan.vectors().read(slot, &mut row)?;
                Ok(Some(row))
            }
        }
    }

    /// From now on the files are marked with this epoch. Call it when the database has got a new one, which it does
    /// after the index was loaded.
    pub fn set_epoch(&mut self, epoch: String) -> Result<(), IndexError> {
        self.distrust_files()?;
        self.options.identity.epoch = epoch;
        Ok(())
    }

    /// Writes the files, so that [`load`](Self::load) finds this state under this identity. They are synced, and take
    /// their name at once when they are whole; the next change takes it from them.
    pub fn save(&mut self) -> Result<(), IndexError> {
        if self.is_saved {
            return Ok(());
        }
        if self.lacks_a_change {
            return Err(IndexError::Incomplete { path: self.files.index.clone() });
        }
        let mut header = Header {
            identity: self.options.identity.clone(),
            dimensions: self.options.dimensions,
            n_slots: self.len(),
            codes_bytes: None,
        };
        let mut tables = Tables {
            numbers: self.slots.numbers().to_vec(),
            served: self.slots.served().iter().map(|&served| u8::from(served)).collect(),
            checksums: Vec::new(),
        };
        match &self.vectors {
            Vectors::Exact(scan) => {
                let file = self.vector_file(scan)?;
                file.sync()?;
                tables.checksums = file.checksums().to_vec();
                self.files.write(&header, &tables, |_| Ok(()))?;
            }
            Vectors::Quantised(scan) => {
                scan.vectors().sync()?;
                tables.checksums = scan.vectors().checksums().to_vec();
                header.codes_bytes = Some(scan.codes_bytes() as u64);
                self.files.write(&header, &tables, |mut file| scan.write_codes(&mut file))?;
            }
        }
        self.is_saved = true;
        Ok(())
    }

    /// Goes over to codes before there are so many vectors, when that has not happened. While the disk has no room for
    /// them, all go on being compared: as many more as would wait for room in their file. That is tried again from time to
    /// time, for each try writes all of them.
    fn quantise(&mut self, n_vectors: usize) -> Result<(), IndexError> {
        let Vectors::Exact(scan) = &self.vectors else { return Ok(()) };
        let IndexOptions { dimensions, quantise_above, .. } = self.options;
        match self.vector_file(scan) {
            Err(error @ IndexError::DiskFull { .. }) => {
                // What room it took is there for others again.
                VectorFile::create(&self.files.vectors, dimensions)?;
                let most = quantise_above + MAX_WAITING / dimensions;
                if n_vectors > most {
                    return Err(error);
                }
                self.exact_up_to = most.min(n_vectors + n_vectors / 64);
            }
            file => {
                let quantised = QuantisedScan::new(scan.rows(), file?, dimensions)?;
                self.vectors = Vectors::Quantised(Box::new(quantised));
            }
        }
        Ok(())
    }

    /// A file of all vectors of an exact scan.
    fn vector_file(&self, scan: &ExactScan) -> Result<VectorFile, IndexError> {
        let mut file = VectorFile::create(&self.files.vectors, self.options.dimensions)?;
        for row in scan.rows() {
            file.push(row)?;
        }
        Ok(file)
    }

    fn distrust_files(&mut self) -> Result<(), IndexError> {
        if self.is_saved {
            match self.vectors {
                // All vectors are in memory: the file would keep those of grains that are deleted.
                Vectors::Exact(_) => self.files.discard()?,
                Vectors::Quantised(_) => self.files.distrust()?,
            }
            self.is_saved = false;
        }
        Ok(())
    }

    fn check(&self, vector: &[f32]) -> Result<(), IndexError> {
        let expected = self.options.dimensions;
        if vector.len() != expected {
            return Err(IndexError::Dimensions { expected, found: vector.len() });
        }
        // `contains` is false of NaN.
        match vector.iter().position(|value| !(-MAX_VALUE..=MAX_VALUE).contains(value)) {
            Some(position) => Err(IndexError::Value { position, value: vector[position] }),
            None => Ok(()),
        }
    }
}
