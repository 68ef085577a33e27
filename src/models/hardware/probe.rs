//! What this process can use of the machine it runs on.

use std::path::Path;

use serde::Serialize;

use super::cgroup::Cgroups;
use super::gpu::gpus;
use crate::engine::{CpuFeatures, Gpu};

/// The machine, as far as this process may use it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    /// What its maker calls the processor; ARM kernels do not say.
    pub cpu: Option<String>,
    /// The instruction sets that decide how fast models run.
    pub features: CpuFeatures,
    /// Threads that can run at once: within the affinity of the process, the quota of its control groups, and
    /// `engine.cores` where a [`Selector`](super::Selector) has looked.
    pub cores: usize,
    /// The quota itself, in cores' worth of time; `None` without one.
    pub cpu_quota: Option<f64>,
    /// `None` where the kernel does not say.
    pub memory: Option<Memory>,
    /// GPUs that CUDA could use.
    pub gpus: Vec<Gpu>,
}

/// Memory that this process can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The machine's, or the least that a control group above the process allows.
    pub limit_bytes: u64,
    /// What is free of it or can be freed, with what this process holds already.
    pub available_bytes: u64,
}

impl Memory {
    /// What the process takes without a model.
    const PROCESS_BYTES: u64 = 64 << 20;

    /// What models may take: four fifths of the limit, or what is available where that is less, without what the
    /// process takes itself.
    #[must_use]
    pub fn for_models(self) -> u64 {
        let most = self.limit_bytes / 5 * 4;
        most.min(self.available_bytes).saturating_sub(Self::PROCESS_BYTES)
    }

    /// The same, were all of it available.
    #[must_use]
    pub fn most_for_models(self) -> u64 {
        Self { available_bytes: self.limit_bytes, ..self }.for_models()
    }
}

impl Machine {
    /// Looks at this machine. Blocks: a GPU's driver may take a moment to answer.
    #[must_use]
    pub fn probe() -> Self {
        Self { gpus: gpus(), ..Self::probe_at(Path::new("/"), affinity()) }
    }

    /// Looks at the files of a machine below `root`, where the affinity of the process is so many cores. Sees no GPU.
    #[must_use]
    pub fn probe_at(root: &Path, affinity: usize) -> Self {
        let read = |path: &str| fs_err::read_to_string(root.join(path)).unwrap_or_default();
        let cgroups = Cgroups::of_self(root);
        let cpuinfo = read("proc/cpuinfo");
        let cpu_quota = cgroups.cpu_quota();
        Self {
            architecture: std::env::consts::ARCH.to_owned(),
            cpu: cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(value).map(str::to_owned),
            features: CpuFeatures::from_cpuinfo(&cpuinfo),
            cores: within(affinity, cpu_quota),
            cpu_quota,
            memory: memory(&read("proc/meminfo"), &read("proc/self/status"), &cgroups),
            gpus: Vec::new(),
        }
    }
}

/// Threads that this process is to run at once: as many as its affinity and the quota of its control groups allow, and no
/// more than `at_most` (`engine.cores`) unless that is 0.
#[must_use]
pub fn cores(at_most: usize) -> usize {
    let usable = within(affinity(), Cgroups::of_self(Path::new("/")).cpu_quota());
    if at_most == 0 { usable } else { usable.min(at_most) }
}

/// Cores that the process may run on, whatever its quota: the standard library's own count makes 1 of a quota of 1.9.
fn affinity() -> usize {
    #[cfg(target_os = "linux")]
    if let Ok(allowed) = rustix::thread::sched_getaffinity(None) {
        return allowed.count() as usize;
    }
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// At least one.
fn within(affinity: usize, cpu_quota: Option<f64>) -> usize {
    cpu_quota.map_or(affinity, |quota| affinity.min(nearest(quota))).max(1)
}

/// Whole cores of a quota: for less than half of one, a thread would be stopped for most of its time.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
fn nearest(quota: f64) -> usize {
    quota.round() as usize
}

fn memory(meminfo: &str, status: &str, cgroups: &Cgroups) -> Option<Memory> {
    let total = bytes_of(meminfo, "MemTotal")?;
    let free = bytes_of(meminfo, "MemAvailable").unwrap_or(total);
    let narrowest = |limit: u64, available: u64| {
        cgroups.memory_limits().fold((limit, available), |(limit, available), group| {
            (limit.min(group.limit_bytes), available.min(group.available_bytes))
        })
    };
    let (limit_bytes, available) = narrowest(total, free);
    let own = bytes_of(status, "VmRSS").unwrap_or(0);
    Some(Memory { limit_bytes, available_bytes: available.saturating_add(own).min(limit_bytes) })
}

/// The value of a line such as `MemTotal:  24684084 kB`, in bytes.
pub(in super::super) fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))?;
    let number: u64 = value(line)?.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

fn value(line: &str) -> Option<&str> {
    line.split_once(':').map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::CpuFeature;

    const MEMINFO: &str = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   12582912 kB\n";
    const GIB: u64 = 1 << 30;

    /// A machine of 16 GiB with 12 free, a process of 512 MiB on it, and these files.
    fn machine(files: &[(&str, &str)], affinity: usize) -> Machine {
        let root = tempfile::tempdir().expect("a folder");
        let usual = [
            ("proc/meminfo", MEMINFO),
            ("proc/cpuinfo", "model name\t: A CPU\nflags\t\t: avx2 amx_bf16\n"),
            ("proc/self/status", "VmRSS:\t  524288 kB\n"),
        ];
        for (path, text) in usual.iter().chain(files) {
            let path = root.path().join(path);
            fs_err::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs_err::write(path, text).expect("written");
        }
        Machine::probe_at(root.path(), affinity)
    }

    fn memory_of(machine: &Machine) -> (u64, u64) {
        machine.memory.map_or((0, 0), |memory| (memory.limit_bytes, memory.available_bytes))
    }

    #[test]
    fn a_bare_machine_is_all_ours() {
        let bare = machine(&[("proc/self/cgroup", "0::/user.slice\n")], 8);
        assert_eq!((bare.cpu.as_deref(), bare.cores, bare.cpu_quota), (Some("A CPU"), 8, None));
        assert_eq!(bare.features, [CpuFeature::Avx2, CpuFeature::AmxBf16].into_iter().collect());
        assert_eq!(memory_of(&bare), (16 * GIB, 12 * GIB + GIB / 2));
        let memory = bare.memory.expect("known");
        assert_eq!(memory.for_models(), memory.available_bytes - Memory::PROCESS_BYTES);
    }

    #[test]
    fn the_narrowest_group_above_the_process_counts() {
        let files = [
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("sys/fs/cgroup/pod/container/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/pod/container/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/pod/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/pod/memory.current", "1610612736\n"),
            ("sys/fs/cgroup/pod/memory.stat", "anon 1\nfile 2\ninactive_file 536870912\n"),
        ];
        let small = machine(&files, 64);
        assert_eq!((small.cores, small.cpu_quota), (3, Some(2.5)));
        // 2 GiB, less 1.5 GiB used, of which 0.5 can be dropped and 0.5 is ours.
        assert_eq!(memory_of(&small), (2 * GIB, GIB + GIB / 2));
        assert_eq!(machine(&files, 1).cores, 1, "the affinity is narrower");
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root_whatever_its_path_says() {
        for path in ["/", "/docker/0123"] {
            let files = [
                ("proc/self/cgroup", format!("0::{path}\n")),
                ("sys/fs/cgroup/cpu.max", "50000 100000\n".to_owned()),
                ("sys/fs/cgroup/memory.max", "536870912\n".to_owned()),
            ];
            let files: Vec<_> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            let container = machine(&files, 64);
            assert_eq!((container.cores, container.cpu_quota), (1, Some(0.5)));
            assert_eq!(memory_of(&container).0, GIB / 2);
        }
    }

    #[test]
    fn memory_limits_of_the_first_version_count_too() {
        let files = [
            ("proc/self/cgroup", "9:name=systemd:/\n4:memory:/jobs/a\n1:cpu:/\n0::/\n"),
            ("sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/jobs/a/memory.usage_in_bytes", "805306368\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(memory_of(&machine(&files, 4)), (GIB, GIB / 4 + GIB / 2));
    }

    #[test]
    fn processor_quotas_of_the_first_version_count_too() {
        let files = [
            ("proc/self/cgroup", "4:cpu,cpuacct:/jobs/a\n1:name=systemd:/\n0::/\n"),
            ("sys/fs/cgroup/cpu/jobs/a/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/jobs/a/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us", "190000\n"),
            ("sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us", "100000\n"),
        ];
        let job = machine(&files, 64);
        assert_eq!((job.cores, job.cpu_quota), (2, Some(1.9)));
        assert_eq!(machine(&files[..3], 64).cpu_quota, None);
        // Where only the mount of both controllers is there.
        let renamed = files.map(|(path, text)| (path.replace("cgroup/cpu/", "cgroup/cpu,cpuacct/"), text));
        let renamed: Vec<_> = renamed.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert_eq!(machine(&renamed, 64).cpu_quota, Some(1.9));
    }

    #[test]
    fn a_quota_is_rounded_to_the_nearest_core() {
        for (quota, cores) in [(0.1, 1), (1.4, 1), (1.9, 2), (7.5, 8), (100.0, 64)] {
            assert_eq!(within(64, Some(quota)), cores, "{quota}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let nothing = Machine::probe_at(folder.path(), 3);
        assert_eq!((nothing.cpu, nothing.memory, nothing.cores), (None, None, 3));
        let files = [("proc/self/cgroup", "garbage\n0::/a\n"), ("sys/fs/cgroup/a/cpu.max", "x"), ("proc/meminfo", "?")];
        let garbled = machine(&files, 3);
        assert_eq!((garbled.memory, garbled.cores, garbled.cpu_quota), (None, 3, None));
    }

    #[test]
    fn the_standard_library_counts_the_same_cores_but_for_half_a_core_of_a_quota() {
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        let probed = Machine::probe().cores;
        assert!((parallelism..=parallelism + 1).contains(&probed), "{probed}, {parallelism}");
        assert_eq!([cores(0), cores(usize::MAX), cores(1)], [probed, probed, 1]);
    }
}
