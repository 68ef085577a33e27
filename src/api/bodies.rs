//! Bodies that are watched: a request's, so that it does not trickle for ever, and an answer's, so that what is counted
//! until it is sent is counted until then.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderName;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::error::{ApiError, Code};

/// Tells nginx to pass a body on as it comes, however it is configured.
pub const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// A request's body that fails when no bytes come for too long. The time counts only while somebody waits for them.
pub struct Impatient {
    body: Body,
    limit: Duration,
    /// Made when somebody waits for the first time.
    wait: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

/// No bytes of a body came for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no byte of the body came for {} s and it was given up; send it without such pauses, or raise \
     `server.body_timeout`",
    .0.as_secs_f64()
)]
pub struct SlowBody(pub Duration);

/// The first error of this kind that an error or one of its causes is: why a body could not be read, say.
pub(super) fn cause<E: std::error::Error + Copy + 'static>(error: &(dyn std::error::Error + 'static)) -> Option<E> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref()).copied()
}

impl From<SlowBody> for ApiError {
    fn from(error: SlowBody) -> Self {
        Self::new(Code::SlowBody, error.to_string())
    }
}

impl Impatient {
    /// Waits so long for each piece of this body.
    #[must_use]
    pub fn new(body: Body, limit: Duration) -> Self {
        Self { body, limit, wait: None, is_waiting: false }
    }
}

impl http_body::Body for Impatient {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        // First the body: bytes that are there are never too late, however long nobody asked for them.
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let end = Instant::now() + this.limit;
        let wait = this.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if !this.is_waiting {
            this.is_waiting = true;
            wait.as_mut().reset(end);
        }
        ready!(wait.as_mut().poll(context));
        Poll::Ready(Some(Err(SlowBody(this.limit).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body that holds something until it is sent, or nobody wants it any more.
pub struct Held<T> {
    body: Body,
    _held: T,
}

impl<T> Held<T> {
    /// Holds this as long as the body.
    pub fn new(body: Body, held: T) -> Self {
        Self { body, _held: held }
    }
}

impl<T: Unpin> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures::{Stream, StreamExt, stream};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    fn impatient(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
        Body::new(Impatient::new(Body::from_stream(pieces.map(Ok::<_, std::io::Error>)), LIMIT))
    }

    #[tokio::test]
    async fn a_body_that_stops_fails_and_says_why() {
        let piece = || stream::iter([Bytes::from_static(b"x")]);
        assert_eq!(to_bytes(impatient(piece()), 100).await.expect("a whole body"), "x");
        let error = to_bytes(impatient(piece().chain(stream::pending())), 100).await.expect_err("it does not end");
        assert_eq!(cause::<SlowBody>(&error), Some(SlowBody(LIMIT)));
    }

    #[tokio::test]
    async fn bytes_that_are_there_are_never_too_late() {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let pieces = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let mut body = impatient(pieces).into_data_stream();
        assert!(futures::poll!(body.next()).is_pending());
        sender.send(Bytes::from_static(b"x")).await.expect("somebody reads");
        // Nobody asks for them meanwhile.
        tokio::time::sleep(LIMIT * 2).await;
        assert!(body.next().await.is_some_and(|piece| piece.is_ok()));
    }
}
