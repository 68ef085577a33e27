//! Memory for answers that are made and not yet sent, which all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytesize::ByteSize;
use http_body::Body as _;

use super::access;
use super::bodies::Held;
use super::body_memory::MANY_BYTES;
use super::crowd::Crowd;
use super::error::{ApiError, Code};
use super::state::AppState;

/// Answers of at most so many bytes do not count: as many as are made at once take little together.
const MAX_UNCOUNTED_BYTES: u64 = 64 << 10;

/// Memory for the answers of all requests together.
pub struct AnswerMemory {
    size: ByteSize,
    taken_bytes: AtomicU64,
    /// Its bytes that are taken.
    crowd: Crowd,
}

/// What one answer takes of it. It is free again when this is dropped.
struct Taken {
    memory: Arc<AnswerMemory>,
    n_bytes: u64,
}

impl AnswerMemory {
    /// So much.
    #[must_use]
    pub fn new(size: ByteSize) -> Self {
        Self { size, taken_bytes: AtomicU64::new(0), crowd: Crowd::of(MANY_BYTES) }
    }

    /// What answers take, in bytes. It may be more than there is.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }

    /// Gives the system back what large answers have left behind.
    pub async fn give_back(&self) {
        self.crowd.went(self.taken_bytes()).await;
    }

    fn take(self: &Arc<Self>, n_bytes: u64) -> Taken {
        self.taken_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        self.crowd.came(self.taken_bytes());
        Taken { memory: Arc::clone(self), n_bytes }
    }

    /// The same where there is room beside the others. A larger answer than all of them may be has it where it is alone.
    fn take_of_what_is_free(self: &Arc<Self>, n_bytes: u64) -> Option<Taken> {
        let with_it = |taken: u64| {
            let together = taken.saturating_add(n_bytes);
            (taken == 0 || together <= self.size.as_u64()).then_some(together)
        };
        self.taken_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_it).ok()?;
        self.crowd.came(self.taken_bytes());
        Some(Taken { memory: Arc::clone(self), n_bytes })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.memory.taken_bytes.fetch_sub(self.n_bytes, Ordering::Relaxed);
    }
}

/// Counts large answers until they are sent, or given up, and withholds one for which there is no room beside the others.
/// Not that of a request that may have changed something, whose caller must learn of it. Streams have no length, and are
/// made as they are taken.
pub async fn bound(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if access::is_probe(&request) {
        return next.run(request).await;
    }
    let may_be_withheld = !access::may_change_something(&request);
    let response = next.run(request).await;
    let Some(n_bytes) = response.body().size_hint().exact().filter(|n_bytes| *n_bytes > MAX_UNCOUNTED_BYTES) else {
        return response;
    };
    let memory = &state.answer_memory;
    let taken = if may_be_withheld { memory.take_of_what_is_free(n_bytes) } else { Some(memory.take(n_bytes)) };
    let Some(taken) = taken else {
        let message = format!(
            "beside the answers that others have not taken yet there is no room for this one of {} in {}; try again in \
             a moment, ask for less at once, or raise `server.answer_memory`",
            ByteSize::b(n_bytes),
            memory.size
        );
        return ApiError::new(Code::Overloaded, message).with_retry_after(Duration::from_secs(1)).into_response();
    };
    response.map(|body| Body::new(Held::new(body, taken)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_share_what_there_is_and_what_must_be_told_takes_more() {
        let memory = Arc::new(AnswerMemory::new(ByteSize::b(5)));
        let first = memory.take_of_what_is_free(4).expect("there is room");
        assert!(memory.take_of_what_is_free(2).is_none(), "there is not");
        let second = memory.take_of_what_is_free(1).expect("there is");
        let told = memory.take(3);
        assert_eq!(memory.taken_bytes(), 8);
        drop(first);
        assert!(memory.take_of_what_is_free(2).is_none(), "what had to be told counts");
        drop((second, told));
        let large = memory.take_of_what_is_free(6).expect("it is alone");
        assert!(memory.take_of_what_is_free(1).is_none());
        drop(large);
        assert_eq!(memory.taken_bytes(), 0);
    }
}
