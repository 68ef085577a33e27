//! SIGTERM and SIGINT end the process in order, and a second one at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::helpers::{Process, data_dir, with_tiny};

const BODY: &str = r#"{"inputs": "hello"}"#;

struct Server {
    process: Process,
    address: String,
    _folder: TempDir,
}

impl Server {
    fn start(toml: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        fs_err::write(folder.path().join("granary.toml"), format!("{toml}{}", with_tiny(&[]))).expect("written");
        let data_dir = data_dir().display().to_string();
        let variables =
            [("GRANARY_MODELS__DATA_DIR", data_dir.as_str()), ("GRANARY_GRAINS__DATABASE_URL", "sqlite:g.db")];
        let mut process = Process::start(folder.path(), &["serve", "--port", "0"], &variables);
        let address = process.wait_until_serving().trim_start_matches("http://").to_owned();
        Self { process, address, _folder: folder }
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
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
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
    server.process.signal(Signal::TERM);
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
        server.process.signal(second);
        assert_eq!(server.process.wait().code(), Some(1), "{}", server.process.log());
        let log = server.process.log();
        assert!(log.contains("second signal: giving up what is running"), "{log}");
        assert!(log.contains("granary: stopped, but not in order: http"), "{log}");
    }
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
