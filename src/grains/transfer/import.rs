//! Taking grains in: lines are read, embedded and committed at the same time, in their order.
//!
//! While one batch is committed, two are looked up and embedded, so that neither the model nor the disk waits for the
//! other. Of lines with one id the later comes after the earlier in any case: it is looked up when that one is written.
//! The import is a task of its own: it goes on while its caller sends without reading what is answered, and ends with
//! the caller.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, OptionFuture};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, Stream, StreamExt};
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::super::error::GrainError;
use super::super::refusal::Refusal;
use super::super::service::Grains;
use super::batch::{Fate, Line, Lines, Prepared, Verdict, Writer};
use super::lines::{ImportEntry, ImportLine, ImportSpace, ReadingEnded};
use crate::domain::GrainId;
use crate::engine::meter;

/// Batches that are looked up and embedded at the same time.
const PREPARED_AT_ONCE: usize = 2;

/// How often the import says how far it is, and writes lines that no others have followed.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// How long the lines of an import that ended before them are still read, and thrown away.
const LINGER: Duration = Duration::from_secs(2);

/// Failed lines that are reported one by one; more are only counted.
const MAX_REPORTED: usize = 5_000;

/// Characters of such a line's id that are told: it may have any number.
const MAX_ID_CHARS: usize = 256;

/// Events besides failed lines that wait for a slow reader. Progress that finds no room is left out.
const OTHER_EVENTS: usize = 16;

/// What becomes of a line whose id is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// It fails.
    #[default]
    Error,
    /// The stored grain stays.
    Skip,
    /// The stored grain becomes what the line says.
    Replace,
}

/// What becomes of a vector whose space is not known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownVectors {
    /// Its line fails.
    #[default]
    Refuse,
    /// The text is embedded anew.
    Reembed,
}

/// How grains are taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// What becomes of a line whose id is taken.
    pub on_conflict: OnConflict,
    /// What becomes of a vector whose space is not known here.
    pub unknown_vectors: UnknownVectors,
    /// What becomes of a line that declares a space.
    pub declarations: Declarations,
}

/// What becomes of a line that declares a space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declarations {
    /// The space is known from then on.
    Taken,
    /// The line is refused, unless the space is known already.
    #[default]
    Refused,
}

/// What became of the lines so far. Its fields are the words on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Lines that were read, but for manifests and ends of exports that are as they should be.
    pub read: u64,
    /// New grains.
    pub created: u64,
    /// Grains that have another version now.
    pub replaced: u64,
    /// Grains that were like this already.
    pub unchanged: u64,
    /// Lines whose grain was there and stays.
    pub skipped: u64,
    /// Lines that were not taken.
    pub failed: u64,
}

/// What an import says on its way.
#[derive(Debug)]
pub enum ImportEvent {
    /// How far it is.
    Progress(Tally),
    /// A line that was not taken.
    Failed {
        /// Its number, from 1.
        line: u64,
        /// The id it says, or its beginning.
        id: Option<String>,
        /// Why.
        refusal: Refusal,
    },
    /// Nothing more is taken.
    Stopped(ImportStop),
    /// The last event.
    End {
        /// What became of the lines.
        tally: Tally,
        /// Failed lines that were only counted.
        unreported: u64,
        /// Whether every line was read and has its verdict.
        complete: bool,
    },
}

/// Why an import ended before its lines did.
#[derive(Debug)]
pub enum ImportStop {
    /// What concerns every line: the database, the active model.
    Grains(GrainError),
    /// The lines ended in the middle.
    Cut,
    /// No line came for so long.
    Slow(Duration),
    /// Who sends the lines may not write any more.
    Refused,
    /// The server is stopping.
    ShuttingDown,
}

impl Grains {
    /// Takes in the grains of these lines, as a task. It ends early when the receiver is dropped.
    ///
    /// # Errors
    /// [`GrainError::TooManyImports`].
    pub fn import(
        &self,
        lines: impl Stream<Item = Result<ImportLine, ReadingEnded>> + Send + 'static,
        options: ImportOptions,
    ) -> Result<Receiver<ImportEvent>, GrainError> {
        let place = Arc::clone(&self.imports).try_acquire_owned().map_err(|_| GrainError::TooManyImports)?;
        let (events, receiver) = channel(MAX_REPORTED + OTHER_EVENTS);
        let writer = Writer { grains: self.clone(), options, sought: tokio::sync::Mutex::default() };
        let import = Import {
            writer: Arc::new(writer),
            events: events.clone(),
            tally: Tally::default(),
            n_reported: 0,
            since_end: 0,
            batch: Lines::default(),
            preparing: FuturesOrdered::new(),
            prepared: VecDeque::new(),
            ids: VecDeque::new(),
            stop: None,
        };
        let hard = self.shutdown.hard().clone();
        let work = async move {
            let _place = place;
            tokio::select! {
                () = events.closed() => tracing::info!("an import was given up by its caller"),
                () = hard.cancelled() => {}
                () = import.run(lines) => {}
            }
        };
        self.shutdown.spawn("import grains", meter::carried(work));
        Ok(receiver)
    }
}

type Preparing = BoxFuture<'static, Result<Prepared, GrainError>>;
type Writing = BoxFuture<'static, Result<Vec<Verdict>, GrainError>>;

/// A running import.
struct Import {
    writer: Arc<Writer>,
    events: Sender<ImportEvent>,
    tally: Tally,
    n_reported: usize,
    /// Grains since the end of the last export in the file.
    since_end: u64,
    batch: Lines,
    preparing: FuturesOrdered<Preparing>,
    prepared: VecDeque<Prepared>,
    /// The ids of each batch that is not written yet.
    ids: VecDeque<HashSet<GrainId>>,
    stop: Option<ImportStop>,
}

impl Import {
    async fn run(mut self, lines: impl Stream<Item = Result<ImportLine, ReadingEnded>>) {
        // Looked at once more when the import has ended before them.
        let mut lines = pin!(lines.fuse());
        let soft = self.writer.grains.shutdown.soft().clone();
        let mut every = tokio::time::interval(SAY_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        every.reset();
        let mut is_open = true;
        let mut writing: Option<Writing> = None;
        loop {
            if self.batch.is_full() || !is_open {
                self.begin_batch();
            }
            if writing.is_none() {
                writing = self.prepared.pop_front().map(|prepared| self.begin_write(prepared));
            }
            let is_idle = self.preparing.is_empty() && writing.is_none();
            if is_idle && !is_open && self.batch.is_empty() {
                break;
            }
            tokio::select! {
                line = lines.next(), if is_open && !self.batch.is_full() => match line {
                    Some(Ok(line)) => self.take(line).await,
                    Some(Err(ReadingEnded::Cut)) => self.stop_with(ImportStop::Cut),
                    Some(Err(ReadingEnded::Slow(limit))) => self.stop_with(ImportStop::Slow(limit)),
                    Some(Err(ReadingEnded::Refused)) => self.stop_with(ImportStop::Refused),
                    None => is_open = false,
                },
                Some(prepared) = self.preparing.next() => match prepared {
                    Ok(prepared) => self.prepared.push_back(prepared),
                    Err(error) => self.give_up(error),
                },
                Some(written) = OptionFuture::from(writing.as_mut()) => {
                    writing = None;
                    self.ids.pop_front();
                    match written {
                        Ok(verdicts) => verdicts.into_iter().for_each(|verdict| self.count(verdict)),
                        Err(error) => {
                            self.give_up(error);
                            self.prepared.clear();
                        }
                    }
                }
                _ = every.tick() => {
                    self.say_progress();
                    // A caller that sends line by line waits for none that are still to come.
                    if is_idle {
                        self.begin_batch();
                    }
                }
                () = soft.cancelled(), if is_open => self.stop_with(ImportStop::ShuttingDown),
            }
            is_open &= self.stop.is_none();
        }
        let is_still_sent =
            matches!(self.stop, Some(ImportStop::Grains(_) | ImportStop::Refused | ImportStop::ShuttingDown));
        let _events = self.events.clone();
        self.say_end().await;
        if is_still_sent {
            // One that sends all before it reads would lose the answer with the connection.
            let _ = tokio::time::timeout(LINGER, lines.for_each(|_| std::future::ready(()))).await;
        }
    }

    /// Takes a line that was read.
    async fn take(&mut self, line: ImportLine) {
        let ImportLine { number, size, id, entry } = line;
        match entry {
            Ok(ImportEntry::Grain(grain)) => {
                self.tally.read += 1;
                self.since_end += 1;
                let id = GrainId::stored(id.unwrap_or_else(|| Uuid::now_v7().to_string()));
                self.batch.push(Line { number, id, grain: *grain }, size);
            }
            Ok(ImportEntry::Space(space)) => match declare(&Arc::clone(&self.writer), &space).await {
                Ok(()) => {}
                Err(
                    error @ (GrainError::ForeignManifest { .. }
                    | GrainError::DeclaredOtherwise { .. }
                    | GrainError::Undeclared(_)),
                ) => {
                    self.tally.read += 1;
                    self.fail(number, id, error.refusal());
                }
                Err(error) => self.give_up(error),
            },
            Ok(ImportEntry::End(said)) => {
                let found = std::mem::take(&mut self.since_end);
                if said != found {
                    self.tally.read += 1;
                    self.fail(number, id, GrainError::Cut { said, found }.refusal());
                }
            }
            Err(refusal) => {
                self.tally.read += 1;
                self.since_end += 1;
                self.fail(number, id, refusal);
            }
        }
    }

    /// Begins to look up and embed the lines that were read, if there is room for another batch.
    fn begin_batch(&mut self) {
        if self.batch.is_empty() || self.preparing.len() + self.prepared.len() >= PREPARED_AT_ONCE {
            return;
        }
        let lines = self.batch.take();
        let ahead = self.ids.iter().flatten().cloned().collect();
        self.ids.push_back(lines.iter().map(|line| line.id.clone()).collect());
        let writer = Arc::clone(&self.writer);
        self.preparing.push_back(async move { writer.prepare(lines, ahead).await }.boxed());
    }

    fn begin_write(&self, prepared: Prepared) -> Writing {
        let writer = Arc::clone(&self.writer);
        async move { writer.write(prepared).await }.boxed()
    }

    fn stop_with(&mut self, stop: ImportStop) {
        self.stop.get_or_insert(stop);
    }

    /// Nothing that is not prepared yet will be written.
    fn give_up(&mut self, error: GrainError) {
        self.stop_with(ImportStop::Grains(error));
        self.batch.take();
        self.preparing.clear();
    }

    fn count(&mut self, verdict: Verdict) {
        let Verdict { number, id, fate } = verdict;
        match fate {
            Fate::Created => self.tally.created += 1,
            Fate::Replaced => self.tally.replaced += 1,
            Fate::Unchanged => self.tally.unchanged += 1,
            Fate::Skipped => self.tally.skipped += 1,
            Fate::Failed(refusal) => self.fail(number, Some(id.to_string()), refusal),
        }
    }

    fn fail(&mut self, line: u64, id: Option<String>, refusal: Refusal) {
        self.tally.failed += 1;
        let id = id.map(|id| id.chars().take(MAX_ID_CHARS).collect());
        // There is room for so many, whoever reads them.
        if self.n_reported < MAX_REPORTED && self.events.try_send(ImportEvent::Failed { line, id, refusal }).is_ok() {
            self.n_reported += 1;
        }
    }

    fn say_progress(&self) {
        let n_waiting = self.events.max_capacity() - self.events.capacity();
        if n_waiting < OTHER_EVENTS / 2 {
            // Nobody misses one.
            let _ = self.events.try_send(ImportEvent::Progress(self.tally));
        }
    }

    async fn say_end(mut self) {
        let Tally { read, created, replaced, unchanged, skipped, failed } = self.tally;
        let complete = self.stop.is_none();
        tracing::info!(read, created, replaced, unchanged, skipped, failed, complete, "an import ended");
        let unreported = failed - self.n_reported as u64;
        // A caller that has gone needs no answer.
        if let Some(stop) = self.stop.take() {
            let _ = self.events.send(ImportEvent::Stopped(stop)).await;
        }
        let _ = self.events.send(ImportEvent::End { tally: self.tally, unreported, complete }).await;
    }
}

/// Makes a space known that the lines to come may have vectors of.
async fn declare(writer: &Writer, space: &ImportSpace) -> Result<(), GrainError> {
    let Some(declared) = space.declared()? else { return Ok(()) };
    let grains = &writer.grains;
    if writer.options.declarations == Declarations::Refused
        && grains.ledger.space(&declared.fingerprint().space()).await?.is_none()
    {
        return Err(GrainError::Undeclared(declared.name().to_owned()));
    }
    // Who deletes many grains has the one connection that writes for longer than anybody waits for it, and the gate too.
    let _gate = grains.gate.lock().await;
    grains.declare_space(&declared).await.map(drop)
}
