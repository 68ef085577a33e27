//! SIGTERM, SIGINT and SIGHUP end a server in order, and at once while it starts, or when another one has come before.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::helpers::{Process, TINY, client, folder_with, send, until, with_tiny};

const BODY: &str = r#"{"inputs": "hello"}"#;

struct Server {
    process: Process,
    address: String,
    _folder: TempDir,
}

impl Server {
    fn start(toml: &str) -> Self {
        let folder = folder_with(&format!("{toml}{}", with_tiny(&[])));
        let (process, url) = Process::serve(folder.path(), &[]);
        Self { process, address: url.trim_start_matches("http://").to_owned(), _folder: folder }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).expect("a connection")
    }

    /// A request of which the server has the head and waits for the body: a client that asks before it sends one is
    /// answered `100 Continue` at that very moment.
    fn begin_request(&self) -> BufReader<TcpStream> {
        let mut connection = self.connect();
        let length = BODY.len();
        let head = format!(
            "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).expect("sent");
        let mut connection = BufReader::new(connection);
        let mut line = String::new();
        connection.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "HTTP/1.1 100 Continue");
        connection
    }
}

/// Sends the body and reads until the server closes the connection.
fn finish_request(mut connection: BufReader<TcpStream>) -> String {
    connection.get_mut().write_all(BODY.as_bytes()).expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("a whole answer");
    answer
}

#[test]
fn a_request_in_flight_is_answered_and_the_process_ends_well() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT"), (Signal::HUP, "SIGHUP")] {
        if signal == Signal::HUP && are_hangups_ignored() {
            println!("not tried: SIGHUP is ignored here, and so it is by what is started here");
            continue;
        }
        let mut server = Server::start("");
        let mut idle = server.connect();
        let request = server.begin_request();
        server.process.signal(signal);
        server.process.wait_for(&format!("signal=\"{name}\""));
        // The connection that asks nothing is closed; it holds nothing up.
        assert_eq!(idle.read(&mut [0; 1]).expect("closed in order"), 0);
        let answer = finish_request(request);
        assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("[["), "{answer}");
        assert_eq!(server.process.wait().code(), Some(0), "{}", server.process.log());
        let log = server.process.log();
        assert!(log.contains("the model was unloaded") && log.trim_end().ends_with("stopped"), "{log}");
    }
}

fn are_hangups_ignored() -> bool {
    let status = procfs::process::Process::myself().and_then(|process| process.status()).expect("this process");
    status.sigign & 1 == 1
}

#[tokio::test]
async fn a_server_under_nohup_outlives_its_terminal() {
    let folder = folder_with(&with_tiny(&[]));
    let (process, url) = Process::serve_under_nohup(folder.path());
    process.signal(Signal::HUP);
    send(client().post(format!("{url}/embed")).json(&json!({"inputs": "a"}))).await.ok();
    let log = process.stop();
    assert!(log.contains("SIGTERM") && !log.contains("SIGHUP"), "{log}");
}

#[tokio::test]
async fn signals_that_ask_for_no_end_do_not_end_the_server() {
    let folder = folder_with(&with_tiny(&[]));
    let (process, url) = Process::serve(folder.path(), &[]);
    // What the system sends whoever writes past a limit of the size of files, and what rotates logs may send.
    for signal in [Signal::XFSZ, Signal::USR1, Signal::USR2] {
        process.signal(signal);
    }
    assert_eq!(send(client().get(format!("{url}/health/live"))).await.status, 200);
    process.stop();
}

#[test]
fn who_leaves_says_so_and_answers_until_its_time_is_over() {
    let mut server = Server::start("[server]\ndrain_delay = \"1h\"\n");
    let mut kept = BufReader::new(server.connect());
    write!(kept.get_mut(), "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    let mut alive = Vec::new();
    kept.read_until(b'}', &mut alive).expect("an answer");
    assert!(alive.starts_with(b"HTTP/1.1 200"), "{alive:?}");
    server.process.signal(Signal::TERM);
    server.process.wait_for("readiness says no");

    // A load balancer is told, and what it still sends is answered, on a connection it has and on a new one.
    let ask = |mut connection: BufReader<TcpStream>, request: &str| {
        write!(connection.get_mut(), "{request}").expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("a whole answer");
        assert!(answer.contains("connection: close"), "{answer}");
        answer
    };
    let ready = "GET /health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let answer = ask(BufReader::new(server.connect()), ready);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the server is stopping"), "{answer}");
    let length = BODY.len();
    let embed = format!(
        "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{BODY}"
    );
    for connection in [kept, BufReader::new(server.connect())] {
        let answer = ask(connection, &embed);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[["), "{answer}");
    }
    server.process.signal(Signal::INT);
    assert_eq!(server.process.wait().code(), Some(1), "{}", server.process.log());

    let mut server = Server::start("[server]\ndrain_delay = \"100ms\"\n");
    server.process.signal(Signal::TERM);
    assert_eq!(server.process.wait().code(), Some(0), "{}", server.process.log());
}

#[test]
fn a_second_signal_ends_it_at_once_and_it_says_what_was_running() {
    for second in [Signal::TERM, Signal::INT] {
        let mut server = Server::start("[server]\nshutdown_timeout = \"1h\"\n");
        let _request = server.begin_request();
        server.process.signal(Signal::TERM);
        server.process.wait_for("a second signal gives it up");
        // Of the same kind and at once it would be the same one.
        std::thread::sleep(Duration::from_millis(250));
        server.process.signal(second);
        assert_eq!(server.process.wait().code(), Some(1), "{}", server.process.log());
        let log = server.process.log();
        assert!(log.contains("second signal: giving up what is running"), "{log}");
        assert!(log.contains("granary: stopped, but not in order: http"), "{log}");
        assert!(!log.contains("the caller left"), "it is still there: {log}");
    }
}

/// `timeout` signals the process and then its group, and systemd may send two signals.
#[test]
fn signals_that_come_at_once_are_one() {
    if are_hangups_ignored() {
        println!("not tried: SIGHUP is ignored here, and so it is by what is started here");
        return;
    }
    let mut server = Server::start("[server]\nshutdown_timeout = \"1h\"\n");
    let request = server.begin_request();
    // It stands still until both are there, however slow this machine is. Two of a kind are one to the system.
    for signal in [Signal::STOP, Signal::TERM, Signal::HUP, Signal::CONT] {
        server.process.signal(signal);
    }
    server.process.wait_for("a second signal gives it up");
    let answer = finish_request(request);
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("[["), "{answer}");
    assert_eq!(server.process.wait().code(), Some(0), "{}", server.process.log());
}

#[test]
fn the_time_to_finish_is_bounded() {
    let mut server = Server::start("[server]\nshutdown_timeout = \"100ms\"\n");
    let _request = server.begin_request();
    server.process.signal(Signal::TERM);
    assert_eq!(server.process.wait().code(), Some(1), "{}", server.process.log());
    let log = server.process.log();
    assert!(log.contains("granary: stopped, but not in order: http"), "{log}");
}

/// A server with a grain in each of two spaces, in its folder; and the second space.
async fn serve_two_spaces() -> (TempDir, Process, String) {
    let folder = folder_with(&with_tiny(&["tiny-cls"]));
    let (process, url) = Process::serve(folder.path(), &[]);
    let write = async |model: &str| {
        let grain = json!({"text": "hello", "model": model});
        send(client().post(format!("{url}/grains")).json(&grain)).await.ok()["meta"]["space"].clone()
    };
    write(TINY).await;
    let space = write("tiny-cls").await.as_str().expect("a space").to_owned();
    (folder, process, space)
}

fn index_file(folder: &Path, space: &str, ending: &str) -> PathBuf {
    folder.join("granary.db.index").join(format!("{space}.{ending}"))
}

/// Who opens this file waits until somebody opens its other end, which nobody does.
fn make_fifo(path: &Path) {
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).expect("a FIFO");
}

#[tokio::test]
async fn a_second_signal_ends_the_saving_of_the_indexes() {
    let (folder, mut process, space) = serve_two_spaces().await;
    make_fifo(&index_file(folder.path(), &space, "index.tmp"));
    process.signal(Signal::TERM);
    // They are written first.
    let vectors = index_file(folder.path(), &space, "vectors");
    until("it saves the indexes", async || vectors.exists()).await;
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(1), "{}", process.log());
    let log = process.log();
    assert!(log.contains("granary: stopped, but not in order: saving the indexes still running"), "{log}");

    let (process, url) = Process::serve(folder.path(), &[]);
    assert_eq!(send(client().post(format!("{url}/grains/count")).json(&json!({}))).await.ok()["count"], 2);
    process.stop();
}

#[tokio::test]
async fn a_signal_while_an_index_is_read_ends_the_start_and_the_next_one_reads_it() {
    let (folder, process, space) = serve_two_spaces().await;
    process.stop();
    let (saved, aside) = (index_file(folder.path(), &space, "index"), folder.path().join("aside"));
    fs_err::rename(&saved, &aside).expect("moved");
    make_fifo(&saved);
    let mut process = Process::start_server(folder.path(), &[]);
    // One is read after the other, and this is the second.
    process.wait_for("the index of a space is ready");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0), "{}", process.log());
    let log = process.log();
    assert!(log.contains("stopped before it served"), "{log}");
    assert_eq!(log.matches("the index of a space is ready").count(), 1, "{log}");

    fs_err::rename(&aside, &saved).expect("moved back");
    let (process, _) = Process::serve(folder.path(), &[]);
    let log = process.stop();
    assert_eq!(log.matches("n_vectors=1").count(), 2, "{log}");
    assert!(!log.contains("a saved index is not used"), "{log}");
}
