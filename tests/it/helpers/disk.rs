//! A disk that is soon full.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A small file system in memory, which only root may mount.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of a size as `mount` takes it. `None`, with a word of it on standard output, without the right to.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = TempDir::new().expect("a folder");
        let size = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { folder });
        }
        println!("skipped: only root can mount a small disk");
        None
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.path()).status();
        assert!(status.expect("mount runs").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
