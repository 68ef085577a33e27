//! The f32 vectors in a file, one row a slot.
//!
//! The rows stay out of this process's memory: what was read or written lately is in the system's page cache, which it
//! takes back when memory is short. Reads name a position instead of mapping the file, because mapped pages count as
//! resident. A row is as the machine has it in memory: the file does not travel between byte orders.

use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::{FileExt, OpenOptionsExt};
use fs_err::{File, OpenOptions};

use super::error::IndexError;

/// Rows that are read at once where all are read in order.
const ROWS_AT_ONCE: usize = 256;

/// A file of vectors, `[n_slots][dimensions]`, and the checksum of each row in memory.
///
/// Writes are not synced one by one: until [`sync`](Self::sync), only this process may trust the file.
#[derive(Debug)]
pub(super) struct VectorFile {
    file: File,
    dimensions: usize,
    /// CRC-32 of each row, compared at each read.
    checksums: Vec<u32>,
}

impl VectorFile {
    /// An empty file; what was at `path` is lost.
    pub(super) fn create(path: &Path, dimensions: usize) -> Result<Self, IndexError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.map_err(|error| IndexError::files("make a file of vectors", path, error))?;
        Ok(Self { file, dimensions, checksums: Vec::new() })
    }

    /// The file at `path`, whose rows have these checksums. Only [`each`](Self::each) tells whether they do.
    pub(super) fn open(path: &Path, dimensions: usize, checksums: Vec<u32>) -> Result<Self, IndexError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| IndexError::files("open the vectors", path, error))?;
        Ok(Self { file, dimensions, checksums })
    }

    pub(super) fn len(&self) -> usize {
        self.checksums.len()
    }

    pub(super) fn checksums(&self) -> &[u32] {
        &self.checksums
    }

    /// Reads the vector of a slot into `row`, `[dimensions]`.
    pub(super) fn read(&self, slot: usize, row: &mut [f32]) -> Result<(), IndexError> {
        let bytes = bytemuck::cast_slice_mut(row);
        let read = self.file.read_exact_at(bytes, self.offset(slot));
        read.map_err(|error| IndexError::files("read a vector", self.path(), error))?;
        self.check(slot, bytes)
    }

    /// Appends the vector of a new slot.
    pub(super) fn push(&mut self, row: &[f32]) -> Result<(), IndexError> {
        let checksum = self.write(self.len(), row)?;
        self.checksums.push(checksum);
        Ok(())
    }

    /// The vector of the last slot moves to this one.
    pub(super) fn swap_remove(&mut self, slot: usize) -> Result<(), IndexError> {
        let last = self.len() - 1;
        if slot != last {
            let mut row = vec![0.0; self.dimensions];
            self.read(last, &mut row)?;
            self.write(slot, &row)?;
        }
        self.checksums.swap_remove(slot);
        Ok(())
    }

    /// Reads all rows in the order of slots, in runs of whole rows.
    pub(super) fn each(&self, mut take: impl FnMut(&[f32])) -> Result<(), IndexError> {
        let mut rows = vec![0.0_f32; ROWS_AT_ONCE * self.dimensions];
        for first in (0..self.len()).step_by(ROWS_AT_ONCE) {
            let n_rows = ROWS_AT_ONCE.min(self.len() - first);
            let rows = &mut rows[..n_rows * self.dimensions];
            let read = self.file.read_exact_at(bytemuck::cast_slice_mut(rows), self.offset(first));
            read.map_err(|error| IndexError::files("read the vectors", self.path(), error))?;
            for (row, slot) in rows.chunks_exact(self.dimensions).zip(first..) {
                self.check(slot, bytemuck::cast_slice(row))?;
            }
            take(rows);
        }
        Ok(())
    }

    /// Makes the file outlive the machine's crash, and cuts off what belongs to no slot.
    pub(super) fn sync(&self) -> Result<(), IndexError> {
        let synced = self.file.set_len(self.size_bytes()).and_then(|()| self.file.sync_all());
        synced.map_err(|error| IndexError::files("sync the vectors", self.path(), error))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.offset(self.len())
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.checksums.capacity() * size_of::<u32>()
    }

    fn write(&self, slot: usize, row: &[f32]) -> Result<u32, IndexError> {
        let bytes = bytemuck::cast_slice(row);
        let written = self.file.write_all_at(bytes, self.offset(slot));
        written.map_err(|error| IndexError::files("write a vector", self.path(), error))?;
        Ok(crc32fast::hash(bytes))
    }

    fn check(&self, slot: usize, bytes: &[u8]) -> Result<(), IndexError> {
        if crc32fast::hash(bytes) == self.checksums[slot] {
            Ok(())
        } else {
            Err(IndexError::Damaged { path: PathBuf::from(self.path()), slot })
        }
    }

    fn offset(&self, slot: usize) -> u64 {
        (slot * self.dimensions * size_of::<f32>()) as u64
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}
