//! The index between two runs of the process.
//!
//! `<space>.vectors` holds the vectors and `<space>.index` everything else: who it belongs to, the grain, serving and
//! checksum of every slot, and the codes. Only a clean stop writes `<space>.index`, last and under its name at once,
//! and the first change after that takes it away again: what is there is whole and says the truth, unless the disk
//! does not, which checksums tell. With it goes `<space>.vectors` where all vectors are in memory.

use fs_err::os::unix::fs::OpenOptionsExt;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use fs_err::{File, OpenOptions};
use serde::{Deserialize, Serialize};

use super::error::{IndexError, NotLoaded};
use crate::domain::space::SpaceId;
use crate::files::{if_there, remove_if_there, sync_folder_of};

/// The first bytes of the file; the digit counts versions of the format.
const MAGIC: &[u8; 16] = b"granary index 1\n";

/// A header is a few hundred bytes; more is not one.
const MAX_HEADER_BYTES: u32 = 1 << 16;

/// Whose vectors these are, and of when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The id of the database.
    pub database: String,
    /// What the database calls its state: renewed whenever it is opened for writing.
    pub epoch: String,
    /// The space.
    pub space: SpaceId,
}

/// What stands before the tables.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub identity: Identity,
    pub dimensions: usize,
    pub n_slots: usize,
    /// The length of the codes; `None` when all vectors are compared exactly.
    pub codes_bytes: Option<u64>,
}

/// One value a slot.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub numbers: Vec<i64>,
    /// 1 for served.
    pub served: Vec<u8>,
    pub checksums: Vec<u32>,
}

/// The names of a space's files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub index: PathBuf,
    pub vectors: PathBuf,
    temporary: PathBuf,
    folder: PathBuf,
}

impl Files {
    pub(super) fn of(folder: &Path, space: &SpaceId) -> Self {
        let named = |ending: &str| folder.join(format!("{space}.{ending}"));
        Self {
            index: named("index"),
            vectors: named("vectors"),
            temporary: named("index.tmp"),
            folder: folder.to_owned(),
        }
    }

    /// Makes the folder, and removes all files of the space from it.
    pub(super) fn discard(&self) -> Result<(), IndexError> {
        fs_err::create_dir_all(&self.folder)
            .map_err(|error| IndexError::files("make the folder", &self.folder, error))?;
        [&self.index, &self.temporary, &self.vectors].into_iter().try_for_each(|path| remove(path))
    }

    /// From here on what is on the disk is not trusted any more.
    pub(super) fn distrust(&self) -> Result<(), IndexError> {
        remove(&self.index)
    }

    /// Writes `<space>.index`. The vectors must have been synced.
    pub(super) fn write(
        &self,
        header: &Header,
        tables: &Tables,
        codes: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<(), IndexError> {
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.temporary);
        let written = written.and_then(|file| write_all(file, header, tables, codes));
        written.map_err(|error| IndexError::files("save the index", &self.temporary, error))?;
        let renamed = fs_err::rename(&self.temporary, &self.index).and_then(|()| sync_folder_of(&self.index));
        renamed.map_err(|error| IndexError::files("save the index", &self.index, error))
    }

    /// Opens `<space>.index`, when all of it is as it was written under this identity.
    pub(super) fn read(&self, identity: &Identity, dimensions: usize) -> Result<Reader, NotLoaded> {
        let path = &self.index;
        let unreadable = |source| NotLoaded::Unreadable { path: path.clone(), source };
        let file = if_there(File::open(path)).map_err(unreadable)?.ok_or(NotLoaded::Absent)?;
        if !is_whole(file).map_err(unreadable)? {
            return Err(NotLoaded::Damaged { path: path.clone(), what: "its checksum is wrong" });
        }
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(unreadable)?);
        let header = read_header(&mut file).map_err(unreadable)?;
        let stale = |what| NotLoaded::Stale { path: path.clone(), what };
        let found = &header.identity;
        if found.database != identity.database {
            Err(stale("database"))
        } else if found.space != identity.space || header.dimensions != dimensions {
            Err(stale("space"))
        } else if found.epoch != identity.epoch {
            Err(stale("state"))
        } else {
            let tables = read_tables(&mut file, header.n_slots).map_err(unreadable)?;
            Ok(Reader { tables, codes: header.codes_bytes.map(|n_bytes| file.take(n_bytes)) })
        }
    }
}

/// A saved index that is intact.
pub(super) struct Reader {
    pub tables: Tables,
    pub codes: Option<std::io::Take<BufReader<File>>>,
}

/// Removes the files of all spaces but these from the folder.
///
/// # Errors
/// The file system's.
pub(in super::super) fn discard_others(folder: &Path, kept: &[SpaceId]) -> Result<(), IndexError> {
    let failed = |error| IndexError::files("look for older files", folder, error);
    let Some(entries) = if_there(fs_err::read_dir(folder)).map_err(failed)? else { return Ok(()) };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let space = name.to_str().and_then(|name| SpaceId::parse(name.split_once('.')?.0).ok());
        if let Some(space) = space.filter(|space| !kept.contains(space)) {
            Files::of(folder, &space).discard()?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), IndexError> {
    remove_if_there(path).map_err(|error| IndexError::files("discard an older state", path, error))
}

fn write_all(
    file: File,
    header: &Header,
    tables: &Tables,
    codes: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut file = Checksummed { inner: BufWriter::with_capacity(1 << 20, file), hasher: crc32fast::Hasher::new() };
    let header = serde_json::to_vec(header)?;
    file.write_all(MAGIC)?;
    file.write_all(&u32::try_from(header.len()).map_err(std::io::Error::other)?.to_le_bytes())?;
    file.write_all(&header)?;
    file.write_all(bytemuck::cast_slice(&tables.numbers))?;
    file.write_all(&tables.served)?;
    file.write_all(bytemuck::cast_slice(&tables.checksums))?;
    codes(&mut file)?;
    let Checksummed { mut inner, hasher } = file;
    inner.write_all(&hasher.finalize().to_le_bytes())?;
    inner.flush()?;
    inner.get_ref().sync_all()
}

/// Whether the last four bytes are the CRC-32 of all before them.
fn is_whole(mut file: File) -> std::io::Result<bool> {
    let Some(mut left) = file.metadata()?.len().checked_sub(4) else { return Ok(false) };
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let n_bytes = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..n_bytes])?;
        hasher.update(&buffer[..n_bytes]);
        left -= n_bytes as u64;
    }
    let mut checksum = [0; 4];
    file.read_exact(&mut checksum)?;
    Ok(hasher.finalize() == u32::from_le_bytes(checksum))
}

fn read_header(file: &mut impl Read) -> std::io::Result<Header> {
    let (mut magic, mut n_bytes) = ([0; MAGIC.len()], [0; 4]);
    file.read_exact(&mut magic)?;
    file.read_exact(&mut n_bytes)?;
    let n_bytes = u32::from_le_bytes(n_bytes);
    if &magic != MAGIC || n_bytes > MAX_HEADER_BYTES {
        return Err(std::io::Error::other("it is not an index of this version of Granary"));
    }
    let mut header = vec![0; n_bytes as usize];
    file.read_exact(&mut header)?;
    Ok(serde_json::from_slice(&header)?)
}

fn read_tables(file: &mut impl Read, n_slots: usize) -> std::io::Result<Tables> {
    let mut tables = Tables { numbers: vec![0; n_slots], served: vec![0; n_slots], checksums: vec![0; n_slots] };
    file.read_exact(bytemuck::cast_slice_mut(&mut tables.numbers))?;
    file.read_exact(&mut tables.served)?;
    file.read_exact(bytemuck::cast_slice_mut(&mut tables.checksums))?;
    Ok(tables)
}

/// Counts what it passes on into a checksum.
struct Checksummed<W> {
    inner: W,
    hasher: crc32fast::Hasher,
}

impl<W: Write> Write for Checksummed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n_bytes = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n_bytes]);
        Ok(n_bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
