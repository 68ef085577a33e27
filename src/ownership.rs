//! Whose a file is: what takes the place of another file belongs to whoever has that one, and not to root because the
//! command was run with `sudo`. The server could not open it: a database would not start, and of keys it would go on
//! with what it has read before. Links on the way are followed only where root or this user made them.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use crate::files::folder_of;

/// The most links that lead from one to the next, as for the system: where there are more, the file cannot be opened.
const MAX_LINKS: usize = 40;

/// Where a file is or will be, behind the links at its path: a new one takes the place of the old one, and not that of a
/// link to it.
///
/// # Errors
/// When neither root nor this user has made a link: it may lead root to any file of the system, or to where a new one does
/// harm.
pub fn behind_links(file: &Path) -> io::Result<PathBuf> {
    let mut path = file.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs_err::read_link(&path) else { break };
        let owner = fs_err::symlink_metadata(&path)?.uid();
        if ![rustix::process::geteuid().as_raw(), 0].contains(&owner) {
            let link = path.display();
            let refused = format!(
                "`{link}` is a link of the user {owner}, and is not followed: run the command as that user \
                 (`sudo -u '#{owner}' …`), or name the file itself"
            );
            return Err(io::Error::new(ErrorKind::PermissionDenied, refused));
        }
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Ok(path)
}

/// Gives a file that this process has made to the owner of the one at `old`, whose place it takes or which it guards.
/// Where there is none, it becomes the folder's owner's, if the system lets this process do that.
///
/// The file comes as a handle: in a folder of somebody else's, its name may lead elsewhere by now.
///
/// # Errors
/// When there is an old file, and the system does not let this process give others to its owner.
pub fn hand_over(file: &fs_err::File, old: &Path) -> io::Result<()> {
    let owner = match fs_err::metadata(old) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Whoever is not root keeps what they make in a folder of somebody else's.
            let _ = give(file, &fs_err::metadata(folder_of(old))?);
            return Ok(());
        }
        found => found?,
    };
    give(file, &owner).map_err(|error| {
        let (old, user) = (old.display(), owner.uid());
        let refused = format!(
            "`{old}` belongs to the user {user}, and what takes its place cannot be given to them ({error}): run the \
             command as that user (`sudo -u '#{user}' …`) or as root"
        );
        io::Error::new(error.kind(), refused)
    })
}

/// The group goes with the user. Where only that is another one, it may stay: it decides nothing where a file is its
/// owner's alone, and whoever lets the group read looks at it.
fn give(file: &fs_err::File, owner: &std::fs::Metadata) -> io::Result<()> {
    let made = file.metadata()?;
    if made.uid() == owner.uid() {
        if made.gid() != owner.gid() {
            let _ = fchown(file, None, Some(owner.gid()));
        }
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}
