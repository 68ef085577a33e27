//! A proxy in this process, as it stands between a server and the hub: it passes plain HTTP on, and opens no tunnels.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A running proxy; it ends with the test.
pub struct StandInProxy {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
    served: JoinHandle<()>,
}

impl StandInProxy {
    /// Passes all that is asked by plain HTTP on to the server at this address, whatever it was asked of.
    pub async fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let to: Arc<str> = to.trim_start_matches("http://").into();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let of_task = Arc::clone(&asked);
        #[allow(clippy::disallowed_methods, reason = "the handle is this server's owner")]
        let served = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (connection, _) = listener.accept().await.expect("a connection");
                connections.spawn(pass_on(connection, Arc::clone(&to), Arc::clone(&of_task)));
            }
        });
        Self { url, asked, served }
    }

    /// The first line of each connection since this was asked last.
    pub fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }
}

impl Drop for StandInProxy {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn pass_on(mut caller: TcpStream, to: Arc<str>, asked: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Whoever connects and asks nothing wants nothing.
        let Ok(byte) = caller.read_u8().await else { return };
        head.push(byte);
    }
    let text = String::from_utf8_lossy(&head);
    let line = text.lines().next().expect("a line").to_owned();
    let is_tunnel = line.starts_with("CONNECT ");
    asked.lock().push(line);
    // What goes wrong from here on is seen by whoever asks.
    if is_tunnel {
        let _ = caller.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    // A server takes the whole address in the first line, too (RFC 9112, 3.2.2).
    let mut server = TcpStream::connect(&*to).await.expect("the server is there");
    server.write_all(&head).await.expect("sent");
    let _ = tokio::io::copy_bidirectional(&mut caller, &mut server).await;
}
