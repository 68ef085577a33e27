//! Stopping in order: who must stop, who is still running, and when waiting ends.
//!
//! Owns three cancellation tokens and the tasks of the process. *Leaving* means: take what comes, and say that others
//! should be asked. *Soft* means: take no new work, finish what was begun; it implies leaving. *Hard* means: give up now;
//! it implies both. Every task of the process is spawned here under a name, so that a shutdown that does not end can say
//! what it waits for. It refuses to decide the exit code: `main` does, and `app::start` while there is no server yet. Both
//! leave through [`exit_at_once`] when something may still run.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use opentelemetry::context::FutureExt;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument;

/// Signals of one kind that come within this time are one: `timeout`, say, sends it to the process, and at once to its
/// group. So are SIGTERM and SIGHUP, which systemd sends together (`SendSIGHUP=`); SIGINT is somebody at the keyboard.
const ONE_SIGNAL: Duration = Duration::from_millis(200);

/// The tasks of the process and the tokens that end them. Clones share both.
#[derive(Clone, Debug)]
pub struct Shutdown {
    leaving: CancellationToken,
    soft: CancellationToken,
    hard: CancellationToken,
    tasks: TaskTracker,
    /// Owns what nobody waits for: what must outlive the tasks it ends, such as the listener for signals, and loads that
    /// a stop need not wait for.
    watchers: TaskTracker,
    running: RunningNames,
}

/// SIGTERM, SIGINT and SIGHUP. Once this is made they do not end the process by themselves any more: whoever holds it
/// acts on them.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` where the process is to outlive its terminal.
    hangup: Option<Signal>,
    last: LastSignal,
}

/// The signal that was answered last, and when.
#[derive(Debug, Default)]
struct LastSignal(Option<(&'static str, Instant)>);

impl Signals {
    /// Listens from here on. A signal that comes while nobody waits for one is kept.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen() -> std::io::Result<Self> {
        let hangup = (!is_ignored(libc::SIGHUP)).then(|| signal(SignalKind::hangup())).transpose()?;
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangup, last: LastSignal::default() })
    }

    /// Waits for the next signal that is another than the last one, and answers its name. Who gives up waiting loses none.
    pub async fn recv(&mut self) -> &'static str {
        loop {
            let name = self.next().await;
            if self.last.is_another(name, Instant::now()) {
                return name;
            }
        }
    }

    async fn next(&mut self) -> &'static str {
        let Self { terminate, interrupt, hangup, .. } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hung_up => "SIGHUP",
        }
    }
}

impl LastSignal {
    /// Whether a signal that comes now is another one than the last, which it then becomes.
    fn is_another(&mut self, name: &'static str, now: Instant) -> bool {
        let is_the_same = self.0.is_some_and(|(last, at)| {
            now.saturating_duration_since(at) < ONE_SIGNAL && (name == "SIGINT") == (last == "SIGINT")
        });
        if !is_the_same {
            self.0 = Some((name, now));
        }
        !is_the_same
    }
}

/// Ignores signals that would else end the process at once. A file that is as large as `ulimit -f` allows is an error of
/// the write, as a full disk is (SIGXFSZ); and who rotates the logs of other servers tells them so by SIGUSR1 or SIGUSR2.
#[allow(unsafe_code, reason = "the standard library leaves these signals as they are")]
pub fn outlive_signals() {
    for signal in [libc::SIGXFSZ, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: what is ignored runs no code. These may be ignored, so this cannot fail.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Whether whoever started the process had it ignore a signal, as `nohup` does with SIGHUP.
#[allow(unsafe_code, reason = "the standard library does not say what a signal does")]
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: zeroes are a valid `sigaction`, and without a new one the call only writes the present one there.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut present) == 0 && present.sa_sigaction == libc::SIG_IGN
    }
}

/// Runs blocking work off the async threads, inside the span of its caller, and waits for it; a shutdown does not. It goes
/// on when the caller leaves, and a panic in it is the caller's.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    output_of(tokio::task::spawn_blocking(move || span.in_scope(work))).await
}

async fn output_of<T>(task: impl Future<Output = Result<T, JoinError>>) -> T {
    // Nobody aborts a task that is waited for; the runtime ends only with the process.
    task.await.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()))
}

/// How [`Shutdown::drain`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every task ended by itself.
    Completely,
    /// The time was over; the hard token is cancelled now. Names of tasks that were still running.
    TooLate(Vec<&'static str>),
    /// Somebody gave up first: a second signal. Names of tasks that were still running.
    GivenUp(Vec<&'static str>),
}

impl Shutdown {
    /// A process that runs.
    #[must_use]
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        let soft = hard.child_token();
        Self {
            leaving: soft.child_token(),
            soft,
            hard,
            tasks: TaskTracker::new(),
            watchers: TaskTracker::new(),
            running: RunningNames::default(),
        }
    }

    /// Cancelled when others should be asked, while what comes is still taken.
    #[must_use]
    pub fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Cancelled when no new work is taken.
    #[must_use]
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled when what runs is given up.
    #[must_use]
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Takes no new work from here on.
    pub fn begin(&self) {
        self.soft.cancel();
    }

    /// Gives up what runs.
    pub fn give_up(&self) {
        self.hard.cancel();
    }

    /// Runs a future as a task in a span of its name. The task must end soon after one of the tokens; which one is its
    /// own choice.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let named = self.running.enter(name);
        let task = async move {
            let _named = named;
            future.await
        };
        self.tasks.spawn(task.instrument(tracing::info_span!("task", task = name)))
    }

    /// Does work in a task, at once and then once in each period, until the soft token is cancelled. A turn that has begun
    /// by then goes on to its end. A panic ends its own turn alone.
    pub fn every<F>(&self, name: &'static str, period: Duration, mut work: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let soft = self.soft.clone();
        self.spawn(name, async move {
            let mut ticks = tokio::time::interval(period);
            // Turns that were missed would come all at once.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while soft.run_until_cancelled(ticks.tick()).await.is_some() {
                // What makes the future may panic, too.
                let turn = AssertUnwindSafe(async { work().await });
                if turn.catch_unwind().await.is_err() {
                    tracing::error!("the task `{name}` was cut off by a panic, and goes on at its next turn");
                }
            }
        });
    }

    /// Runs a future as a task in the span of its caller, which no drain waits for and no token ends: the end of the process
    /// may cut it short at any point.
    pub fn spawn_unawaited<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.watchers.spawn(future.in_current_span())
    }

    /// Runs a future as a task and waits for it. It goes on when the caller leaves, and a panic in it is the caller's. It is
    /// part of the caller's trace, which other tasks are not: they may outlive it by days.
    pub async fn finish<F>(&self, name: &'static str, future: F) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        output_of(self.spawn(name, future.with_current_context())).await
    }

    /// Runs a future as a task that gets on whether or not its caller is polled. It ends when the caller leaves; else as
    /// [`Self::finish`].
    pub async fn carry_on<F>(&self, name: &'static str, future: F) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        output_of(AbortOnDropHandle::new(self.spawn(name, future.with_current_context()))).await
    }

    /// Runs blocking work off the async threads, inside the span of its caller.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let named = self.running.enter(name);
        let span = tracing::Span::current();
        self.tasks.spawn_blocking(move || {
            let _named = named;
            span.in_scope(work)
        })
    }

    /// Follows the signals from here on: the first begins the shutdown, after a time of leaving that may be zero, and
    /// the second gives up.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn follow(&self, signals: Signals, leaving: Duration) {
        let shutdown = self.clone();
        self.watchers.spawn(
            async move { shutdown.follow_signals(signals, leaving).await }
                .instrument(tracing::info_span!("task", task = "signals")),
        );
    }

    async fn follow_signals(self, mut signals: Signals, leaving: Duration) {
        loop {
            let name = tokio::select! {
                name = signals.recv() => name,
                () = tokio::time::sleep(leaving), if self.is_only_leaving() => {
                    self.begin();
                    continue;
                }
            };
            if self.leaving.is_cancelled() {
                tracing::warn!(signal = name, "second signal: giving up what is running");
                return self.give_up();
            }
            tracing::info!(signal = name, "stopping: finishing what is running; a second signal gives it up");
            if leaving.is_zero() {
                self.begin();
            } else {
                self.leaving.cancel();
                let drain_delay_ms = leaving.as_secs_f64() * 1e3;
                tracing::info!(drain_delay_ms, "requests are still taken, and readiness says no");
            }
        }
    }

    fn is_only_leaving(&self) -> bool {
        self.leaving.is_cancelled() && !self.soft.is_cancelled()
    }

    /// Begins the shutdown if nobody has, and waits for the tasks: until all have ended, `deadline` has passed (then
    /// gives up), or somebody gives up.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.begin();
        self.tasks.close();
        tokio::select! {
            // What has ended has ended, whatever else is true at the same moment.
            biased;
            () = self.tasks.wait() => Drained::Completely,
            () = self.hard.cancelled() => Drained::GivenUp(self.running.names()),
            () = tokio::time::sleep(deadline) => {
                let late = self.running.names();
                self.give_up();
                Drained::TooLate(late)
            }
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

/// Ends the process without the exit handlers of libraries: a load or an inference that was given up is still inside
/// the runtime library, and would crash when its globals are torn down around it.
#[allow(unsafe_code, reason = "the standard library's exit runs those handlers")]
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: _exit takes no pointer, may be called from any thread, and does not return.
    unsafe { libc::_exit(code) }
}

/// How many tasks of each name run.
#[derive(Clone, Debug, Default)]
struct RunningNames(Arc<Mutex<BTreeMap<&'static str, usize>>>);

/// Counts its name until it is dropped, with a task that was cancelled or panicked too.
struct Named {
    name: &'static str,
    running: RunningNames,
}

impl RunningNames {
    fn enter(&self, name: &'static str) -> Named {
        *self.0.lock().entry(name).or_default() += 1;
        Named { name, running: self.clone() }
    }

    fn names(&self) -> Vec<&'static str> {
        self.0.lock().keys().copied().collect()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let mut running = self.running.0.lock();
        if let Some(n_tasks) = running.get_mut(self.name) {
            *n_tasks -= 1;
            if *n_tasks == 0 {
                running.remove(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn tasks_that_follow_the_soft_token_drain_completely() {
        let shutdown = Shutdown::new();
        let soft = shutdown.soft().clone();
        let task = shutdown.spawn("worker", async move {
            soft.cancelled().await;
            7
        });
        assert_eq!(shutdown.drain(LONG).await, Drained::Completely);
        assert_eq!(task.await.expect("no panic"), 7);
        assert!(!shutdown.hard().is_cancelled());
    }

    #[tokio::test]
    async fn the_deadline_gives_up_and_names_who_was_late() {
        let shutdown = Shutdown::new();
        shutdown.spawn("stuck", pending::<()>());
        shutdown.spawn("quick", async {}).await.expect("no panic");
        assert_eq!(shutdown.drain(Duration::from_millis(10)).await, Drained::TooLate(vec!["stuck"]));
        assert!(shutdown.hard().is_cancelled());
    }

    #[tokio::test]
    async fn giving_up_ends_the_wait_and_implies_soft() {
        let shutdown = Shutdown::new();
        shutdown.spawn("stuck", pending::<()>());
        shutdown.give_up();
        assert!(shutdown.soft().is_cancelled());
        assert_eq!(shutdown.drain(LONG).await, Drained::GivenUp(vec!["stuck"]));
    }

    #[tokio::test]
    async fn a_panicking_task_does_not_hold_the_shutdown() {
        let shutdown = Shutdown::new();
        let task = shutdown.spawn("broken", async { panic!("on purpose") });
        assert_eq!(shutdown.drain(LONG).await, Drained::Completely);
        assert!(task.await.expect_err("a panic").is_panic());
        assert_eq!(shutdown.running.names(), Vec::<&str>::new());
    }

    #[tokio::test]
    async fn work_that_is_carried_on_ends_when_its_caller_leaves() {
        let shutdown = Shutdown::new();
        assert_eq!(shutdown.carry_on("reading", async { 1 }).await, 1);
        let caller = tokio::time::timeout(Duration::from_millis(1), shutdown.carry_on("reading", pending::<()>()));
        assert!(caller.await.is_err());
        assert_eq!(shutdown.drain(LONG).await, Drained::Completely);
    }

    #[tokio::test]
    async fn work_goes_on_after_a_panic_and_until_the_stop() {
        let (shutdown, n_turns) = (Shutdown::new(), Arc::new(AtomicUsize::new(0)));
        let (counted, stopping) = (Arc::clone(&n_turns), shutdown.clone());
        shutdown.every("upkeep", Duration::from_millis(1), move || {
            let (turn, stopping) = (counted.fetch_add(1, Ordering::SeqCst), stopping.clone());
            assert_ne!(turn, 0, "on purpose");
            async move {
                assert_ne!(turn, 1, "on purpose, too");
                stopping.begin();
            }
        });
        until(shutdown.soft()).await;
        assert_eq!(shutdown.drain(LONG).await, Drained::Completely);
        assert_eq!(n_turns.load(Ordering::SeqCst), 3);
    }

    /// One after the other: a signal reaches all that listen in the process.
    #[tokio::test]
    async fn signals_are_followed() {
        the_first_signal_is_soft_and_the_second_hard().await;
        who_leaves_takes_work_until_a_second_signal().await;
        who_leaves_takes_work_until_the_time_is_over().await;
        a_signal_counts_that_came_before_it_was_followed().await;
    }

    fn follow(shutdown: &Shutdown, leaving: Duration) {
        shutdown.follow(Signals::listen().expect("handlers"), leaving);
    }

    fn raise() {
        raise_other(rustix::process::Signal::TERM);
    }

    fn raise_other(signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::getpid(), signal).expect("a signal");
    }

    async fn until(token: &CancellationToken) {
        tokio::time::timeout(LONG, token.cancelled()).await.expect("cancelled in time");
    }

    async fn the_first_signal_is_soft_and_the_second_hard() {
        let shutdown = Shutdown::new();
        follow(&shutdown, Duration::ZERO);
        shutdown.spawn("stuck", pending::<()>());
        raise();
        until(shutdown.soft()).await;
        assert!(shutdown.leaving().is_cancelled() && !shutdown.hard().is_cancelled());
        tokio::time::sleep(ONE_SIGNAL).await;
        raise();
        until(shutdown.hard()).await;
        assert_eq!(shutdown.drain(LONG).await, Drained::GivenUp(vec!["stuck"]));
    }

    async fn who_leaves_takes_work_until_a_second_signal() {
        let shutdown = Shutdown::new();
        follow(&shutdown, LONG * 60);
        raise();
        until(shutdown.leaving()).await;
        assert!(!shutdown.soft().is_cancelled());
        raise_other(rustix::process::Signal::INT);
        until(shutdown.hard()).await;
    }

    async fn who_leaves_takes_work_until_the_time_is_over() {
        let shutdown = Shutdown::new();
        follow(&shutdown, Duration::from_millis(10));
        raise();
        until(shutdown.soft()).await;
        assert!(!shutdown.hard().is_cancelled());
    }

    async fn a_signal_counts_that_came_before_it_was_followed() {
        let shutdown = Shutdown::new();
        let signals = Signals::listen().expect("handlers");
        raise();
        shutdown.follow(signals, Duration::ZERO);
        until(shutdown.soft()).await;
    }

    #[test]
    fn what_comes_at_once_is_one_signal_unless_somebody_interrupts() {
        let (mut last, start) = (LastSignal::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert!(last.is_another("SIGTERM", start));
        assert!(!last.is_another("SIGTERM", after(1)));
        assert!(!last.is_another("SIGHUP", after(199)));
        assert!(last.is_another("SIGTERM", after(200)), "what was one with the first prolongs nothing");
        assert!(last.is_another("SIGINT", after(201)));
        assert!(!last.is_another("SIGINT", after(400)));
        assert!(last.is_another("SIGINT", after(401)));
        assert!(last.is_another("SIGHUP", after(402)));
    }
}
