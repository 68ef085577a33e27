//! Work of a tokenizer: a little where it is, and more on other threads than those of requests and in turns. Of all models
//! and callers together, only so much of that is done at once as there are cores.

use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;
use tracing::Span;

use super::error::EngineError;
use crate::allocator;

/// Items of so many bytes together are done where they are, in some tens of microseconds: less than it costs to wake
/// another thread and be woken by it, and short enough for an async thread.
const IN_PLACE_BYTES: usize = 512;

/// Items that one task takes at most: more are spread over several.
const ITEMS_PER_TURN: usize = 64;

/// Bytes after which a task takes no further item: tokenizing takes some hundred bytes for each.
const BYTES_PER_TURN: usize = 256 << 10;

/// Bytes from which on what a task took of memory is given back at its end: some hundred megabytes.
const LARGE_TURN_BYTES: usize = 1 << 20;

/// Tasks at once: one for each core. More would take memory, and be no faster.
static TURNS: OnceLock<Arc<Semaphore>> = OnceLock::new();

/// Lets so many tasks run at once from now on. The first call in a process counts, if it comes before the first task: else
/// there are as many as the standard library counts cores.
pub fn allow_turns(n_cores: usize) {
    TURNS.get_or_init(|| Arc::new(Semaphore::new(n_cores)));
}

fn turns() -> &'static Arc<Semaphore> {
    TURNS.get_or_init(|| Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))))
}

/// Does this with each item, which it gets with its place: where it is called, if all of it is about few bytes, and else in
/// tasks. When the future is dropped, no further task is begun.
///
/// # Errors
/// The first that the work has, in the order of the items.
pub async fn in_place_or_turns<I: Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    n_bytes_of_all: usize,
    n_bytes: fn(&I) -> usize,
    work: impl Fn(usize, &I) -> Result<T, EngineError> + Clone + Send + 'static,
) -> Result<Vec<T>, EngineError> {
    if n_bytes_of_all <= IN_PLACE_BYTES {
        return items.iter().enumerate().map(|(index, item)| work(index, item)).collect();
    }
    in_turns(items, n_bytes, work).await
}

async fn in_turns<I: Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    n_bytes: fn(&I) -> usize,
    work: impl Fn(usize, &I) -> Result<T, EngineError> + Clone + Send + 'static,
) -> Result<Vec<T>, EngineError> {
    let n_items = items.len();
    let mut rest = items;
    let mut tasks = Vec::new();
    let mut first_index = 0;
    while !rest.is_empty() {
        let turn = Arc::clone(turns()).acquire_owned().await.map_err(|_| EngineError::Closed)?;
        let chunk: Vec<I> = rest.drain(..n_in_one_turn(&rest, n_bytes)).collect();
        let (work, span) = (work.clone(), Span::current());
        let offset = first_index;
        first_index += chunk.len();
        tasks.push(tokio::task::spawn_blocking(move || {
            let (_turn, _entered) = (turn, span.enter());
            let done = chunk.iter().enumerate().map(|(i, item)| work(offset + i, item)).collect::<Result<Vec<_>, _>>();
            if chunk.iter().map(n_bytes).sum::<usize>() >= LARGE_TURN_BYTES {
                allocator::give_back();
            }
            done
        }));
    }
    let mut done = Vec::with_capacity(n_items);
    for task in tasks {
        let chunk = task.await.map_err(|source| EngineError::Tokenize { index: done.len(), source: source.into() });
        done.extend(chunk??);
    }
    Ok(done)
}

/// How many of the items one task takes: one at least.
fn n_in_one_turn<I>(items: &[I], n_bytes: fn(&I) -> usize) -> usize {
    let mut n_taken = 0;
    let fits = |item: &&I| {
        let has_room = n_taken < BYTES_PER_TURN;
        n_taken += n_bytes(item);
        has_room
    };
    items.iter().take(ITEMS_PER_TURN).take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_tasks_run_at_once_as_the_first_call_allows() {
        allow_turns(3);
        allow_turns(7);
        assert_eq!(turns().available_permits(), 3);
    }

    #[tokio::test]
    async fn what_is_about_few_bytes_is_done_where_it_is() {
        let here = std::thread::current().id();
        for (n_bytes_of_all, is_here) in [(IN_PLACE_BYTES, true), (IN_PLACE_BYTES + 1, false)] {
            let work = move |index, item: &&str| Ok((index, item.len(), std::thread::current().id() == here));
            let done = in_place_or_turns(vec!["a", "bc"], n_bytes_of_all, |item| item.len(), work).await;
            assert_eq!(done.expect("done"), [(0, 1, is_here), (1, 2, is_here)]);
        }
    }
}
