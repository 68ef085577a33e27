//! What opening a session leaves in memory of the files that the runtime mapped.
//!
//! OpenVINO maps the weights once for each session, reads them all to lay them out for its products, and keeps the map: a
//! copy of the file a session that counts as resident. What is needed of it later is what a text looks up, rows of the
//! embedding table.

use std::path::PathBuf;

#[cfg(target_os = "linux")]
pub(super) use linux::Watch;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;

    use parking_lot::{Mutex, MutexGuard};
    use procfs::process::{MMapPath, MemoryMap, Process};

    use super::PathBuf;

    /// Maps that appear between two looks belong to the one session that is being opened.
    static TURN: Mutex<()> = Mutex::new(());

    /// Sees which files are mapped while it lives. One at a time: another waits.
    pub(in super::super) struct Watch {
        files: Vec<PathBuf>,
        before: HashSet<(u64, u64)>,
        _turn: MutexGuard<'static, ()>,
    }

    impl Watch {
        /// Begins to watch maps of these files.
        pub(in super::super) fn begin(files: &[PathBuf]) -> Self {
            let turn = TURN.lock();
            let files: Vec<PathBuf> = files.iter().filter_map(|file| fs_err::canonicalize(file).ok()).collect();
            let before = maps_of(&files).iter().map(|map| map.address).collect();
            Self { files, before, _turn: turn }
        }

        /// Takes the pages of new maps out of the process's memory. They come back from the system's page cache as they are
        /// read. To be called while the session that made them is open.
        #[allow(unsafe_code, reason = "the maps are the runtime's, which has no call for it")]
        pub(in super::super) fn let_go(self) {
            for map in maps_of(&self.files) {
                let (start, end) = map.address;
                let (Ok(address), Ok(length)) = (usize::try_from(start), usize::try_from(end - start)) else {
                    continue;
                };
                if self.before.contains(&map.address) || !holds_no_writes(&map) {
                    continue;
                }
                let address = std::ptr::without_provenance_mut(address);
                // SAFETY: the map was made by the session that is open and was opened last, so that nothing unmaps it
                // meanwhile; and all its pages are those of a file of weights, which nobody writes to: the next access
                // reads the same bytes again.
                let dropped = unsafe { rustix::mm::madvise(address, length, rustix::mm::Advice::LinuxDontNeed) };
                if let Err(error) = dropped {
                    tracing::debug!(%error, "what is mapped of a model's weights stays in memory");
                }
            }
        }
    }

    fn maps_of(files: &[PathBuf]) -> Vec<MemoryMap> {
        if files.is_empty() {
            return Vec::new();
        }
        let maps = Process::myself().and_then(|process| process.smaps());
        let maps = maps.inspect_err(|error| tracing::debug!(%error, "what is mapped cannot be read"));
        let is_of_them = |map: &MemoryMap| matches!(&map.pathname, MMapPath::Path(path) if files.contains(path));
        maps.into_iter().flatten().filter(is_of_them).collect()
    }

    /// Whether each of its pages is the file's own. What was written to a private map is nowhere else.
    fn holds_no_writes(map: &MemoryMap) -> bool {
        ["Anonymous", "Swap"].iter().all(|kind| map.extension.map.get(*kind) == Some(&0))
    }

    #[cfg(test)]
    mod tests {
        use std::ptr;

        use rustix::mm::{MapFlags, ProtFlags};

        use super::*;

        const LENGTH: usize = 1 << 20;

        /// A private map of a file of ones, every page of it read.
        #[allow(unsafe_code, reason = "a map of a file has no safe wrapper")]
        fn map(file: &fs_err::File, may_write: bool) -> &'static mut [u8] {
            let protection = if may_write { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
            // SAFETY: a new map of a file that nobody changes, which is never unmapped.
            let bytes = unsafe {
                let start =
                    rustix::mm::mmap(ptr::null_mut(), LENGTH, protection, MapFlags::PRIVATE, file, 0).expect("a map");
                std::slice::from_raw_parts_mut(start.cast::<u8>(), LENGTH)
            };
            assert_eq!(bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>(), LENGTH);
            bytes
        }

        fn resident(files: &[PathBuf], bytes: &[u8]) -> Option<u64> {
            let start = bytes.as_ptr().addr() as u64;
            let maps = maps_of(files);
            let map = maps.iter().find(|map| map.address.0 <= start && start < map.address.1)?;
            map.extension.map.get("Rss").copied()
        }

        #[test]
        fn pages_of_new_maps_go_and_come_back_unless_something_was_written_to_them() {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().canonicalize().expect("its path").join("weights");
            fs_err::write(&path, vec![1; LENGTH]).expect("a file");
            let (file, files) = (fs_err::File::open(&path).expect("the file"), [path]);
            // Whoever has another file between them: neighbours of one file become one map.
            let _others: Vec<_> = (0..4).map(|_| map(&file, true)).collect();
            let old = map(&file, false);
            let watch = Watch::begin(&files);
            let (new, written) = (map(&file, false), map(&file, true));
            written[5] = 7;
            watch.let_go();
            for (bytes, expected) in [(&*old, LENGTH as u64), (new, 0), (written, LENGTH as u64)] {
                assert_eq!(resident(&files, bytes), Some(expected));
            }
            assert_eq!((old[5], new[5], written[5], written[6]), (1, 1, 7, 1));
            assert!(resident(&files, new) > Some(0));
        }
    }
}

/// Other systems do not say what is mapped.
#[cfg(not(target_os = "linux"))]
pub(super) struct Watch;

#[cfg(not(target_os = "linux"))]
impl Watch {
    pub(super) fn begin(_files: &[PathBuf]) -> Self {
        Self
    }

    pub(super) fn let_go(self) {}
}
