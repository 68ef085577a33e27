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
    use procfs::ProcResult;
    use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps, Process};

    use super::PathBuf;

    /// Whole maps that appear between two looks belong to the one session that is being opened.
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
            let maps = Process::myself().and_then(|process| process.maps());
            let before = whole_maps(maps, &files).iter().map(|map| map.address).collect();
            Self { files, before, _turn: turn }
        }

        /// Takes the pages of new maps out of the process's memory. They come back from the system's page cache as they are
        /// read. To be called while the session that made them is open.
        #[allow(unsafe_code, reason = "the maps are the runtime's, which has no call for it")]
        pub(in super::super) fn let_go(self) {
            let maps = Process::myself().and_then(|process| process.smaps());
            for map in whole_maps(maps, &self.files) {
                let (start, end) = map.address;
                let (Ok(address), Ok(length)) = (usize::try_from(start), usize::try_from(end - start)) else {
                    continue;
                };
                if self.before.contains(&map.address) || !holds_no_writes(&map) {
                    continue;
                }
                let address = std::ptr::without_provenance_mut(address);
                // SAFETY: the map was made by the session that is open and was opened last, so that nothing unmaps it
                // meanwhile: maps of whole files are never one with another, nor a part of one. All its pages are those
                // of a file of weights, which nobody writes to: the next access reads the same bytes again.
                let dropped = unsafe { rustix::mm::madvise(address, length, rustix::mm::Advice::LinuxDontNeed) };
                if let Err(error) = dropped {
                    tracing::debug!(%error, "what is mapped of a model's weights stays in memory");
                }
            }
        }
    }

    /// The maps of these files that only read, from the first byte on, as OpenVINO's do. Others may join their neighbours:
    /// ONNX Runtime's own provider maps each tensor by itself.
    fn whole_maps(maps: ProcResult<MemoryMaps>, files: &[PathBuf]) -> Vec<MemoryMap> {
        let maps = maps.inspect_err(|error| tracing::debug!(%error, "what is mapped cannot be read"));
        let is_whole = |map: &MemoryMap| {
            let is_of_them = matches!(&map.pathname, MMapPath::Path(path) if files.contains(path));
            is_of_them && map.offset == 0 && !map.perms.contains(MMPermissions::WRITE)
        };
        maps.into_iter().flatten().filter(is_whole).collect()
    }

    /// Whether each of its pages is the file's own. What was written to a private map is nowhere else.
    fn holds_no_writes(map: &MemoryMap) -> bool {
        ["Anonymous", "Swap"].iter().all(|kind| map.extension.map.get(*kind) == Some(&0))
    }

    #[cfg(test)]
    #[allow(unsafe_code, reason = "maps of files have no safe wrapper")]
    mod tests {
        use std::ptr;

        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

        use super::*;

        const PAGE: usize = 4096;
        const LENGTH: usize = 256 * PAGE;

        /// A private map of a file of ones from a page on, every byte of it read.
        fn map(file: &fs_err::File, first_page: usize, protection: ProtFlags) -> &'static mut [u8] {
            let (length, offset) = (LENGTH - first_page * PAGE, (first_page * PAGE) as u64);
            // SAFETY: a new map of a file that nobody changes, which is never unmapped.
            let bytes = unsafe {
                let start = rustix::mm::mmap(ptr::null_mut(), length, protection, MapFlags::PRIVATE, file, offset);
                std::slice::from_raw_parts_mut(start.expect("a map").cast::<u8>(), length)
            };
            assert_eq!(bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>(), length);
            bytes
        }

        fn resident(bytes: &[u8]) -> u64 {
            let start = bytes.as_ptr().addr() as u64;
            let maps = Process::myself().and_then(|process| process.smaps()).expect("maps");
            let found = maps.iter().find(|map| map.address.0 <= start && start < map.address.1);
            found.expect("the map").extension.map["Rss"]
        }

        #[test]
        fn pages_of_whole_new_maps_go_and_come_back_unless_something_was_written_to_them() {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().canonicalize().expect("its path").join("weights");
            fs_err::write(&path, vec![1; LENGTH]).expect("a file");
            let file = fs_err::File::open(&path).expect("the file");
            let (read, write) = (ProtFlags::READ, ProtFlags::READ | ProtFlags::WRITE);

            let old = map(&file, 0, read);
            let watch = Watch::begin(&[path]);
            let (new, part, writable) = (map(&file, 0, read), map(&file, 1, read), map(&file, 0, write));
            let written = map(&file, 0, write);
            written[5] = 7;
            let start = written.as_mut_ptr().cast();
            // SAFETY: it is written to no more.
            unsafe { rustix::mm::mprotect(start, LENGTH, MprotectFlags::READ) }.expect("protected");
            watch.let_go();

            assert_eq!(resident(new), 0);
            for kept in [&*old, part, writable, written] {
                assert!(resident(kept) >= kept.len() as u64, "{} of {}", resident(kept), kept.len());
            }
            assert_eq!((new[5], written[5], written[6]), (1, 7, 1));
            assert!(resident(new) > 0);
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
