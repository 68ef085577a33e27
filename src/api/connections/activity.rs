//! What a connection is doing: being answered, sending a head, or nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::Version;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Why the server waits for a connection, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// A head has begun, or is owed: the first one of a connection is, from its opening on.
    InHead(Instant),
    /// The last request is answered and no other has begun. On HTTP/2 this lasts until the whole head of the next one
    /// is there, for pings come between requests.
    Between(Instant),
}

/// What a connection is doing, told by its socket and its requests.
pub(super) struct Activity {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    silence: Silence,
    n_requests: usize,
    is_http2: bool,
}

/// A request that is being answered, until this is dropped.
pub(super) struct Begun(Arc<Activity>);

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        let state = State { silence: Silence::InHead(now), n_requests: 0, is_http2: false };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Why it is waited for; `None` while requests are being answered.
    pub(super) fn silence(&self) -> Option<Silence> {
        let state = self.state.lock();
        (state.n_requests == 0).then_some(state.silence)
    }

    /// Ends when a silence has begun, or a shorter one.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A head is whole.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Begun {
        let mut state = self.state.lock();
        state.n_requests += 1;
        state.is_http2 = version == Version::HTTP_2;
        Begun(Arc::clone(self))
    }

    fn bytes_came(&self) {
        let mut state = self.state.lock();
        if state.n_requests == 0 && !state.is_http2 && matches!(state.silence, Silence::Between(_)) {
            state.silence = Silence::InHead(Instant::now());
            drop(state);
            self.changed.notify_one();
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.n_requests -= 1;
        if state.n_requests == 0 {
            state.silence = Silence::Between(Instant::now());
            drop(state);
            self.0.changed.notify_one();
        }
    }
}

/// A socket that tells when bytes have come.
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.bytes_came();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_begins_when_the_last_answer_ends_and_again_with_a_head() {
        let opened = Instant::now();
        let activity = Arc::new(Activity::new(opened));
        // A head that trickles has no more time than one that does not come.
        activity.bytes_came();
        assert_eq!(activity.silence(), Some(Silence::InHead(opened)));
        let (first, second) = (activity.begin(Version::HTTP_11), activity.begin(Version::HTTP_11));
        activity.bytes_came();
        drop(first);
        assert_eq!(activity.silence(), None);
        drop(second);
        assert!(matches!(activity.silence(), Some(Silence::Between(since)) if since >= opened));
        activity.bytes_came();
        assert!(matches!(activity.silence(), Some(Silence::InHead(since)) if since >= opened));
    }

    #[test]
    fn pings_of_http2_are_no_head() {
        let activity = Arc::new(Activity::new(Instant::now()));
        drop(activity.begin(Version::HTTP_2));
        activity.bytes_came();
        assert!(matches!(activity.silence(), Some(Silence::Between(_))));
    }
}
