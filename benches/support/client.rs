//! A light HTTP client: one keep-alive connection at a time, bodies counted and not kept.
//!
//! The client shares the cores with the server it measures, so in the timed path it reads no JSON and copies nothing.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Failure;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);

/// What of an answer matters while the clock runs.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// 200, or why not.
    pub status: StatusCode,
    /// `Retry-After` in seconds, where the answer has one.
    pub retry_after_s: Option<u64>,
    /// The length of the body.
    pub n_bytes: usize,
}

/// A connection to a server on this machine, with another in its place when the server has closed it after an answer, as
/// proxies do after so many.
pub struct Connection {
    address: SocketAddr,
    sender: http1::SendRequest<Full<Bytes>>,
    /// Owns the task that moves the bytes: it ends with the connection.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // How a connection ends, its next request tells.
            let _ = connection.await;
        });
        Ok(Self { address, sender, _driver: driver })
    }

    /// Posts JSON and reads the answer to its last byte.
    pub async fn post(&mut self, path: &str, body: Bytes) -> Result<Reply, Failure> {
        self.exchange(Method::POST, path, body, |_| ()).await
    }

    /// Posts JSON and keeps the answer's body.
    pub async fn post_and_keep(&mut self, path: &str, body: Bytes) -> Result<(StatusCode, Vec<u8>), Failure> {
        self.send_and_keep(Method::POST, path, body).await
    }

    /// Sends a request with any method and keeps the answer's body.
    pub async fn send_and_keep(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        let mut kept = Vec::new();
        let reply = self.exchange(method, path, body, |chunk| kept.extend_from_slice(chunk)).await?;
        Ok((reply.status, kept))
    }

    /// Gets a JSON document.
    pub async fn get(&mut self, path: &str) -> Result<serde_json::Value, Failure> {
        let (status, kept) = self.send_and_keep(Method::GET, path, Bytes::new()).await?;
        if status != StatusCode::OK {
            return Err(format!("GET {path} was answered {status}").into());
        }
        Ok(serde_json::from_slice(&kept)?)
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        mut on_chunk: impl FnMut(&[u8]),
    ) -> Result<Reply, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let answer = async {
            // Nothing of this request is sent yet.
            if self.sender.ready().await.is_err() {
                *self = Self::open(self.address).await?;
            }
            let mut response = self.sender.send_request(request).await?;
            let retry_after = response.headers().get(header::RETRY_AFTER);
            let mut reply = Reply {
                status: response.status(),
                retry_after_s: retry_after.and_then(|value| value.to_str().ok()?.parse().ok()),
                n_bytes: 0,
            };
            while let Some(frame) = response.body_mut().frame().await {
                if let Some(chunk) = frame?.data_ref() {
                    reply.n_bytes += chunk.len();
                    on_chunk(chunk);
                }
            }
            Ok::<Reply, Failure>(reply)
        };
        timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| "no answer within two minutes")?
    }
}
