//! The file of keys, `keys.toml`: hashes, names and what they allow. `granary keys` writes it, the server reads it.

use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::access_list;
use crate::domain::{ApiKey, KeyName};
use crate::files::{beside, folder_of, if_there, remove_if_there, sync_folder_of};
use crate::ownership::{behind_links, hand_over};

const HEAD: &str = "# The API keys of Granary, as hashes: `granary keys add`, `list` and `remove` write and read this file.\n\
                    # A running server takes a change over within seconds. While this file is here, requests need a key.\n\n";

/// The mode of the first file: only the owner reads and writes it.
const MODE: u32 = 0o600;

/// The bits by which others than the owner read it too, where somebody has allowed that: there are only hashes in it.
const READABLE_BY_OTHERS: u32 = 0o044;

/// The one of them by which its group does.
const READABLE_BY_GROUP: u32 = 0o040;

/// The one of them by which it is no matter whose group the file is of.
const READABLE_BY_ALL: u32 = 0o004;

/// The bits by which others than the owner may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A file of keys, which need not be there.
#[derive(Clone, Debug)]
pub struct KeyFile(PathBuf);

/// The file of keys cannot be used. What is in it is not repeated: somebody may have written a key there.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("the keys in `{}` cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its folder keeps to itself whether there is one.
    #[error("it cannot be seen whether there are keys in `{}`", path.display())]
    Unseen {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pipe, a device or a folder is in its place.
    #[error(
        "`{}` is not a regular file, and keys are read from no other: put one in its place, or remove it",
        path.display()
    )]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// It is not what a file of keys is.
    #[error(
        "`{}` is not understood{}: it holds a table `[[keys]]` for each key, with `name`, `hash` (\"sha256:…\"), `scopes` \
         (a list of \"embed\", \"read\", \"write\" and \"admin\") and, where wanted, `model`, `rate` and `tokens`",
        path.display(),
        line.map(|line| format!(" from line {line} on")).unwrap_or_default()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it stops to make sense.
        line: Option<usize>,
    },
    /// Two keys have one name.
    #[error("`{}` has two keys named `{name}`: remove one", path.display())]
    Repeated {
        /// The file.
        path: PathBuf,
        /// The name.
        name: KeyName,
    },
    /// Others could add keys of their own.
    #[error("others than its owner may write `{}`: take that from them with `chmod 600`", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("the keys in `{}` cannot be written", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is a key of this name.
    #[error("there is a key named `{0}` already: remove it first, or choose another name")]
    Taken(KeyName),
    /// There is none.
    #[error("no key in `{}` is named `{name}`", path.display())]
    NotThere {
        /// The file.
        path: PathBuf,
        /// The name.
        name: KeyName,
    },
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    keys: Vec<ApiKey>,
}

impl KeyFile {
    /// The file at a path.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The keys in it; none where there is no file.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(&self) -> Result<Vec<ApiKey>, KeyFileError> {
        self.text()?.map_or_else(|| Ok(Vec::new()), |text| self.parse(&text))
    }

    /// Adds a key.
    ///
    /// # Errors
    /// [`KeyFileError::Taken`], or when the file cannot be read or written.
    pub fn add(&self, key: ApiKey) -> Result<(), KeyFileError> {
        self.change(|keys| {
            if keys.iter().any(|other| other.name == key.name) {
                return Err(KeyFileError::Taken(key.name.clone()));
            }
            keys.push(key);
            Ok(())
        })
    }

    /// Removes a key. The file stays, without a key too.
    ///
    /// # Errors
    /// [`KeyFileError::NotThere`], or when the file cannot be read or written.
    pub fn remove(&self, name: &KeyName) -> Result<(), KeyFileError> {
        self.change(|keys| {
            let before = keys.len();
            keys.retain(|key| key.name != *name);
            let path = self.0.clone();
            if keys.len() < before { Ok(()) } else { Err(KeyFileError::NotThere { path, name: name.clone() }) }
        })
    }

    /// Its text; `None` where there is no file.
    pub(super) fn text(&self) -> Result<Option<String>, KeyFileError> {
        // Whoever has made a link that leads nowhere wants keys: that is not the same as no file.
        match fs_err::symlink_metadata(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A folder that lets nobody look is one that was made for keys; other errors of it may pass.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(KeyFileError::Unseen { path: self.0.clone(), source: error.kind().into() });
            }
            Ok(_) | Err(_) => {}
        }
        let unreadable = |error: io::Error| self.unreadable(error.kind().into());
        let mut options = fs_err::OpenOptions::new();
        // A pipe would wait for somebody who writes to it.
        options.read(true).options_mut().custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(&self.0).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        if !found.is_file() {
            return Err(KeyFileError::NotAFile { path: self.0.clone() });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unreadable)?;
        if found.permissions().mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(KeyFileError::Exposed { path: self.0.clone() });
        }
        Ok(Some(text))
    }

    /// The keys that a text of it holds.
    pub(super) fn parse(&self, text: &str) -> Result<Vec<ApiKey>, KeyFileError> {
        let path = || self.0.clone();
        let Contents { keys } = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            KeyFileError::Malformed { path: path(), line }
        })?;
        let repeated = keys.iter().enumerate().find(|(at, key)| keys[..*at].iter().any(|other| other.name == key.name));
        match repeated {
            Some((_, key)) => Err(KeyFileError::Repeated { path: path(), name: key.name.clone() }),
            None => Ok(keys),
        }
    }

    fn unreadable(&self, source: io::Error) -> KeyFileError {
        KeyFileError::Unreadable { path: self.0.clone(), source }
    }

    /// Changes the keys, one process at a time. A reader sees the old file or the new one, which has the same owner.
    fn change(&self, edit: impl FnOnce(&mut Vec<ApiKey>) -> Result<(), KeyFileError>) -> Result<(), KeyFileError> {
        let unwritable = |source: io::Error| KeyFileError::Unwritable { path: self.0.clone(), source };
        let path = behind_links(&self.0).map_err(unwritable)?;
        fs_err::create_dir_all(folder_of(&path)).map_err(unwritable)?;
        let lock = open_lock(&path).map_err(unwritable)?;
        lock.lock().map_err(unwritable)?;

        let mut keys = Self(path.clone()).read()?;
        edit(&mut keys)?;
        let text = toml::to_string(&Contents { keys }).map_err(|error| unwritable(io::Error::other(error)))?;
        let new = beside(&path, ".new");
        // What a killed process left may belong to somebody with other rights.
        remove_if_there(&new).map_err(unwritable)?;
        let mut file = create(&new).map_err(unwritable)?;
        hand_over(&file, &path)
            .and_then(|()| keep_readers(&file, &path))
            .and_then(|()| file.write_all(HEAD.as_bytes()))
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs_err::rename(&new, &path).map_err(with_way_out))
            .and_then(|()| sync_folder_of(&path))
            .map_err(|error| {
                // The error that matters is the first one.
                let _ = fs_err::remove_file(&new);
                unwritable(error)
            })
    }
}

/// Says what to do where a file was mounted by itself, as containers can have it: no other one can take its place.
fn with_way_out(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::ResourceBusy {
        return error;
    }
    let way_out = "the file is mounted by itself, and no new one can take its place: mount the folder it is in";
    io::Error::new(error.kind(), format!("{error}; {way_out}"))
}

/// Makes a file for its owner alone. What has its name already is not used: in somebody else's folder, that may be a link
/// to any file of the system.
fn create(path: &Path) -> io::Result<fs_err::File> {
    let mut options = fs_err::OpenOptions::new();
    options.create_new(true).write(true);
    options.options_mut().mode(MODE);
    options.open(path)
}

/// Lets those read a new file who could read the old one, and nobody else: a server may read its keys by that alone, and
/// would go on with those that it has, removed ones too.
fn keep_readers(new: &fs_err::File, old: &Path) -> io::Result<()> {
    let Some(meta) = if_there(fs_err::metadata(old))? else { return Ok(()) };
    let list = access_list::read(old)?;
    let readers = meta.mode() & READABLE_BY_OTHERS;
    // Where there is a list, the bits of the group say what its entries may have at most, and not whose they are.
    let is_of_group = list.as_deref().map_or(readers & READABLE_BY_GROUP != 0, access_list::lets_group_read);
    if is_of_group && readers & READABLE_BY_ALL == 0 && new.metadata()?.gid() != meta.gid() {
        let group = meta.gid();
        let refused = format!(
            "the group {group} may read them, and this user cannot give it a file: run the command as root or as a \
             member of that group, or take its right with `chmod g-r`"
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, refused));
    }
    if let Some(list) = list {
        return access_list::write(new, &list);
    }
    access_list::remove(new)?; // what the folder gives to new files
    new.set_permissions(PermissionsExt::from_mode(MODE | readers))
}

/// Opens the file by whose lock those wait for each other who change the keys, made if need be.
fn open_lock(keys: &Path) -> io::Result<fs_err::File> {
    let path = beside(keys, ".lock");
    match create(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut options = fs_err::OpenOptions::new();
            // A pipe would wait for somebody who reads from it.
            options.write(true).options_mut().custom_flags(libc::O_NONBLOCK);
            options.open(&path)
        }
        Err(error) => Err(error),
        Ok(lock) => {
            hand_over(&lock, keys).inspect_err(|_| {
                // It would keep the owner of the keys out.
                let _ = fs_err::remove_file(&path);
            })?;
            Ok(lock)
        }
    }
}

#[cfg(test)]
mod tests;
