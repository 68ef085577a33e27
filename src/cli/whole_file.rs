//! A file that an answer is written into, and that gets its name only when it is whole.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fs_err::File;

use crate::files::beside;

/// A file that is being written. Dropped before [`finish`](Self::finish), it stays as `FILE.part`.
pub(super) struct WholeFile {
    file: io::BufWriter<File>,
    /// From which name to which. A link, a pipe or a device is written to as it is, and stays.
    renamed: Option<(PathBuf, PathBuf)>,
}

impl WholeFile {
    /// Begins a file that is to be at `path`, in place of what is there.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        if !is_replaceable(&path) {
            return Ok(Self { file: io::BufWriter::new(File::create(path)?), renamed: None });
        }
        let part = beside(&path, ".part");
        Ok(Self { file: io::BufWriter::new(File::create(&part)?), renamed: Some((part, path)) })
    }

    /// Gives the file its name, once what it holds is on disk.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        let Some((part, path)) = self.renamed else { return Ok(()) };
        self.file.get_ref().sync_all()?;
        fs_err::rename(part, path)
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn is_replaceable(path: &Path) -> bool {
    match fs_err::symlink_metadata(path) {
        Ok(found) => found.is_file(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}
