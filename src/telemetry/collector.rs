//! Sending spans to the collector: what is said when it does not take them.
//!
//! Spans are sent by a thread of their own, which the exporter owns and which may wait; the runtime of the process does
//! the sending. Failures are told once, until the collector is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use reqwest::Url;
use tokio::runtime::Handle;

use super::causes::with_causes;
use crate::tls::tls;

/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way to the collector.
#[derive(Debug)]
pub(super) struct Collector {
    client: reqwest::Client,
    runtime: Handle,
    /// For the log.
    address: Url,
    is_away: AtomicBool,
}

impl Collector {
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn new(address: Url) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("granary/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .tls_backend_preconfigured(tls())
            .timeout(PATIENCE)
            .no_proxy()
            .build()?;
        Ok(Self { client, runtime: Handle::current(), address, is_away: AtomicBool::new(false) })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.client.execute(reqwest::Request::try_from(request)?).await;
        let answer = sent.map_err(reqwest::Error::without_url)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("it answers {status}").into());
        }
        let body = answer.bytes().await.map_err(reqwest::Error::without_url)?;
        Ok(Response::builder().status(status).body(body)?)
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // The caller is the exporter's thread, which has no runtime of its own.
        let sent = self.runtime.block_on(self.send(request));
        match (&sent, self.is_away.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(
                collector = self.address.as_str(),
                reason = with_causes(error.as_ref()),
                "the collector does not take traces (`telemetry.otlp_endpoint`): what it does not take in time is \
                 lost, without another word until it takes some again"
            ),
            (Ok(_), true) => tracing::info!(collector = self.address.as_str(), "the collector takes traces again"),
            _ => {}
        }
        sent
    }
}
