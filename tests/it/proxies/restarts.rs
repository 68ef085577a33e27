//! What callers notice of a restart: of the one server with the database, a gap; of one embedder among two, nothing.

use std::cell::Cell;
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::helpers::{Caller, Kind, Process, Proxy, folder_with, until, with_tiny};

/// Between two requests of a caller.
const PAUSE: Duration = Duration::from_millis(20);

/// Answers before a server stops, between two restarts, and after the last: the load is there.
const N_ANSWERS: usize = 50;

/// A server that can be restarted where it is, while others are asked.
struct Restartable {
    folder: TempDir,
    url: String,
    process: Option<Process>,
}

impl Restartable {
    fn start(toml: &str) -> Self {
        let folder = folder_with(toml);
        let (process, url) = Process::serve(folder.path(), &[]);
        Self { folder, url, process: Some(process) }
    }

    /// Stops it in order and starts it again, off this thread.
    async fn restart(mut self) -> Self {
        let restarting = tokio::task::spawn_blocking(move || {
            let mut process = self.process.take().expect("a running server");
            process.signal(Signal::TERM);
            assert_eq!(process.wait().code(), Some(0), "{}", process.log());
            self.process = Some(Process::serve_again(self.folder.path(), &self.url));
            self
        });
        restarting.await.expect("no panic")
    }
}

/// What callers have seen so far.
#[derive(Default)]
struct Seen {
    n_answers: Cell<usize>,
    n_failed: Cell<usize>,
    last_answer: Cell<Option<Instant>>,
    longest_gap: Cell<Duration>,
    is_over: Cell<bool>,
}

impl Seen {
    fn answered(&self) {
        let now = Instant::now();
        if let Some(last) = self.last_answer.replace(Some(now)) {
            self.longest_gap.set(self.longest_gap.get().max(now - last));
        }
        self.n_answers.set(self.n_answers.get() + 1);
    }

    fn failed(&self, why: &str) {
        self.n_failed.set(self.n_failed.get() + 1);
        if self.n_failed.get() <= 3 {
            println!("  failed: {why}");
        }
    }

    /// Waits for so many answers more.
    async fn more_answers(&self, n_answers: usize) {
        let wanted = self.n_answers.get() + n_answers;
        until("answers go on", async || self.n_answers.get() >= wanted).await;
    }
}

/// The status of an answer that came whole.
async fn status(request: RequestBuilder) -> reqwest::Result<StatusCode> {
    let answer = request.send().await?;
    let status = answer.status();
    answer.bytes().await.map(|_| status)
}

/// Writes grains one after the other until it is over, each until it is acknowledged; returns how many.
async fn write(app: &Caller, seen: &Seen) -> usize {
    for n in 0.. {
        let grain = json!({"id": format!("g{n}"), "text": format!("grain number {n}")});
        loop {
            if seen.is_over.get() {
                return n;
            }
            match status(app.request(Method::POST, "/grains").json(&grain)).await {
                // The second when the answer to the first was lost: it is written.
                Ok(StatusCode::CREATED | StatusCode::CONFLICT) => break,
                Ok(status) => seen.failed(&status.to_string()),
                Err(error) => seen.failed(&error.to_string()),
            }
            tokio::time::sleep(PAUSE).await;
        }
        seen.answered();
        tokio::time::sleep(PAUSE).await;
    }
    unreachable!("numbers do not end")
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn a_restart_of_the_one_server_loses_nothing() {
    for kind in Kind::ALL {
        let server = Restartable::start(&format!("[server]\ndrain_delay = \"1s\"\n{}", with_tiny(&[])));
        let proxy = Proxy::start(kind, &[&server.url]);
        let (app, seen) = (Caller::of(proxy.url()), Seen::default());
        let restarting = async {
            seen.more_answers(N_ANSWERS).await;
            let server = server.restart().await;
            seen.more_answers(N_ANSWERS).await;
            seen.is_over.set(true);
            server
        };
        let (n_written, server) = tokio::join!(write(&app, &seen), restarting);
        let direct = Caller::of(server.url.clone());
        for n in 0..n_written {
            direct.get(&format!("/grains/g{n}")).await.ok();
        }
        println!(
            "{kind:?}: a restart under writes: {} ms without an answer, {} failed requests, {n_written} grains \
             acknowledged and there",
            seen.longest_gap.get().as_millis(),
            seen.n_failed.get()
        );
    }
}

/// Embeds until it is over.
async fn embed(app: &Caller, seen: &Seen) {
    while !seen.is_over.get() {
        match status(app.request(Method::POST, "/embed").json(&json!({"inputs": ["hello", "world"]}))).await {
            Ok(StatusCode::OK) => seen.answered(),
            Ok(status) => seen.failed(&status.to_string()),
            Err(error) => seen.failed(&error.to_string()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test]
#[ignore = "needs real proxies: make test-proxy"]
async fn embedders_restart_one_after_the_other_without_a_failed_request() {
    let toml = format!("[server]\ndrain_delay = \"4s\"\n[grains]\nenabled = false\n{}", with_tiny(&[]));
    for kind in [Kind::Nginx, Kind::HaProxy] {
        let (first, second) = (Restartable::start(&toml), Restartable::start(&toml));
        let proxy = Proxy::start(kind, &[&first.url, &second.url]);
        let (app, seen) = (Caller::of(proxy.url()), Seen::default());
        let restarting = async {
            seen.more_answers(N_ANSWERS).await;
            let first = first.restart().await;
            seen.more_answers(N_ANSWERS).await;
            let second = second.restart().await;
            seen.more_answers(N_ANSWERS).await;
            seen.is_over.set(true);
            [first, second]
        };
        let callers = futures::future::join_all((0..4).map(|_| embed(&app, &seen)));
        let (_, _servers) = tokio::join!(callers, restarting);
        println!("{kind:?}: two restarts: {} answers, {} failed requests", seen.n_answers.get(), seen.n_failed.get());
        assert_eq!(seen.n_failed.get(), 0, "{kind:?}:\n{}", proxy.log());
    }
}
