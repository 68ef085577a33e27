//! The binary as a process of its own, for what only a process shows: exit codes, signals, standard error.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, MMapPath, MemoryMap};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::{PATIENCE, data_dir};

/// A process that was started, with its standard error kept in a file.
pub struct Process {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Process {
    /// Starts `granary` in this directory with these arguments and nothing but these variables.
    pub fn start(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::run(&mut granary(directory, arguments, variables))
    }

    fn run(command: &mut Command) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let child = command.stderr(log.reopen().expect("the same file")).spawn().expect("the binary starts");
        Self { child, log }
    }

    /// Starts the server in this folder, where its configuration is and its database will be.
    pub fn start_server(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_at(folder, "0", arguments)
    }

    fn start_at(folder: &Path, port: &str, arguments: &[&str]) -> Self {
        Self::run(&mut server(folder, port, arguments))
    }

    /// Starts the server under `nohup`, and waits until it serves; and its address.
    pub fn serve_under_nohup(folder: &Path) -> (Self, String) {
        let server = server(folder, "0", &[]);
        let variables = server.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let mut nohup = Command::new("nohup");
        nohup.arg(server.get_program()).args(server.get_args()).current_dir(folder).env_clear().envs(variables);
        nohup.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Self::run(&mut nohup);
        let url = process.wait_until_serving();
        (process, url)
    }

    /// Starts the server with its standard error there instead of in the log, and waits until it listens; and its
    /// address.
    pub fn serve_onto(folder: &Path, stderr: impl Into<Stdio>) -> (Self, String) {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let child = server(folder, "0", &[]).stderr(stderr).spawn().expect("the binary starts");
        let process = Self { child, log };
        let url = process.wait_until_listening();
        (process, url)
    }

    /// Starts the server where another one was, and waits until it serves.
    pub fn serve_again(folder: &Path, url: &str) -> Self {
        let port = url.rsplit(':').next().expect("a port");
        let mut process = Self::start_at(folder, port, &[]);
        assert_eq!(process.wait_until_serving(), url);
        process
    }

    /// The same, once it serves; and its address.
    pub fn serve(folder: &Path, arguments: &[&str]) -> (Self, String) {
        let mut process = Self::start_server(folder, arguments);
        let url = process.wait_until_serving();
        (process, url)
    }

    /// Starts the server with these arguments and no other variables, and waits until it serves; and its address.
    pub fn serve_with(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (Self, String) {
        let mut process = Self::start(folder, &[&["serve", "--port", "0"], arguments].concat(), variables);
        let url = process.wait_until_serving();
        (process, url)
    }

    /// Ends the server in order, and returns what it has written to standard error.
    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        assert_eq!(self.wait().code(), Some(0), "{}", self.log());
        self.log()
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        fs_err::read_to_string(self.log.path()).expect("the log")
    }

    /// Waits until standard error holds this text, and returns it all.
    pub fn wait_for(&mut self, text: &str) -> String {
        let started = Instant::now();
        loop {
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "it ended without saying `{text}`: {ended:?}\n{log}");
            assert!(started.elapsed() < PATIENCE, "it did not say `{text}`:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it serves, and returns its address.
    pub fn wait_until_serving(&mut self) -> String {
        let log = self.wait_for("serving on http://");
        let address = log
            .split("serving on http://")
            .nth(1)
            .and_then(|rest| rest.split(|c: char| c.is_whitespace() || c == '"').next());
        format!("http://{}", address.expect("an address"))
    }

    /// Waits until it listens, and returns its address, which it need not say.
    fn wait_until_listening(&self) -> String {
        let id = i32::try_from(self.child.id()).expect("an id");
        let started = Instant::now();
        loop {
            let files = procfs::process::Process::new(id).and_then(|process| process.fd()).expect("a running process");
            let sockets: BTreeSet<u64> = files
                .filter_map(|file| match file.ok()?.target {
                    FDTarget::Socket(inode) => Some(inode),
                    _ => None,
                })
                .collect();
            let is_its = |it: &TcpNetEntry| it.state == TcpState::Listen && sockets.contains(&it.inode);
            let listener = procfs::net::tcp().expect("the table of sockets").into_iter().find(is_its);
            if let Some(listener) = listener {
                return format!("http://{}", listener.local_address);
            }
            assert!(started.elapsed() < PATIENCE, "it does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The memory that is resident now.
    pub fn rss_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most memory that was resident at one time.
    pub fn peak_rss_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// How much is mapped of files with this name, and how much of that is resident.
    pub fn mapped_bytes(&self, file: &str) -> (u64, u64) {
        let id = i32::try_from(self.child.id()).expect("an id");
        let maps = procfs::process::Process::new(id).and_then(|process| process.smaps()).expect("a running process");
        let is_of_it = |map: &&MemoryMap| matches!(&map.pathname, MMapPath::Path(path) if path.ends_with(file));
        let of_it: Vec<&MemoryMap> = maps.iter().filter(is_of_it).collect();
        let sum = |kind: &str| of_it.iter().map(|map| map.extension.map[kind]).sum();
        (sum("Size"), sum("Rss"))
    }

    fn status_bytes(&self, title: &str) -> u64 {
        let status = fs_err::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix(title)).expect("a line of its resident set");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kibibytes") << 10
    }

    /// How many files and connections it has open.
    pub fn n_open_files(&self) -> u64 {
        fs_err::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a running process").count() as u64
    }

    /// Lets it have so many open files, and returns how many it could have before.
    pub fn limit_files(&self, n_files: Option<u64>) -> Option<u64> {
        let pid = Some(Pid::from_child(&self.child));
        // The process has its limits from this one.
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current: n_files, maximum }).expect("a limit it may have").current
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("a signal");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// `granary` in this directory with these arguments and nothing but these variables.
fn granary(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.current_dir(directory).args(arguments).env_clear().envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The server in this folder, where its configuration is and its database will be.
fn server(folder: &Path, port: &str, arguments: &[&str]) -> Command {
    let data_dir = data_dir().display().to_string();
    let variables =
        [("GRANARY_MODELS__DATA_DIR", data_dir.as_str()), ("GRANARY_GRAINS__DATABASE_URL", "sqlite:granary.db")];
    granary(folder, &[&["serve", "--port", port], arguments].concat(), &variables)
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that failed half-way must leave nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
