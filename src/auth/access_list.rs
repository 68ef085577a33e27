//! The access control list of a file (acl(5)), where the system has such.

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
