//! What the system says of the process, by the names that Prometheus's own clients have for it, so that dashboards of
//! processes find Granary too.

/// A number about the process.
struct Measure {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: f64,
}

/// The metrics `process_*` of this moment in Prometheus's text format; empty where the system does not say.
#[must_use]
pub fn process_metrics() -> String {
    let text = |Measure { name, kind, help, value }: Measure| {
        format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n")
    };
    measures().unwrap_or_default().into_iter().map(text).collect::<Vec<_>>().concat()
}

#[cfg(target_os = "linux")]
fn measures() -> Option<Vec<Measure>> {
    let process = procfs::process::Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
    let max_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    Some(vec![
        Measure {
            name: "process_cpu_seconds_total",
            kind: "counter",
            help: "Seconds of processors that the process has used.",
            value: seconds(stat.utime + stat.stime),
        },
        Measure {
            name: "process_resident_memory_bytes",
            kind: "gauge",
            help: "Resident bytes of the process.",
            value: (stat.rss * procfs::page_size()) as f64,
        },
        Measure {
            name: "process_open_fds",
            kind: "gauge",
            help: "Files that the process has open, connections included.",
            value: process.fd_count().ok()? as f64,
        },
        Measure {
            name: "process_max_fds",
            kind: "gauge",
            help: "Files that the process may have open.",
            value: max_files.map_or(f64::INFINITY, |n_files| n_files as f64),
        },
        Measure {
            name: "process_threads",
            kind: "gauge",
            help: "Threads of the process.",
            value: stat.num_threads as f64,
        },
        Measure {
            name: "process_start_time_seconds",
            kind: "gauge",
            help: "When the process was started, in seconds since 1970.",
            value: procfs::boot_time_secs().ok()? as f64 + seconds(stat.starttime),
        },
    ])
}

#[cfg(not(target_os = "linux"))]
fn measures() -> Option<Vec<Measure>> {
    None
}
