//! What the command line says when that which answers at the address is no Granary, sends it elsewhere, or stops halfway.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::helpers::Process;

/// The address of something that gives each who connects this answer, whatever is asked, and hangs up.
fn stand_in(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    // It ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.expect("a connection"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|n_bytes| n_bytes > 0) {}
            let length = head.to_lowercase().split("content-length: ").nth(1).and_then(|rest| {
                let digits = rest.split("\r\n").next()?;
                digits.parse::<usize>().ok()
            });
            // What is left unread would reset the connection.
            let _ = reader.read_exact(&mut vec![0; length.unwrap_or_default()]);
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    url
}

fn granary(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_granary"));
    command.args(arguments).env_clear().env("GRANARY_URL", url).output().expect("it runs")
}

/// What it says when it does not work.
fn complaint(url: &str, arguments: &[&str]) -> String {
    let output = granary(url, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn a_redirect_is_not_followed_but_named() {
    let away =
        stand_in("HTTP/1.1 301 Moved\r\nlocation: https://granary.example/a/models?x=1\r\ncontent-length: 0\r\n\r\n");
    let said = complaint(&away, &["models", "list"]);
    assert_eq!(said, format!("granary: {away}/ redirects to https://granary.example/a: name that with --url\n"));
    let within = stand_in("HTTP/1.1 308 Moved\r\nlocation: /granary/reembeddings\r\ncontent-length: 0\r\n\r\n");
    let said = complaint(&within, &["reembed", "begin", "tiny"]);
    assert_eq!(said, format!("granary: {within}/ redirects to {within}/granary: name that with --url\n"));
}

#[test]
fn a_connection_that_breaks_is_told_from_one_that_is_not_made() {
    let breaks = stand_in("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"models\": [");
    for arguments in [&["models", "list"][..], &["grains", "export"]] {
        let said = complaint(&breaks, arguments);
        assert!(said.starts_with(&format!("granary: the connection to {breaks}/ broke: ")), "{said}");
    }
    let said = complaint(&stand_in(""), &["models", "list"]);
    assert!(said.contains(" broke: "), "{said}");
    let said = complaint("http://127.0.0.1:9", &["models", "list"]);
    assert!(said.starts_with("granary: no Granary answers at http://127.0.0.1:9/: "), "{said}");
}

#[test]
fn who_asks_by_the_address_is_not_shown() {
    let foreign = stand_in("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
    let away = stand_in("HTTP/1.1 308 Moved\r\nlocation: /granary/models\r\ncontent-length: 0\r\n\r\n");
    let breaks = stand_in("");
    for url in [foreign.as_str(), &away, &breaks, "http://127.0.0.1:9", "ftp://127.0.0.1"] {
        let url = url.replace("://", "://somebody:secret@");
        for arguments in [&["models", "list"][..], &["health"]] {
            let said = complaint(&url, arguments);
            let is_shown = said.contains("secret") || said.contains("somebody");
            assert!(said.contains("127.0.0.1") && !is_shown, "{said}");
        }
        let help = granary(&url, &["models", "list", "--help"]);
        assert!(!String::from_utf8_lossy(&help.stdout).contains("secret"), "{help:?}");
    }
}

#[test]
fn a_job_that_is_out_of_sight_is_named() {
    // The stream of its events breaks.
    let gone = stand_in("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ndata: {}\n");
    let said = complaint(&gone, &["reembed", "watch", "7"]);
    assert!(said.starts_with("granary: the job is out of sight and goes on: `granary reembed watch 7` "), "{said}");
}

#[test]
fn a_text_does_not_control_the_terminal() {
    let found = stand_in(
        "HTTP/1.1 200 OK\r\ncontent-length: 75\r\n\r\n\
         {\"hits\": [{\"grain\": {\"id\": \"a\", \"text\": \"\\u001b[2J wheat\"}, \"score\": 0.5}]}",
    );
    let output = granary(&found, &["grains", "search", "wheat"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0.5000  a  \u{fffd}[2J wheat\n", "{output:?}");
}

#[test]
fn an_answer_without_a_vector_for_each_text_is_not_one_of_granarys() {
    for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[[1]]", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
    {
        let foreign = stand_in(answer);
        let said = complaint(&foreign, &["embed", "wheat", "rye"]);
        assert_eq!(said, format!("granary: {foreign}/ does not answer like Granary: 200\n"));
    }
}

#[test]
fn a_directory_is_not_imported() {
    let said = complaint("http://127.0.0.1:9", &["grains", "import", "src"]);
    assert_eq!(said, "granary: the file cannot be read or written: `src` is a directory\n");
}

#[test]
fn an_export_that_stops_is_called_one() {
    let stopped =
        stand_in("HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n{\"error\": {\"problem\": {\"detail\": \"why\"}}}\n");
    let said = complaint(&stopped, &["grains", "export"]);
    assert!(said.starts_with("granary: the export stopped before its end: why. "), "{said}");
    let cut = stand_in("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"id\": \"a\"}\n");
    let said = complaint(&cut, &["grains", "export"]);
    assert!(said.starts_with("granary: the connection was cut. Grains are missing "), "{said}");
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_the_comparison() {
    let said = complaint("http://127.0.0.1:9", &["compare", "a", "b", "--html", "no/such/folder/report.html"]);
    assert!(said.starts_with("granary: the file cannot be read or written: "), "{said}");
}

/// A server that stands still can be left, at once with a second signal.
#[test]
fn a_comparison_can_be_left_when_the_server_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let folder = TempDir::new().expect("a folder");
    let mut process = Process::start(folder.path(), &["compare", "--url", &url, "a", "b"], &[]);
    // Once it is here, its signals are caught.
    let (mut connection, _) = listener.accept().expect("it asks");
    // As `timeout` does, which signals the process and then its group: it is one signal, and the command stays.
    for _ in 0..5 {
        process.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(2));
    }
    connection.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
    let request = connection.read_to_end(&mut Vec::new());
    assert!(request.is_err(), "it has left: {}", process.log());
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(1));
    let log = process.log();
    assert!(log.starts_with("granary: interrupted before the server answered: "), "{log}");
    drop(connection);
}
