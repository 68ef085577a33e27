//! A file that an answer is written into, and that gets its name only when it is whole.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fs_err::File;
use tempfile::TempPath;

use crate::files::{folder_of, sync_folder_of};

/// A file that is being written, under a name of its own. Dropped before [`finish`](Self::finish), nothing of it stays.
pub(super) struct WholeFile {
    file: io::BufWriter<File>,
    /// From which name to which. A link, a pipe or a device is written to as it is, and stays.
    renamed: Option<(TempPath, PathBuf)>,
}

impl WholeFile {
    /// Begins a file that is to be at `path`, in place of what is there, with the mode that the process's mask leaves of
    /// this one.
    pub(super) fn create(path: PathBuf, mode: u32) -> io::Result<Self> {
        if !is_replaceable(&path) {
            return Ok(Self { file: io::BufWriter::new(File::create(path)?), renamed: None });
        }
        let folder = folder_of(&path);
        let named = tempfile::Builder::new()
            .suffix(".part")
            .permissions(PermissionsExt::from_mode(mode))
            .tempfile_in(folder)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("no file can be made in `{}`: {error}", folder.display()))
            })?;
        let (file, part) = named.into_parts();
        let file = File::from_parts(file, part.to_path_buf());
        Ok(Self { file: io::BufWriter::new(file), renamed: Some((part, path)) })
    }

    /// Gives the file its name, once what it holds is on disk; and has the name there too, where that can be.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        let Some((part, path)) = self.renamed else { return Ok(()) };
        self.file.get_ref().sync_all()?;
        part.persist(&path).map_err(|refused| refused.error)?;
        // The file is whole without, and not every file system does this.
        let _ = sync_folder_of(&path);
        Ok(())
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
