//! A log that cannot be written loses lines, and the server nothing else.

use std::io::{self, PipeReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::helpers::{Caller, PATIENCE, Process, folder_with, with_tiny};

/// Much longer than the end waits for whoever reads the log.
const SOON: Duration = Duration::from_secs(10);

/// More than a pipe takes: each of these requests has a line with its whole path.
const N_REQUESTS: usize = 600;
const PATH_BYTES: usize = 250;

async fn lost_lines(app: &Caller) -> u64 {
    let metrics = app.get("/metrics").await.text;
    let n_lines = metrics.lines().find_map(|line| line.strip_prefix("granary_log_lines_lost_total "));
    n_lines.unwrap_or_else(|| panic!("no such metric:\n{metrics}")).parse().expect("a number")
}

#[tokio::test]
async fn a_log_that_cannot_be_written_ends_nothing() {
    let (full, _) = fs_err::File::create("/dev/full").expect("a device that is full").into_parts();
    let (reader, unread) = io::pipe().expect("a pipe");
    drop(reader);
    for (stderr, what) in [(Stdio::from(full), "a full disk"), (Stdio::from(unread), "a reader that has died")] {
        let folder = folder_with(&with_tiny(&[]));
        let (mut process, url) = Process::serve_onto(folder.path(), stderr);
        let app = Caller::of(url);
        for _ in 0..10 {
            app.post("/embed", json!({"inputs": "a"})).await.ok();
        }
        assert!(lost_lines(&app).await > 0, "{what}");
        process.signal(Signal::TERM);
        assert_eq!(process.wait().code(), Some(0), "{what}");
    }
}

/// A server whose log fills a pipe that nobody reads.
struct Stalled {
    process: Process,
    app: Caller,
    _unread: PipeReader,
    _folder: TempDir,
}

impl Stalled {
    async fn start(toml: &str) -> Self {
        let folder = folder_with(&format!("{toml}{}", with_tiny(&[])));
        let (unread, stderr) = io::pipe().expect("a pipe");
        let (process, url) = Process::serve_onto(folder.path(), stderr);
        let app = Caller::of(url);
        let path = format!("/{}", "a".repeat(PATH_BYTES));
        let answers = async {
            for _ in 0..N_REQUESTS {
                assert_eq!(app.get(&path).await.status, 404);
            }
            assert_eq!(app.get("/health/live").await.status, 200);
        };
        tokio::time::timeout(PATIENCE, answers).await.expect("answers, whoever reads the log");
        Self { process, app, _unread: unread, _folder: folder }
    }

    /// Waits for its end.
    fn ends_soon_with(&mut self, status: i32) {
        let since = Instant::now();
        assert_eq!(self.process.wait().code(), Some(status));
        assert!(since.elapsed() < SOON, "it waited for the reader of its log: {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let mut stalled = Stalled::start("").await;
    assert_eq!(lost_lines(&stalled.app).await, 0, "there is room for more than a pipe takes");
    stalled.process.signal(Signal::TERM);
    stalled.ends_soon_with(0);
}

#[tokio::test]
async fn what_is_said_at_the_end_waits_for_no_reader_either() {
    let mut stalled = Stalled::start("[server]\nshutdown_timeout = \"1h\"\n").await;
    let address = stalled.app.url().trim_start_matches("http://");
    let mut unfinished = TcpStream::connect(address).expect("a connection");
    let head = "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\
                expect: 100-continue\r\n\r\n";
    unfinished.write_all(head.as_bytes()).expect("sent");
    let mut begun = [0; "HTTP/1.1 100 Continue".len()];
    unfinished.read_exact(&mut begun).expect("an answer");
    assert_eq!(&begun, b"HTTP/1.1 100 Continue");
    stalled.process.signal(Signal::TERM);
    // Another kind of signal is a second one whenever it comes.
    stalled.process.signal(Signal::INT);
    stalled.ends_soon_with(1);
}
