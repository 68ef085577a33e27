//! Bodies that are watched: a request's, so that it neither trickles for ever nor takes the memory of all others, and an
//! answer's, so that what is counted until it is sent is counted until then.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderName;
use bytesize::ByteSize;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::error::{ApiError, Code};

/// Tells nginx to pass a body on as it comes, however it is configured.
pub const UNBUFFERED: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// A request's body that fails when no bytes come for too long. The time counts only while somebody waits for them.
pub struct Impatient {
    body: Body,
    limit: Duration,
    wait: Pin<Box<Sleep>>,
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

impl SlowBody {
    /// Whether this is why a body could not be read.
    #[must_use]
    pub fn behind(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        cause(error)
    }
}

/// The first error of this kind that an error or one of its causes is.
fn cause<E: std::error::Error + Copy + 'static>(error: &(dyn std::error::Error + 'static)) -> Option<E> {
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
        Self { body, limit, wait: Box::pin(tokio::time::sleep(limit)), is_waiting: false }
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
        if !this.is_waiting {
            this.is_waiting = true;
            this.wait.as_mut().reset(Instant::now() + this.limit);
        }
        ready!(this.wait.as_mut().poll(context));
        Poll::Ready(Some(Err(SlowBody(this.limit).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Memory for the bodies of all requests together.
pub struct BodyMemory {
    size: ByteSize,
    free_bytes: Arc<Semaphore>,
}

/// What one request has taken of it. All of it is free again when the last clone is dropped.
#[derive(Clone)]
pub struct BodyShare {
    memory: Arc<BodyMemory>,
    taken: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

/// There is no memory for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMemory {
    /// Not beside those of the other requests.
    #[error(
        "the bodies of all requests together would take more than {0}; try again in a moment, send smaller ones, or \
         raise `server.body_memory`"
    )]
    Now(ByteSize),
    /// Not even alone.
    #[error(
        "the body alone would take more than {0} of memory when it is read: send it in parts, or raise \
         `server.body_memory`"
    )]
    Ever(ByteSize),
}

impl BodyMemory {
    /// So much.
    #[must_use]
    pub fn new(size: ByteSize) -> Self {
        let n_bytes = usize::try_from(size.as_u64()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { size, free_bytes: Arc::new(Semaphore::new(n_bytes)) }
    }
}

impl BodyShare {
    /// Nothing yet.
    #[must_use]
    pub fn new(memory: Arc<BodyMemory>) -> Self {
        Self { memory, taken: Arc::default() }
    }

    /// Takes more.
    ///
    /// # Errors
    /// When there is none, or when all that there is would not do.
    pub fn take(&self, n_bytes: usize) -> Result<(), NoMemory> {
        let size = self.memory.size;
        let mut taken = self.taken.lock();
        let n_together = taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits).saturating_add(n_bytes);
        let n_bytes = u32::try_from(n_bytes).ok().filter(|_| n_together as u64 <= size.as_u64());
        let n_bytes = n_bytes.ok_or(NoMemory::Ever(size))?;
        let more = Arc::clone(&self.memory.free_bytes).try_acquire_many_owned(n_bytes);
        let more = more.map_err(|_| NoMemory::Now(size))?;
        match &mut *taken {
            Some(taken) => taken.merge(more),
            taken => *taken = Some(more),
        }
        Ok(())
    }
}

impl NoMemory {
    /// Whether this is why a body could not be read.
    #[must_use]
    pub fn behind(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        cause(error)
    }
}

impl From<NoMemory> for ApiError {
    fn from(error: NoMemory) -> Self {
        match error {
            NoMemory::Now(_) => Self::new(Code::Overloaded, error.to_string()).with_retry_after(Duration::from_secs(1)),
            NoMemory::Ever(_) => Self::new(Code::BodyTooLarge, error.to_string()),
        }
    }
}

/// A request's body that is read as a whole, and takes its share of memory as it comes.
pub struct Counted {
    body: Body,
    share: BodyShare,
}

impl Counted {
    /// Takes from this share.
    #[must_use]
    pub fn new(body: Body, share: BodyShare) -> Self {
        Self { body, share }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            self.share.take(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        }))
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
        assert_eq!(SlowBody::behind(&error), Some(SlowBody(LIMIT)));
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

    #[tokio::test]
    async fn bodies_share_what_memory_there_is() {
        let memory = Arc::new(BodyMemory::new(ByteSize::b(5)));
        let share = || BodyShare::new(Arc::clone(&memory));
        let read = async |text: &'static str, share| to_bytes(Body::new(Counted::new(text.into(), share)), 100).await;
        let (first, second) = (share(), share());
        assert_eq!(read("1234", first.clone()).await.expect("there is room"), "1234");
        let error = read("12", second.clone()).await.expect_err("there is no room");
        assert_eq!(NoMemory::behind(&error), Some(NoMemory::Now(ByteSize::b(5))));
        assert_eq!(read("1", second).await.expect("there is room"), "1");
        drop(first);
        let third = share();
        assert_eq!(read("12345", third.clone()).await.expect("there is room again"), "12345");
        assert_eq!(third.take(1), Err(NoMemory::Ever(ByteSize::b(5))));
    }
}
