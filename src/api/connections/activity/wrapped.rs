//! What tells a connection's [`Activity`] what happens: its socket, and the bodies of requests and answers, wrapped.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Activity, Begun};

/// The most bytes of an answer that are handed to hyper at once. It takes all of a piece when it has room for one byte: of
/// a larger piece nearly all would still be unsent when the body has ended, and with it what is counted until the answer
/// is sent. As many as a frame of HTTP/2 has by default.
pub(in super::super) const MAX_PIECE_BYTES: usize = 16 << 10;

/// The body of a request, which tells as long as it is read.
pub(in super::super) struct Arriving<B> {
    // Dropped before it is told that nothing more is read.
    body: B,
    reading: Reading,
}

/// A request whose body is read, until this is dropped.
struct Reading {
    activity: Arc<Activity>,
    number: u64,
    is_over: bool,
}

impl<B: http_body::Body> Arriving<B> {
    pub(in super::super) fn new(body: B, begun: &Begun) -> Self {
        let Begun { activity, number } = begun;
        let is_over = body.is_end_stream();
        if !is_over {
            activity.state.lock().arriving.insert(*number);
        }
        Self { body, reading: Reading { activity: Arc::clone(activity), number: *number, is_over } }
    }
}

impl Reading {
    fn end(&mut self) {
        if !self.is_over {
            self.is_over = true;
            self.activity.end_of_body(self.number);
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.end();
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for Arriving<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.reading.end();
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

/// The body of an answer, which tells whether somebody takes it. Hyper gets it in pieces of [`MAX_PIECE_BYTES`].
pub(in super::super) struct Answer {
    /// `None` once it was given up.
    untaken: Arc<Mutex<Option<Untaken>>>,
}

/// What is left of an answer.
pub(super) struct Untaken {
    body: Body,
    /// What has come of the body and is still to be handed out.
    rest: Bytes,
    begun: Begun,
}

impl Answer {
    pub(in super::super) fn new(body: Body, begun: Begun) -> Self {
        let untaken = Arc::new_cyclic(|answer| {
            begun.offer(answer);
            Mutex::new(Some(Untaken { body, rest: Bytes::new(), begun }))
        });
        Self { untaken }
    }
}

impl Untaken {
    /// The frame, or its first piece where it is too large.
    fn cut(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(data) if data.len() > MAX_PIECE_BYTES => {
                self.rest = data;
                self.next_piece()
            }
            Ok(data) => Frame::data(data),
            Err(other) => other,
        }
    }

    fn next_piece(&mut self) -> Frame<Bytes> {
        let length = self.rest.len().min(MAX_PIECE_BYTES);
        // A copy: the last pieces outlive the body in the queues of hyper, and each would keep the memory of all.
        Frame::data(Bytes::copy_from_slice(&self.rest.split_to(length)))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut untaken = self.untaken.lock();
        let Some(left) = &mut *untaken else {
            return Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))));
        };
        if !left.rest.is_empty() {
            left.begun.offer(&Arc::downgrade(&self.untaken));
            return Poll::Ready(Some(Ok(left.next_piece())));
        }
        let frame = Pin::new(&mut left.body).poll_frame(context);
        if frame.is_pending() {
            left.begun.wait();
        } else {
            left.begun.offer(&Arc::downgrade(&self.untaken));
        }
        frame.map_ok(|frame| left.cut(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.untaken.lock().as_ref().is_some_and(|left| left.rest.is_empty() && left.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let hint = |left: &Untaken| left.body.size_hint() + SizeHint::with_exact(left.rest.len() as u64);
        self.untaken.lock().as_ref().map(hint).unwrap_or_default()
    }
}

/// A stream that tells when bytes have come and gone.
pub(in super::super) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    pub(in super::super) fn new(stream: S, activity: Arc<Activity>) -> Self {
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
