//! More requests than the server can serve, each sent when it is due, and what came of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::support::Failure;
use crate::support::client::{Connection, Reply};
use crate::support::corpus::{Feed, Stream};
use crate::support::load::{Target, Verdict};
use crate::support::process::Usage;
use crate::support::server::Server;
use crate::support::stats::{milliseconds, percentile, sorted_ms};

/// As many requests can wait at once: more than the queue holds, so that none is sent late.
const N_CONNECTIONS: usize = 512;
/// The queue fills in this time; what is answered in it does not count.
pub const RAMP: Duration = Duration::from_secs(2);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// What came of more requests than can be served.
#[derive(Debug, Serialize)]
pub struct Overload {
    /// Requests sent in a second, one text each.
    pub sent_per_s: f64,
    /// Of these answered 200 in a second, once the queue is full.
    pub answered_per_s: f64,
    /// Answered 200, in all.
    pub n_answered: usize,
    /// Answered 429, in all.
    pub n_refused: usize,
    /// Answered otherwise, or not at all.
    pub n_errors: usize,
    /// What the last of these was.
    pub last_error: Option<String>,
    /// Refusals that do not say when to come back.
    pub n_refused_without_retry_after: usize,
    /// The least and the most that `Retry-After` said.
    pub retry_after_s: Option<(u64, u64)>,
    /// From when a request was due to its 200.
    pub answered_p50_ms: f64,
    /// From when a request was due to its 429.
    pub refused_p99_ms: f64,
    /// How late the latest request was sent: beyond some milliseconds this was no open loop.
    pub latest_ms: f64,
    /// Memory of the server before the first request.
    pub rss_bytes_before: u64,
    /// The most seen while they ran.
    pub rss_bytes_most: u64,
    /// After the last answer.
    pub rss_bytes_after: u64,
}

/// Requests at fixed times, whether the ones before are answered or not.
struct OpenLoop {
    target: Target,
    feed: Feed,
    /// Requests a second.
    rate: f64,
    lasts: Duration,
    started: Instant,
    n_sent: AtomicU32,
}

/// One request of the open loop; times are since its start.
struct Exchange {
    due: Duration,
    sent: Duration,
    answered: Duration,
    reply: Result<(Verdict, Reply), Failure>,
}

impl OpenLoop {
    /// One connection, which takes the next request that is due until time or texts are over.
    async fn send_when_due(self: Arc<Self>) -> Vec<Exchange> {
        let mut exchanges = Vec::new();
        let mut connection = None;
        loop {
            let due = Duration::from_secs_f64(f64::from(self.n_sent.fetch_add(1, Ordering::Relaxed)) / self.rate);
            let Some(texts) = self.feed.take(1).filter(|_| due < self.lasts) else { return exchanges };
            let body = self.target.dialect.body(texts);
            if connection.is_none() {
                connection = Connection::open(self.target.address).await.ok();
            }
            tokio::time::sleep_until((self.started + due).into()).await;
            let sent = self.started.elapsed();
            let reply = match &mut connection {
                Some(open) => open.post(self.target.dialect.path(), body).await,
                None => Err("the server takes no connection".into()),
            };
            if reply.is_err() {
                connection = None;
            }
            let reply = reply.map(|reply| (Verdict::of(reply, 1), reply));
            exchanges.push(Exchange { due, sent, answered: self.started.elapsed(), reply });
        }
    }
}

impl Exchange {
    fn is_answered(&self) -> bool {
        matches!(self.reply, Ok((Verdict::Answered, _)))
    }

    fn answered_within(&self, window: Range<Duration>) -> bool {
        window.contains(&self.answered)
    }
}

impl Overload {
    /// Sends requests of one passage at a fixed rate, each when it is due, and watches the server's memory.
    pub async fn measure(
        server: &Server,
        passages: &mut Stream,
        rate: f64,
        measured: Duration,
    ) -> Result<Self, Failure> {
        let rss_bytes_before = Usage::of_tree(server.pid()).rss_bytes;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of requests")]
        let n_requests = (rate * (RAMP + measured).as_secs_f64()).ceil() as usize;
        let open_loop = Arc::new(OpenLoop {
            target: server.into(),
            feed: Feed::new(passages.take(n_requests)),
            rate,
            lasts: RAMP + measured,
            started: Instant::now(),
            n_sent: AtomicU32::new(0),
        });
        let mut connections = JoinSet::new();
        for _ in 0..N_CONNECTIONS {
            connections.spawn(Arc::clone(&open_loop).send_when_due());
        }
        let mut rss_bytes_most = rss_bytes_before;
        let mut sampling = tokio::time::interval(SAMPLE_EVERY);
        let mut exchanges = Vec::new();
        loop {
            tokio::select! {
                ended = connections.join_next() => match ended {
                    Some(one) => exchanges.extend(one.expect("a connection does not panic")),
                    None => break,
                },
                _ = sampling.tick() => rss_bytes_most = rss_bytes_most.max(Usage::of_tree(server.pid()).rss_bytes),
            }
        }
        let rss_bytes_after = Usage::of_tree(server.pid()).rss_bytes;
        let mut found =
            Overload { sent_per_s: rate, rss_bytes_before, rss_bytes_most, rss_bytes_after, ..Self::of(&exchanges) };
        let counted = exchanges.iter().filter(|one| one.is_answered() && one.answered_within(RAMP..RAMP + measured));
        found.answered_per_s = counted.count() as f64 / measured.as_secs_f64();
        Ok(found)
    }

    fn of(exchanges: &[Exchange]) -> Self {
        let (mut answered, mut refused, mut found) = (Vec::new(), Vec::new(), Self::nothing());
        for one in exchanges {
            found.latest_ms = found.latest_ms.max(milliseconds(one.sent.saturating_sub(one.due)));
            let latency = one.answered.saturating_sub(one.due);
            match &one.reply {
                Ok((Verdict::Answered, _)) => answered.push(latency),
                Ok((Verdict::Refused, reply)) => {
                    refused.push(latency);
                    match reply.retry_after_s {
                        Some(s) => {
                            let (least, most) = found.retry_after_s.unwrap_or((s, s));
                            found.retry_after_s = Some((least.min(s), most.max(s)));
                        }
                        None => found.n_refused_without_retry_after += 1,
                    }
                }
                Ok((Verdict::Wrong(what), _)) => found.fail(what.clone()),
                Err(failure) => found.fail(failure.to_string()),
            }
        }
        found.n_answered = answered.len();
        found.n_refused = refused.len();
        found.answered_p50_ms = percentile(&sorted_ms(&answered), 50);
        found.refused_p99_ms = percentile(&sorted_ms(&refused), 99);
        found
    }

    fn nothing() -> Self {
        Self {
            sent_per_s: 0.0,
            answered_per_s: 0.0,
            n_answered: 0,
            n_refused: 0,
            n_errors: 0,
            last_error: None,
            n_refused_without_retry_after: 0,
            retry_after_s: None,
            answered_p50_ms: f64::NAN,
            refused_p99_ms: f64::NAN,
            latest_ms: 0.0,
            rss_bytes_before: 0,
            rss_bytes_most: 0,
            rss_bytes_after: 0,
        }
    }

    fn fail(&mut self, what: String) {
        self.n_errors += 1;
        self.last_error = Some(what);
    }
}
