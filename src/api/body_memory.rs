//! Memory for the bodies of requests, which all of them share: their bytes, and what these become when they are read.

use std::sync::Arc;
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytesize::ByteSize;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::crowd::Crowd;
use super::error::{ApiError, Code};
use super::state::AppState;

/// So many bytes leave behind what is worth giving back.
pub(super) const MANY_BYTES: u64 = 32 << 20;

/// Memory for the bodies of all requests together.
pub struct BodyMemory {
    size: ByteSize,
    /// Its bytes that are taken.
    crowd: Crowd,
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
        Self { size, crowd: Crowd::of(MANY_BYTES), free_bytes: Arc::new(Semaphore::new(n_bytes)) }
    }

    /// What requests have taken of it, in bytes.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.size.as_u64().saturating_sub(self.free_bytes.available_permits() as u64)
    }

    /// Gives the system back what large bodies have left behind.
    pub async fn give_back(&self) {
        self.crowd.went(self.taken_bytes()).await;
    }
}

impl BodyShare {
    /// Nothing yet.
    #[must_use]
    pub fn new(memory: Arc<BodyMemory>) -> Self {
        Self { memory, taken: Arc::default() }
    }

    /// The body, which takes from this as it comes.
    pub(super) fn counted(self, body: Body) -> Body {
        Body::from_stream(body.into_data_stream().map(move |piece| {
            let piece = piece?;
            self.take(piece.len())?;
            Ok::<Bytes, BoxError>(piece)
        }))
    }

    /// Takes more.
    ///
    /// # Errors
    /// When there is none, or when all that there is would not do.
    pub(super) fn take(&self, n_bytes: usize) -> Result<(), NoMemory> {
        // What is taken is counted in 32 bits.
        let size = self.memory.size.min(ByteSize::b(u32::MAX.into()));
        let mut taken = self.taken.lock();
        let n_together = taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits).saturating_add(n_bytes);
        let n_bytes = u32::try_from(n_bytes).ok().filter(|_| n_together as u64 <= size.as_u64());
        let n_bytes = n_bytes.ok_or(NoMemory::Ever(size))?;
        let more = Arc::clone(&self.memory.free_bytes).try_acquire_many_owned(n_bytes);
        let more = more.map_err(|_| NoMemory::Now(self.memory.size))?;
        match &mut *taken {
            Some(taken) => taken.merge(more),
            taken => *taken = Some(more),
        }
        self.memory.crowd.came(self.memory.taken_bytes());
        Ok(())
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

/// Gives a request its share, until there is an answer.
pub async fn share(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let share = BodyShare::new(Arc::clone(&state.body_memory));
    request.extensions_mut().insert(share.clone());
    let response = next.run(request).await;
    drop(share);
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::super::bodies::cause;
    use super::*;

    #[tokio::test]
    async fn bodies_share_what_memory_there_is() {
        let memory = Arc::new(BodyMemory::new(ByteSize::b(5)));
        let share = || BodyShare::new(Arc::clone(&memory));
        let read = async |text: &'static str, share: BodyShare| to_bytes(share.counted(text.into()), 100).await;
        let (first, second) = (share(), share());
        assert_eq!(read("1234", first.clone()).await.expect("there is room"), "1234");
        let error = read("12", second.clone()).await.expect_err("there is no room");
        assert_eq!(cause::<NoMemory>(&error), Some(NoMemory::Now(ByteSize::b(5))));
        assert_eq!(memory.taken_bytes(), 4);
        assert_eq!(read("1", second).await.expect("there is room"), "1");
        drop(first);
        let third = share();
        assert_eq!(read("12345", third.clone()).await.expect("there is room again"), "12345");
        assert_eq!(third.take(1), Err(NoMemory::Ever(ByteSize::b(5))));
    }

    #[test]
    fn no_body_takes_more_than_32_bits_count() {
        let share = BodyShare::new(Arc::new(BodyMemory::new(ByteSize::gib(8))));
        let most = u32::MAX as usize;
        assert_eq!(share.take(most), Ok(()));
        assert_eq!(share.take(1), Err(NoMemory::Ever(ByteSize::b(most as u64))));
    }
}
