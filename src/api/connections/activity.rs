//! What a connection is doing: being answered, taking an answer or not, sending a head, or nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::Version;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    /// An answer is there, and since then nobody has taken any of it.
    Unread(Instant),
}

/// What a connection is doing, told by its socket and its requests.
pub(super) struct Activity {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    silence: Silence,
    n_requests: usize,
    /// Requests whose answers are there to be taken.
    n_offered: usize,
    /// When a part of an answer was last asked for or taken.
    moved: Instant,
    is_http2: bool,
}

/// A request that is being answered, until this is dropped.
pub(super) struct Begun {
    activity: Arc<Activity>,
    is_offered: bool,
}

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        let state = State { silence: Silence::InHead(now), n_requests: 0, n_offered: 0, moved: now, is_http2: false };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Why it is waited for; `None` while requests are being answered, and the answers taken.
    pub(super) fn silence(&self) -> Option<Silence> {
        let state = self.state.lock();
        match (state.n_offered, state.n_requests) {
            (0, 0) => Some(state.silence),
            (0, _) => None,
            _ => Some(Silence::Unread(state.moved)),
        }
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
        Begun { activity: Arc::clone(self), is_offered: false }
    }

    fn bytes_went(&self) {
        self.state.lock().moved = Instant::now();
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

impl Begun {
    /// A part of the answer is there.
    fn offer(&mut self) {
        let mut state = self.activity.state.lock();
        state.n_offered += usize::from(!std::mem::replace(&mut self.is_offered, true));
        state.moved = Instant::now();
    }

    /// The next part is still being made.
    fn wait(&mut self) {
        let mut state = self.activity.state.lock();
        state.n_offered -= usize::from(std::mem::take(&mut self.is_offered));
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.wait();
        let mut state = self.activity.state.lock();
        state.n_requests -= 1;
        if state.n_requests == 0 {
            state.silence = Silence::Between(Instant::now());
            drop(state);
            self.activity.changed.notify_one();
        }
    }
}

/// The body of an answer, which tells whether somebody takes it.
pub(super) struct Answer {
    body: Body,
    begun: Begun,
}

impl Answer {
    pub(super) fn new(body: Body, mut begun: Begun) -> Self {
        begun.offer();
        Self { body, begun }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending() {
            self.begun.wait();
        } else {
            self.begun.offer();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that tells when bytes have come and gone.
pub(super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.activity.bytes_went();
        }
        written
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        if written.is_ready() {
            self.activity.bytes_went();
        }
        written
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
    fn an_answer_that_is_there_is_unread_until_its_next_part_is_asked_for_and_not_there_yet() {
        let activity = Arc::new(Activity::new(Instant::now()));
        let (mut slow, other) = (activity.begin(Version::HTTP_2), activity.begin(Version::HTTP_2));
        assert_eq!(activity.silence(), None);
        slow.offer();
        let Some(Silence::Unread(since)) = activity.silence() else { panic!("it is unread") };
        activity.bytes_went();
        assert!(matches!(activity.silence(), Some(Silence::Unread(later)) if later >= since));
        slow.wait();
        assert_eq!(activity.silence(), None);
        slow.offer();
        drop(other);
        assert!(matches!(activity.silence(), Some(Silence::Unread(_))));
        drop(slow);
        assert!(matches!(activity.silence(), Some(Silence::Between(_))));
    }

    #[test]
    fn pings_of_http2_are_no_head() {
        let activity = Arc::new(Activity::new(Instant::now()));
        drop(activity.begin(Version::HTTP_2));
        activity.bytes_came();
        assert!(matches!(activity.silence(), Some(Silence::Between(_))));
    }
}
