//! What /proc says of a process with its children, and of the machine as a whole.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The kernel counts CPU time in hundredths of a second towards programs (`USER_HZ`), whatever its own clock is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Others' share of the machine above which figures are called noisy.
pub const NOISY_SHARE: f64 = 0.05;

/// A process and all its children.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time since the start.
    pub cpu: Duration,
    /// Memory that is resident now.
    pub rss_bytes: u64,
    /// The most that has been resident since the start; of children, the sum of their own peaks.
    pub peak_rss_bytes: u64,
}

impl Usage {
    /// Reads the process and its children; nothing of those that have ended.
    pub fn of_tree(pid: u32) -> Self {
        let mut total = Self::default();
        for pid in tree(pid) {
            let one = Self::of(pid);
            total.cpu += one.cpu;
            total.rss_bytes += one.rss_bytes;
            total.peak_rss_bytes += one.peak_rss_bytes;
        }
        total
    }

    /// Files and connections that a process has open, without its children's.
    pub fn open_files(pid: u32) -> usize {
        fs_err::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
    }

    fn of_self() -> Self {
        Self::of(std::process::id())
    }

    fn of(pid: u32) -> Self {
        let ticks: u64 = stat(pid).map_or(0, |fields| fields[10] + fields[11]); // utime and stime
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Self {
            cpu: Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND),
            rss_bytes: kib(&status, "VmRSS:") * 1024,
            peak_rss_bytes: kib(&status, "VmHWM:") * 1024,
        }
    }
}

/// Where the machine's CPU time goes from here on.
pub struct CpuMeter {
    pid: u32,
    started: Instant,
    server: Duration,
    client: Duration,
    machine: Duration,
}

/// What a [`CpuMeter`] has seen.
#[derive(Clone, Copy, Debug)]
pub struct CpuTimes {
    /// On the clock.
    pub elapsed: Duration,
    /// The server's CPU time.
    pub server: Duration,
    /// This process's.
    pub client: Duration,
    /// Everything else's.
    pub others: Duration,
}

impl CpuMeter {
    /// Begins, for the server with this process id.
    pub fn start(pid: u32) -> Self {
        let (server, client) = (Usage::of_tree(pid).cpu, Usage::of_self().cpu);
        Self { pid, started: Instant::now(), server, client, machine: machine_cpu() }
    }

    /// The times since the start.
    pub fn read(&self) -> CpuTimes {
        let server = Usage::of_tree(self.pid).cpu.saturating_sub(self.server);
        let client = Usage::of_self().cpu.saturating_sub(self.client);
        let machine = machine_cpu().saturating_sub(self.machine);
        let others = machine.saturating_sub(server + client);
        CpuTimes { elapsed: self.started.elapsed(), server, client, others }
    }
}

impl CpuTimes {
    /// Others' share of the machine, 0 to 1.
    pub fn others_share(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        self.others.as_secs_f64() / (self.elapsed.as_secs_f64() * cores)
    }
}

/// CPU time of everything that runs on the machine, taken by others (steal) included.
fn machine_cpu() -> Duration {
    let stat = fs_err::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system (idle iowait) irq softirq steal; guests are counted under user already.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|&field| ticks.get(field)).sum();
    Duration::from_secs_f64(busy as f64 / TICKS_PER_SECOND)
}

/// The value of a line such as `VmRSS:   1234 kB`.
pub fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// The numbers of /proc/PID/stat behind the name and the state: `[0]` is the parent, `[10]` utime, `[11]` stime.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?; // a name may hold spaces and brackets
    let fields: Vec<u64> = fields.split_whitespace().skip(1).map(|field| field.parse().unwrap_or_default()).collect();
    (fields.len() > 11).then_some(fields)
}

fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u64, Vec<u32>> = HashMap::new();
    let entries = fs_err::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(fields) = stat(pid) {
            children.entry(fields[0]).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        found.extend(children.remove(&u64::from(found[next])).unwrap_or_default());
        next += 1;
    }
    found
}
