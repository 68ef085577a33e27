//! Which machine, which commit, when: what makes a figure mean something later.

use std::process::Command;

use granary::engine::{CpuFeature, CpuFeatures};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::process::kib;

/// The machine a benchmark ran on.
#[derive(Debug, Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    /// Its instructions for products in bf16, which decide what `provider = "auto"` takes.
    bf16: &'static str,
    memory_bytes: u64,
    kernel: String,
}

/// What was measured and when.
#[derive(Debug, Serialize)]
pub struct Origin {
    machine: Machine,
    /// The commit of the working tree, with `+` when files differ from it.
    commit: String,
    /// RFC 3339, UTC.
    date: String,
    /// Processes that ran or waited for a core in the minute before the start, on average.
    load_before: f64,
}

impl Origin {
    /// Reads machine, commit and clock.
    pub fn here() -> Self {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond");
        let load = fs_err::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            machine: Machine::here(),
            commit: commit(),
            date: now.format(&Rfc3339).expect("a date of this century"),
            load_before: load.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default(),
        }
    }

    /// One line for the head of a report.
    pub fn line(&self) -> String {
        let Machine { cpu, cores, memory_bytes, bf16, kernel } = &self.machine;
        let memory_gib = *memory_bytes as f64 / f64::from(1 << 30);
        format!(
            "{cpu}, {cores} cores, {bf16}, {memory_gib:.0} GiB, Linux {kernel}; commit {}; {}; load before {:.2}",
            self.commit, self.date, self.load_before
        )
    }
}

impl Machine {
    fn here() -> Self {
        let cpuinfo = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |line: &str| line.split_once(": ").map(|(_, value)| value.to_owned());
        let name = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(field);
        let meminfo = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs_err::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            bf16: match CpuFeatures::probe() {
                features if features.has(CpuFeature::AmxBf16) => "AMX-bf16",
                features if features.has(CpuFeature::Avx512Bf16) => "AVX-512-bf16",
                _ => "no bf16",
            },
            memory_bytes: kib(&meminfo, "MemTotal:") * 1024,
            kernel: kernel.trim().to_owned(),
        }
    }
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    // The results of a run before this one make no difference to what is measured.
    let changed = git(&["status", "--porcelain", "--", ".", ":!benches/results"]).unwrap_or_default();
    if changed.is_empty() { commit } else { commit + "+" }
}
