//! A real reverse proxy as a process of its own, with the configuration in `docker/proxy/`. `benches/soak` has this file too.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

const PATIENCE: Duration = Duration::from_secs(30);

/// How often another port is taken: the system may have given it away before the proxy has it.
const N_PORTS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Caddy,
    HaProxy,
}

/// A running proxy, ended when this is dropped.
pub struct Proxy {
    child: Child,
    folder: TempDir,
    address: String,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Nginx, Self::Caddy, Self::HaProxy];

    fn file(self) -> &'static str {
        match self {
            Self::Nginx => "nginx.conf",
            Self::Caddy => "Caddyfile",
            Self::HaProxy => "haproxy.cfg",
        }
    }

    /// What of the file is another on this machine: the address to listen on, the servers, and where files may be written.
    fn changes(self, folder: &Path, address: &str, servers: &[&str]) -> Vec<(String, String)> {
        let change = |from: &str, to: String| (from.to_owned(), to);
        match self {
            Self::Nginx => {
                let at = |name: &str| folder.join(name).display().to_string();
                let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                let paths = kinds.map(|kind| format!("{kind}_temp_path {};\n", at(kind))).concat();
                let servers: Vec<String> =
                    servers.iter().map(|server| format!("server {server} max_fails=0;\n")).collect();
                vec![
                    // Who starts it, for only that user can write to the folder.
                    change("worker_processes auto;", format!("user root; daemon off; pid {};", at("pid"))),
                    change("http {", format!("http {{\n{paths}")),
                    change("listen 80;", format!("listen {address};")),
                    change("access_log /dev/stdout", format!("access_log {}", at("access.log"))),
                    change("server granary:8080 max_fails=0;", servers.concat()),
                ]
            }
            Self::Caddy => {
                let port = address.rsplit(':').next().expect("a port");
                vec![
                    change("{\n\tservers {", "{\n\tadmin off\n\tservers {".to_owned()),
                    change("granary.example.org {", format!("http://:{port} {{\n\tbind 127.0.0.1")),
                    change("reverse_proxy granary:8080 {", format!("reverse_proxy {} {{", servers.join(" "))),
                ]
            }
            Self::HaProxy => {
                let mut changes = vec![
                    change("bind :80\n", format!("bind {address}\n")),
                    change("granary1 granary:8080", format!("granary1 {}", servers[0])),
                ];
                if let Some(second) = servers.get(1) {
                    changes.extend(
                        ["option httpchk", "http-check send", "default-server check"]
                            .map(|line| change(&format!("# {line}"), line.to_owned())),
                    );
                    changes.push(change("# server granary2 granary2:8080", format!("server granary2 {second}")));
                }
                changes
            }
        }
    }

    fn command(self, folder: &Path) -> Command {
        let data_dir = std::env::var_os("GRANARY_MODELS__DATA_DIR");
        let proxies = data_dir.map_or_else(|| Path::new(REPOSITORY).join(".granary"), PathBuf::from).join("proxies");
        let (binary, file) = match self {
            Self::Nginx => ("usr/sbin/nginx", folder.join(self.file())),
            Self::Caddy => ("usr/bin/caddy", folder.join(self.file())),
            Self::HaProxy => ("usr/sbin/haproxy", folder.join(self.file())),
        };
        let binary = proxies.join(binary);
        assert!(binary.is_file(), "{} is missing: run `scripts/setup-proxies` first", binary.display());
        let mut command = Command::new(binary);
        match self {
            Self::Nginx => command.arg("-p").arg(folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(file),
            Self::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file),
            Self::HaProxy => command.args(["-db", "-f"]).arg(file),
        };
        command.env_clear().env("HOME", folder).env("LD_LIBRARY_PATH", libraries(&proxies));
        command
    }
}

/// The folders of libraries that came with the proxies.
fn libraries(proxies: &Path) -> std::ffi::OsString {
    let folders = ["usr/lib", "lib"].into_iter().filter_map(|lib| fs_err::read_dir(proxies.join(lib)).ok());
    let paths: Vec<PathBuf> = folders.flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    std::env::join_paths(paths).expect("paths without colons")
}

impl Proxy {
    /// Starts in front of the servers at these URLs.
    pub fn start(kind: Kind, servers: &[&str]) -> Self {
        Self::start_with(kind, servers, &[])
    }

    /// The same with further changes of the file, each of which must be possible.
    pub fn start_with(kind: Kind, servers: &[&str], changes: &[(&str, &str)]) -> Self {
        let servers: Vec<&str> = servers.iter().map(|url| url.trim_start_matches("http://")).collect();
        for _ in 1..N_PORTS {
            if let Ok(proxy) = Self::try_start(kind, &servers, changes) {
                return proxy;
            }
        }
        Self::try_start(kind, &servers, changes).unwrap_or_else(|log| panic!("{kind:?} does not start:\n{log}"))
    }

    fn try_start(kind: Kind, servers: &[&str], changes: &[(&str, &str)]) -> Result<Self, String> {
        let folder = TempDir::new().expect("a folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        drop(listener);
        let mut text =
            fs_err::read_to_string(Path::new(REPOSITORY).join("docker/proxy").join(kind.file())).expect("the file");
        let changes = changes.iter().map(|&(from, to)| (from.to_owned(), to.to_owned()));
        for (from, to) in kind.changes(folder.path(), &address, servers).into_iter().chain(changes) {
            assert!(text.contains(&from), "{} has no `{from}` any more", kind.file());
            text = text.replace(&from, &to);
        }
        fs_err::write(folder.path().join(kind.file()), text).expect("written");
        let log = fs_err::File::create(folder.path().join("log")).expect("a file").into_parts().0;
        let child = kind
            .command(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the same file"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let mut proxy = Self { child, folder, address };
        if proxy.listens() { Ok(proxy) } else { Err(proxy.log()) }
    }

    /// Waits until it takes connections; false when it has ended instead.
    fn listens(&mut self) -> bool {
        let started = Instant::now();
        loop {
            // Where nobody listens, a connection can be one to itself.
            let connected = TcpStream::connect(&self.address).ok();
            if connected.is_some_and(|stream| stream.local_addr().ok() != stream.peer_addr().ok()) {
                return true;
            }
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            assert!(started.elapsed() < PATIENCE, "it does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its address, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has written.
    pub fn log(&self) -> String {
        let files = ["log", "error.log", "access.log"].map(|name| self.folder.path().join(name));
        files.iter().map(|file| fs_err::read_to_string(file).unwrap_or_default()).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx's workers end with a master that is asked to end, and not with one that is killed.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let ended = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < ended {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
