//! What the control groups above this process leave it: <https://docs.kernel.org/admin-guide/cgroup-v2.html>.
//!
//! A limit counts for everything below it, so the groups are walked up to the root, and the narrowest limit wins. Both
//! versions of control groups are read: many hosts still have the first.

use std::path::{Path, PathBuf};

/// The files of one version's memory controller.
struct MemoryFiles {
    limit: &'static str,
    usage: &'static str,
    /// The line of `memory.stat` that counts what the kernel drops when memory is short.
    reclaimable: &'static str,
}

const MEMORY_V2: MemoryFiles =
    MemoryFiles { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file " };
const MEMORY_V1: MemoryFiles =
    MemoryFiles { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", reclaimable: "total_inactive_file " };

/// Where the first version's processor controller is mounted: not every host links the short name to the long one.
const CPU_V1_MOUNTS: [&str; 2] = ["cpu", "cpu,cpuacct"];

/// A memory limit, and what is left below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    pub(super) limit_bytes: u64,
    pub(super) available_bytes: u64,
}

/// The control groups of this process, as far as they can be seen.
pub(super) struct Cgroups {
    unified: Vec<PathBuf>,
    memory_v1: Vec<PathBuf>,
    cpu_v1: Vec<PathBuf>,
}

impl Cgroups {
    /// Reads which groups this process is in, below `root`.
    pub(super) fn of_self(root: &Path) -> Self {
        let groups = fs_err::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        // `hierarchy:controllers:path`; version 2 is the hierarchy 0, without controllers.
        let group = |wanted: fn(&str, &str) -> bool| {
            let mut lines = groups.lines().filter_map(|line| {
                let (hierarchy, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                wanted(hierarchy, controllers).then_some(path)
            });
            lines.next()
        };
        let mounts = root.join("sys/fs/cgroup");
        let unified = group(|hierarchy, controllers| hierarchy == "0" && controllers.is_empty());
        let memory_v1 = group(|_, controllers| controllers.split(',').any(|controller| controller == "memory"));
        let cpu_v1 = group(|_, controllers| controllers.split(',').any(|controller| controller == "cpu"));
        Self {
            unified: unified.map_or_else(Vec::new, |path| upwards(&mounts, path)),
            memory_v1: memory_v1.map_or_else(Vec::new, |path| upwards(&mounts.join("memory"), path)),
            cpu_v1: cpu_v1.map_or_else(Vec::new, |path| {
                CPU_V1_MOUNTS.iter().flat_map(|mount| upwards(&mounts.join(mount), path)).collect()
            }),
        }
    }

    /// The cores' worth of time this process may use; `None` without a limit.
    pub(super) fn cpu_quota(&self) -> Option<f64> {
        let unified = self.unified.iter().filter_map(|group| {
            let text = fs_err::read_to_string(group.join("cpu.max")).ok()?;
            let (quota, period) = text.split_once(' ')?;
            share(quota, period)
        });
        let v1 = self.cpu_v1.iter().filter_map(|group| {
            let quota = fs_err::read_to_string(group.join("cpu.cfs_quota_us")).ok()?;
            let period = fs_err::read_to_string(group.join("cpu.cfs_period_us")).ok()?;
            share(&quota, &period)
        });
        unified.chain(v1).min_by(f64::total_cmp)
    }

    /// Every memory limit above this process.
    pub(super) fn memory_limits(&self) -> impl Iterator<Item = MemoryLimit> {
        let unified = self.unified.iter().map(|group| (group, &MEMORY_V2));
        let v1 = self.memory_v1.iter().map(|group| (group, &MEMORY_V1));
        unified.chain(v1).filter_map(|(group, files)| memory_limit(group, files))
    }
}

/// A quota as a share of its period; `None` where it is "max" or, in version 1, -1.
fn share(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

fn memory_limit(group: &Path, files: &MemoryFiles) -> Option<MemoryLimit> {
    let number = |name: &str| fs_err::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // "max" is no number.
    let limit_bytes = number(files.limit)?;
    let stat = fs_err::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat.lines().find_map(|line| line.strip_prefix(files.reclaimable)?.trim().parse::<u64>().ok());
    let used = number(files.usage).unwrap_or(0).saturating_sub(reclaimable.unwrap_or(0));
    Some(MemoryLimit { limit_bytes, available_bytes: limit_bytes.saturating_sub(used) })
}

/// The group's folder and those above it, up to the mount. Inside a container the path may be the host's, of which only
/// the mount itself is there: folders that are missing say nothing.
fn upwards(mount: &Path, group: &str) -> Vec<PathBuf> {
    let group = Path::new(group.trim_start_matches('/'));
    group.ancestors().map(|above| mount.join(above)).collect()
}
