//! The file of keys, `keys.toml`: hashes, names and what they allow. `granary keys` writes it, the server reads it.

use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::{ApiKey, KeyName};
use crate::files::{beside, if_there, remove_if_there};
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
        let text = fs_err::read_to_string(&self.0).map_err(|error| self.unreadable(error.kind().into()))?;
        let mode =
            fs_err::metadata(&self.0).map_err(|error| self.unreadable(error.kind().into()))?.permissions().mode();
        if mode & WRITABLE_BY_OTHERS != 0 {
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
        let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        fs_err::create_dir_all(folder).map_err(unwritable)?;
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
            .and_then(|()| fs_err::File::open(folder)?.sync_all())
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

/// The access control list of a file (acl(5)), where the system has such.
mod access_list {
    use std::io;
    use std::path::Path;

    #[cfg(target_os = "linux")]
    use rustix::{fs, io::Errno};

    #[cfg(target_os = "linux")]
    pub(super) const NAME: &str = "system.posix_acl_access";

    #[cfg(target_os = "linux")]
    pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
        let mut list = vec![0; 64 * 1024]; // as long as the kernel lets an attribute be
        match fs::getxattr(path, NAME, &mut list[..]) {
            Ok(n_bytes) => {
                list.truncate(n_bytes);
                Ok(Some(list))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None), // there is none, or the file system has none
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the mode of the file, too.
    #[cfg(target_os = "linux")]
    pub(super) fn write(file: &fs_err::File, list: &[u8]) -> io::Result<()> {
        Ok(fs::fsetxattr(file, NAME, list, fs::XattrFlags::empty())?)
    }

    #[cfg(target_os = "linux")]
    pub(super) fn remove(file: &fs_err::File) -> io::Result<()> {
        match fs::fremovexattr(file, NAME) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn read(_path: &Path) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn write(_file: &fs_err::File, _list: &[u8]) -> io::Result<()> {
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn remove(_file: &fs_err::File) -> io::Result<()> {
        Ok(())
    }

    /// Whether the file's own group is among those who may read: after the version, four bytes, each entry has who it is
    /// for, what they may, and an id, little-endian.
    pub(super) fn lets_group_read(list: &[u8]) -> bool {
        const GROUP: u8 = 4;
        const READ: u8 = 4;
        list.get(4..).unwrap_or_default().chunks_exact(8).any(|entry| entry[0] == GROUP && entry[2] & READ != 0)
    }
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
mod tests {
    use super::*;
    use crate::domain::{KeyHash, Scope, Scopes};

    fn key(name: &str) -> ApiKey {
        ApiKey {
            name: name.parse().expect("a name"),
            hash: KeyHash::of(name),
            scopes: Scopes::of([Scope::Read, Scope::Write]).expect("scopes"),
            model: Some("m".parse().expect("a name")),
            rate: std::num::NonZeroU32::new(7),
            tokens: std::num::NonZeroU32::new(70),
        }
    }

    fn in_a_folder() -> (tempfile::TempDir, KeyFile) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::at(folder.path().join("deep/er/keys.toml"));
        (folder, file)
    }

    #[test]
    fn keys_are_read_as_they_were_added() {
        let (_folder, file) = in_a_folder();
        assert_eq!(file.read().expect("no file, no keys"), []);
        file.add(key("a")).expect("added");
        file.add(key("b")).expect("added");
        assert!(matches!(file.add(key("a")), Err(KeyFileError::Taken(name)) if name.as_str() == "a"));
        assert_eq!(file.read().expect("keys"), [key("a"), key("b")]);
        file.remove(&key("a").name).expect("removed");
        assert!(matches!(file.remove(&key("a").name), Err(KeyFileError::NotThere { .. })));
        file.remove(&key("b").name).expect("removed");
        assert_eq!(file.text().expect("a file"), Some(HEAD.to_owned() + "keys = []\n"));
    }

    #[test]
    fn the_file_is_its_owners_and_of_those_who_may_read_it() {
        let (_folder, file) = in_a_folder();
        file.add(key("a")).expect("added");
        let mode = || fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        for shown in [0o600, 0o604, 0o640, 0o644] {
            fs_err::set_permissions(file.path(), PermissionsExt::from_mode(shown)).expect("shown to others");
            file.add(key("b")).expect("added");
            assert_eq!(mode(), shown, "a server that reads it does so on");
            file.remove(&key("b").name).expect("removed");
            assert_eq!(mode(), shown);
        }
        fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o755)).expect("shown to others");
        file.add(key("b")).expect("added");
        assert_eq!(mode(), 0o644, "nobody runs it");
        fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o660)).expect("given to others");
        assert!(matches!(file.read(), Err(KeyFileError::Exposed { .. })));
    }

    /// An access control list by which user 12345 may read, and the group only if `group` says so.
    #[cfg(target_os = "linux")]
    fn list_for_one_user(group: u8) -> Vec<u8> {
        let mut list = vec![2, 0, 0, 0]; // its version
        // Who (the owner, a user, the group, all of these at most, others), what they may, the user's id.
        for (who, may, id) in
            [(1, 6, u32::MAX), (2, 4, 12_345), (4, group, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        {
            list.extend([who, 0, may, 0]);
            list.extend(u32::to_le_bytes(id));
        }
        list
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_access_control_list_stays_and_none_is_inherited() {
        use rustix::fs::{XattrFlags, setxattr};

        let (_folder, file) = in_a_folder();
        file.add(key("a")).expect("added");
        let list = list_for_one_user(0);
        assert!(!access_list::lets_group_read(&list) && access_list::lets_group_read(&list_for_one_user(4)));
        let set = |path: &Path, name: &str| setxattr(path, name, &list, XattrFlags::empty());
        if set(file.path(), access_list::NAME).is_err() {
            eprintln!("skipped: this file system has no access control lists");
            return;
        }
        file.add(key("b")).expect("added");
        let kept = access_list::read(file.path()).expect("read");
        assert_eq!(
            kept,
            Some(list.clone()),
            "the server that reads it by this goes on, and its group does not read it now"
        );

        fs_err::remove_file(file.path()).expect("removed");
        file.add(key("a")).expect("added");
        fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o640)).expect("shown to the group");
        set(file.path().parent().expect("a folder"), "system.posix_acl_default").expect("set");
        file.add(key("b")).expect("added");
        assert_eq!(access_list::read(file.path()).expect("read"), None);
        assert_eq!(fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn whoever_changes_the_keys_their_owner_stays() {
        use std::os::unix::fs::chown;
        let (_folder, file) = in_a_folder();
        let folder = file.path().parent().expect("a folder");
        fs_err::create_dir_all(folder).expect("made");
        if chown(folder, Some(7), Some(8)).is_err() {
            println!("skipped: only root can give files to other users");
            return;
        }
        let owner_of = |path: &Path| {
            let metadata = fs_err::metadata(path).expect("it is there");
            (metadata.uid(), metadata.gid())
        };
        let lock = beside(file.path(), ".lock");
        file.add(key("a")).expect("added");
        assert_eq!((owner_of(file.path()), owner_of(&lock)), ((7, 8), (7, 8)), "the folder's owner");
        chown(file.path(), Some(9), Some(10)).expect("given away");
        fs_err::remove_file(&lock).expect("removed");
        file.remove(&key("a").name).expect("removed");
        assert_eq!((owner_of(file.path()), owner_of(&lock)), ((9, 10), (9, 10)), "the old file's owner");
        assert_eq!(fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777, 0o600);

        // Of this user, and read by the server through its group.
        let own = fs_err::metadata(folder.parent().expect("a folder")).expect("it is there").uid();
        chown(file.path(), Some(own), Some(10)).expect("given away");
        fs_err::set_permissions(file.path(), PermissionsExt::from_mode(0o640)).expect("shown to the group");
        file.add(key("a")).expect("added");
        let mode = fs_err::metadata(file.path()).expect("a file").permissions().mode() & 0o777;
        assert_eq!((owner_of(file.path()), mode), ((own, 10), 0o640));
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_costs_no_other_file_anything() {
        let (folder, file) = in_a_folder();
        let other = folder.path().join("other");
        fs_err::write(&other, "kept").expect("written");
        fs_err::create_dir_all(file.path().parent().expect("a folder")).expect("made");
        std::os::unix::fs::symlink(&other, beside(file.path(), ".lock")).expect("linked");
        file.add(key("a")).expect("added");
        assert_eq!(fs_err::read_to_string(&other).expect("it is there"), "kept");
    }

    #[test]
    fn a_pipe_in_the_place_of_the_lock_keeps_nobody_waiting() {
        use rustix::fs::{CWD, Mode, mkfifoat};
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::at(folder.path().join("keys.toml"));
        mkfifoat(CWD, beside(file.path(), ".lock"), Mode::RUSR | Mode::WUSR).expect("a pipe");
        let refused = file.add(key("a")).expect_err("nobody reads from it");
        assert!(matches!(refused, KeyFileError::Unwritable { .. }), "{refused}");
    }

    #[test]
    fn a_link_to_the_file_stays_one() {
        let (folder, file) = in_a_folder();
        let link = KeyFile::at(folder.path().join("linked.toml"));
        let next = folder.path().join("links/next.toml");
        fs_err::create_dir(folder.path().join("links")).expect("a folder");
        std::os::unix::fs::symlink("links/next.toml", link.path()).expect("linked");
        std::os::unix::fs::symlink("../deep/er/keys.toml", &next).expect("linked");
        // They lead nowhere yet, which keeps nobody from making the first key.
        let refused = link.read().expect_err("they are not the same as no file");
        assert!(matches!(refused, KeyFileError::Unreadable { .. }), "{refused}");
        link.add(key("a")).expect("added");
        assert!(link.path().is_symlink() && next.is_symlink());
        link.add(key("b")).expect("added");
        assert!(link.path().is_symlink() && next.is_symlink());
        assert_eq!(file.read().expect("keys"), [key("a"), key("b")]);
        for (at, n) in [("", 3), ("links", 1)] {
            let there = fs_err::read_dir(folder.path().join(at)).expect("a folder").count();
            assert_eq!(there, n, "nothing is left beside the links");
        }
    }

    #[test]
    fn a_file_that_is_mounted_by_itself_is_refused_with_the_way_out() {
        let busy = with_way_out(io::ErrorKind::ResourceBusy.into()).to_string();
        assert!(busy.ends_with("mount the folder it is in"), "{busy}");
        let full = with_way_out(io::ErrorKind::StorageFull.into()).to_string();
        assert_eq!(full, io::Error::from(io::ErrorKind::StorageFull).to_string());
    }

    #[test]
    fn a_link_to_the_file_that_somebody_else_has_made_is_not_followed() {
        let (folder, _) = in_a_folder();
        let [link, other] = ["keys.toml", "other.toml"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&other, &link).expect("linked");
        if std::os::unix::fs::lchown(&link, Some(7), None).is_err() {
            println!("skipped: only root can give files to other users");
            return;
        }
        let refused = KeyFile::at(link.clone()).add(key("a")).expect_err("it may lead anywhere");
        let sentence = super::super::sentence(&refused);
        assert!(sentence.contains("be written: `") && sentence.contains("is a link of the user 7"), "{sentence}");
        assert_eq!(fs_err::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is made beside either");
        std::os::unix::fs::lchown(&link, Some(rustix::process::geteuid().as_raw()), None).expect("given back");
        KeyFile::at(link).add(key("a")).expect("its own link");
        assert_eq!(KeyFile::at(other).read().expect("keys"), [key("a")]);
    }

    #[test]
    fn links_in_a_circle_are_refused() {
        let (folder, _) = in_a_folder();
        let [link, other] = ["a.toml", "b.toml"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&other, &link).expect("linked");
        std::os::unix::fs::symlink(&link, &other).expect("linked");
        assert!(matches!(KeyFile::at(link.clone()).add(key("a")), Err(KeyFileError::Unwritable { .. })));
        assert!(link.is_symlink() && other.is_symlink());
    }

    #[test]
    fn what_is_wrong_is_said_without_what_stands_there() {
        let (_folder, file) = in_a_folder();
        for text in [
            "keys = ['grn_secret']",
            "[[keys]]\nname = 'a'\nkey = 'grn_secret'",
            "[[keys]]\nname = 'a'\nhash = 'grn_secret'",
            "[[keys]]\nhash = grn_secret",
            "[[keys]]\nname = 'grn secret'",
        ] {
            let error = file.parse(text).expect_err("malformed");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
            assert!(error.to_string().contains(" line "), "{error}");
        }
    }

    #[test]
    fn two_who_write_at_once_lose_nothing() {
        let (_folder, file) = in_a_folder();
        std::thread::scope(|scope| {
            for writer in ["a", "b"] {
                let file = file.clone();
                scope.spawn(move || (0..20).for_each(|n| file.add(key(&format!("{writer}{n}"))).expect("added")));
            }
        });
        assert_eq!(file.read().expect("keys").len(), 40);
    }
}
