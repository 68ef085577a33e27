//! The f32 vectors in a file, one row a slot.
//!
//! The rows stay out of this process's memory: what was read or written lately is in the system's page cache, which it
//! takes back when memory is short. Reads name a position instead of mapping the file, because mapped pages count as
//! resident. A row is as the machine has it in memory: the file does not travel between byte orders.
//!
//! The database has committed a grain before its vector comes here, and with it perhaps the last room of the disk. The
//! last rows wait in memory then, and are written before the next one.

use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::{FileExt, OpenOptionsExt};
use fs_err::{File, OpenOptions};

use super::error::IndexError;

/// Rows that are read at once where all are read in order.
const ROWS_AT_ONCE: usize = 256;

/// Values of rows of one space that wait for room at most: 64 MiB, and few where tests fill it. Once its disk is full, the
/// database commits less, unless it has free pages in its file.
pub(super) const MAX_WAITING: usize = if cfg!(test) { 2 << 10 } else { 16 << 20 };

/// A file of vectors, `[n_slots][dimensions]`, and the checksum of each row in memory.
///
/// Writes are not synced one by one: until [`sync`](Self::sync), only this process may trust the file.
#[derive(Debug)]
pub(super) struct VectorFile {
    file: File,
    dimensions: usize,
    /// CRC-32 of each row, compared at each read.
    checksums: Vec<u32>,
    /// The last rows, for which the disk has no room.
    waiting: Vec<f32>,
}

impl VectorFile {
    /// An empty file; what was at `path` is lost.
    pub(super) fn create(path: &Path, dimensions: usize) -> Result<Self, IndexError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.map_err(|error| IndexError::files("make a file of vectors", path, error))?;
        Ok(Self { file, dimensions, checksums: Vec::new(), waiting: Vec::new() })
    }

    /// The file at `path`, whose rows have these checksums. Only [`each`](Self::each) tells whether they do.
    pub(super) fn open(path: &Path, dimensions: usize, checksums: Vec<u32>) -> Result<Self, IndexError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| IndexError::files("open the vectors", path, error))?;
        Ok(Self { file, dimensions, checksums, waiting: Vec::new() })
    }

    pub(super) fn len(&self) -> usize {
        self.checksums.len()
    }

    pub(super) fn checksums(&self) -> &[u32] {
        &self.checksums
    }

    /// Reads the vector of a slot into `row`, `[dimensions]`.
    pub(super) fn read(&self, slot: usize, row: &mut [f32]) -> Result<(), IndexError> {
        if let Some(waiting) = self.place_among_waiting(slot) {
            row.copy_from_slice(&self.waiting[waiting]);
            return Ok(());
        }
        let bytes = bytemuck::cast_slice_mut(row);
        let read = self.file.read_exact_at(bytes, self.offset(slot));
        read.map_err(|error| IndexError::files("read a vector", self.path(), error))?;
        self.check(slot, bytes)
    }

    /// Appends the vector of a new slot. One for which there is no room waits for it.
    pub(super) fn push(&mut self, row: &[f32]) -> Result<(), IndexError> {
        match self.write_waiting().and_then(|()| self.write(self.len(), row)) {
            Err(IndexError::DiskFull { .. }) if self.waiting.len() + row.len() <= MAX_WAITING => {
                self.waiting.extend_from_slice(row);
            }
            written => written?,
        }
        self.checksums.push(crc32fast::hash(bytemuck::cast_slice(row)));
        Ok(())
    }

    /// The vector of the last slot moves to this one.
    pub(super) fn swap_remove(&mut self, slot: usize) -> Result<(), IndexError> {
        let last = self.len() - 1;
        if slot != last {
            let mut row = vec![0.0; self.dimensions];
            self.read(last, &mut row)?;
            match self.place_among_waiting(slot) {
                Some(waiting) => self.waiting[waiting].copy_from_slice(&row),
                None => self.write(slot, &row)?,
            }
        }
        self.waiting.truncate(self.waiting.len().saturating_sub(self.dimensions));
        self.checksums.swap_remove(slot);
        Ok(())
    }

    /// Reads all rows in the order of slots, in runs of whole rows.
    pub(super) fn each(&self, mut take: impl FnMut(&[f32])) -> Result<(), IndexError> {
        let mut rows = vec![0.0_f32; ROWS_AT_ONCE * self.dimensions];
        for first in (0..self.n_written()).step_by(ROWS_AT_ONCE) {
            let n_rows = ROWS_AT_ONCE.min(self.n_written() - first);
            let rows = &mut rows[..n_rows * self.dimensions];
            let read = self.file.read_exact_at(bytemuck::cast_slice_mut(rows), self.offset(first));
            read.map_err(|error| IndexError::files("read the vectors", self.path(), error))?;
            for (row, slot) in rows.chunks_exact(self.dimensions).zip(first..) {
                self.check(slot, bytemuck::cast_slice(row))?;
            }
            take(rows);
        }
        if !self.waiting.is_empty() {
            take(&self.waiting);
        }
        Ok(())
    }

    /// Makes the file outlive the machine's crash, and cuts off what belongs to no slot.
    ///
    /// # Errors
    /// [`IndexError::DiskFull`] while rows wait for room, and the file system's.
    pub(super) fn sync(&self) -> Result<(), IndexError> {
        let written = self.file.write_all_at(bytemuck::cast_slice(&self.waiting), self.offset(self.n_written()));
        let synced = written.and_then(|()| self.file.set_len(self.size_bytes())).and_then(|()| self.file.sync_all());
        synced.map_err(|error| IndexError::files("sync the vectors", self.path(), error))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.offset(self.len())
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.checksums.capacity() * size_of::<u32>() + self.waiting.capacity() * size_of::<f32>()
    }

    /// How many rows are in the file: the first ones.
    fn n_written(&self) -> usize {
        self.len() - self.waiting.len() / self.dimensions
    }

    /// Where the row of a slot is among those that wait.
    fn place_among_waiting(&self, slot: usize) -> Option<Range<usize>> {
        let first = slot.checked_sub(self.n_written())? * self.dimensions;
        Some(first..first + self.dimensions)
    }

    /// Writes the rows that wait, as far as there is room.
    fn write_waiting(&mut self) -> Result<(), IndexError> {
        let first = self.n_written();
        let (mut n_rows, mut done) = (0, Ok(()));
        for row in self.waiting.chunks_exact(self.dimensions) {
            done = self.write(first + n_rows, row);
            if done.is_err() {
                break;
            }
            n_rows += 1;
        }
        self.waiting.drain(..n_rows * self.dimensions);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
        done
    }

    fn write(&self, slot: usize, row: &[f32]) -> Result<(), IndexError> {
        let written = self.file.write_all_at(bytemuck::cast_slice(row), self.offset(slot));
        written.map_err(|error| IndexError::files("write a vector", self.path(), error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_wait_for_room_and_are_read_meanwhile() {
        let row = |n: u8| [f32::from(n), 0.5];
        let rows = |vectors: &VectorFile| -> Vec<[f32; 2]> {
            let read = |slot| {
                let mut row = [0.0; 2];
                vectors.read(slot, &mut row).map(|()| row)
            };
            (0..vectors.len()).map(read).collect::<Result<Vec<_>, _>>().expect("read")
        };
        let mut vectors = VectorFile::create(Path::new("/dev/full"), 2).expect("opened");
        for n in 0..5 {
            vectors.push(&row(n)).expect("it waits");
        }
        vectors.swap_remove(1).expect("removed");
        assert_eq!(rows(&vectors), [0, 4, 2, 3].map(row));
        assert!(matches!(vectors.sync(), Err(IndexError::DiskFull { .. })));

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vectors");
        vectors.file = VectorFile::create(&path, 2).expect("made").file;
        vectors.push(&row(5)).expect("there is room");
        assert!(vectors.waiting.is_empty());
        vectors.sync().expect("synced");
        let opened = VectorFile::open(&path, 2, vectors.checksums.clone()).expect("opened");
        assert_eq!(rows(&opened), [0, 4, 2, 3, 5].map(row));
    }

    #[test]
    fn no_more_than_so_many_rows_wait() {
        let row = vec![0.5; MAX_WAITING / 2];
        let mut vectors = VectorFile::create(Path::new("/dev/full"), row.len()).expect("opened");
        for _ in 0..2 {
            vectors.push(&row).expect("it waits");
        }
        assert!(matches!(vectors.push(&row), Err(IndexError::DiskFull { .. })));
        assert_eq!((vectors.len(), vectors.waiting.len()), (2, MAX_WAITING), "what waits goes on waiting");
        vectors.swap_remove(0).expect("removed");
        vectors.push(&row).expect("there is room to wait again");
    }
}
