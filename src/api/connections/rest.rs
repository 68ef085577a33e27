//! What is left of a request's body when its answer is there: who was refused may still be sending, and would lose the
//! answer with the connection if nothing were read. Over HTTP/2 the stream would be reset, which some clients take for
//! a failure though the answer is whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header;
use futures::StreamExt;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::activity::Arriving;

/// The most of a body that is read and thrown away. Of a longer one nothing is.
const MAX_REST_BYTES: u64 = 4 << 20;

/// How long it is read.
const LINGER: Duration = Duration::from_secs(2);

/// A body of which somebody else may read what is left; `None` once nothing is.
type Shared = Arc<Mutex<Option<Incoming>>>;

/// The body of a request, as handlers read it.
pub(super) struct Given(Shared);

/// What handlers leave of it; `None` where that does not matter.
pub(super) struct Rest(Option<Shared>);

/// Keeps what handlers will leave of a request's body. Who expects `100 Continue` has not begun to send.
pub(super) fn keep(request: Request<Incoming>) -> (Request<Given>, Rest) {
    let is_sent = !request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    let shared = Arc::new(Mutex::new((!body.is_end_stream()).then_some(body)));
    let rest = Rest(is_sent.then(|| Arc::clone(&shared)));
    (Request::from_parts(head, Given(shared)), rest)
}

impl Rest {
    /// What is left and short enough to be read; `None` while somebody reads it.
    pub(super) fn left(self) -> Option<Incoming> {
        let body = Arc::into_inner(self.0?)?.into_inner()?;
        (!body.is_end_stream() && body.size_hint().lower() <= MAX_REST_BYTES).then_some(body)
    }
}

/// Reads what is left, and throws it away.
pub(super) async fn discard(left: Arriving<Incoming>) {
    let mut pieces = Body::new(left).into_data_stream();
    let all = async {
        let mut n_bytes = 0;
        while let Some(Ok(piece)) = pieces.next().await {
            n_bytes += piece.len() as u64;
            if n_bytes > MAX_REST_BYTES {
                break;
            }
        }
    };
    // Who takes longer loses the answer.
    let _ = tokio::time::timeout(LINGER, all).await;
}

impl http_body::Body for Given {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut shared = self.0.lock();
        let Some(body) = &mut *shared else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            *shared = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}
