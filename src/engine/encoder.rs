//! A loaded model: tokenizer, sessions and the queue between them.
//!
//! Start at [`Encoder::open`] and [`Encoder::encode`]. Long inputs are tokenized on tokio's blocking threads; a few
//! threads run the model's sessions: each takes micro-batches from the queue until the encoder is closed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use metrics::histogram;

use super::batcher::{Batcher, Lane};
use super::dense::{self, Module};
use super::error::{Cause, EngineError};
use super::graph::GraphFiles;
use super::head::Head;
use super::job::{Finish, Priority};
use super::meter;
use super::padded::{PaddedBatch, Positions};
use super::queue::{BatchItem, BatchLimits, MicroBatch};
use super::run_memory;
use super::session::{EncoderSession, GraphOutput, OutputKind, Runtime, SessionOptions, WantedOutput};
use super::tokenize::{Input, OverLong, TextTokenizer, Tokens};
use super::trials::{check_padding, check_positions, check_rounding, check_size};
use super::turns::in_place_or_turns;
use crate::domain::{ExtraToken, Pooling, Provider};
use crate::telemetry;
use crate::telemetry::traces::Trace;

/// A thread that runs bulk has half the weight of others where cores are short: a lone query's threads wait for each other,
/// and each that waits for a core costs a turn of the kernel's, some milliseconds.
const BULK_NICENESS: i32 = 3;

/// A text as long as so many full batches takes seconds, beside which the pages of new memory for the next one count little.
const LONG_BATCHES: usize = 4;

/// Texts with more characters for each token are rare: in English it is four or five, in other scripts fewer.
const MANY_CHARS_PER_TOKEN: usize = 6;

/// Everything needed to open a model.
#[derive(Clone, Debug)]
pub struct EncoderSpec {
    /// The model's name, as the `model` label of metrics.
    pub label: String,
    /// The graph.
    pub graph: GraphFiles,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// The tokens that it is to read in texts besides its own.
    pub extra_tokens: Vec<ExtraToken>,
    /// How to pool, when known.
    pub pooling: Option<Pooling>,
    /// What is done to the pooled vector, in this order.
    pub modules: Arc<[Module]>,
    /// The hidden size, when the model's files say it.
    pub hidden_size: Option<u32>,
    /// The length of vector that the settings expect, to tell outputs without a known name apart where the files say
    /// nothing. Whether it is right is the caller's to judge.
    pub expected_dimensions: Option<u32>,
    /// Rows of the embedding table, when known.
    pub vocabulary_size: Option<u32>,
    /// From which number the model counts tokens, when its files say it. Most graphs count by themselves.
    pub positions: Option<Positions>,
    /// The most tokens a text keeps.
    pub max_tokens: usize,
    /// Whether a text's vector depends on its neighbours in a batch (dynamic quantisation): then it has none.
    pub runs_alone: bool,
}

/// How a model is to be run on this machine.
#[derive(Clone, Copy, Debug)]
pub struct EncoderOptions {
    /// The session of the bulk workers, one for each of its streams.
    pub bulk: SessionOptions,
    /// The session of the query lane, if the model is to have one: it costs a second copy of the weights.
    pub queries: Option<SessionOptions>,
    /// How texts are gathered.
    pub batch: BatchLimits,
}

/// A request to embed.
#[derive(Clone, Debug)]
pub struct EncodeRequest {
    /// At least one.
    pub inputs: Vec<Input>,
    /// Put before each text.
    pub prompt: Option<String>,
    /// What to do with texts that are too long.
    pub over_long: OverLong,
    /// What to do with each vector.
    pub finish: Finish,
    /// Whether somebody waits for them.
    pub priority: Priority,
}

/// The vectors of a request and what is to be told about them.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// `[n_inputs][dimensions]`, in the request's order.
    pub vectors: Vec<f32>,
    /// The length of each vector.
    pub dimensions: usize,
    /// Tokens each input was embedded with, special tokens included.
    pub n_tokens: Vec<usize>,
    /// Places of the inputs that were cut, ascending.
    pub truncated: Vec<usize>,
    /// Time to tokenize.
    pub tokenization_time: Duration,
    /// Time until its first batch was taken.
    pub queue_time: Duration,
    /// Its share of the time in the runtime.
    pub inference_time: Duration,
}

/// Tells the batch that a model's workers have been running for longest, by a number that no other batch has; `None` when
/// they run none. Who sees the same one again and again sees an inference that does not end.
pub type OldestBatch = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// A loaded model. Dropping it ends its threads once their batch is done.
pub struct Encoder {
    tokenizer: Arc<TextTokenizer>,
    batcher: Arc<Batcher>,
    workers: Vec<JoinHandle<()>>,
    n_bulk: usize,
    output: GraphOutput,
    head: Head,
    dimensions: usize,
}

impl Encoder {
    /// Opens the model's files, checks that they fit each other by running them, and starts the workers.
    ///
    /// Blocks for as long as the runtime takes to read the weights.
    ///
    /// # Errors
    /// Each way in which the files do not make a text encoder.
    pub fn open(runtime: &Runtime, spec: &EncoderSpec, options: EncoderOptions) -> Result<Self, EngineError> {
        let tokenizer = TextTokenizer::open(&spec.tokenizer, spec.max_tokens)?;
        // Where nobody says how many rows there are, the file's own tokens have some.
        let rows = spec.vocabulary_size.unwrap_or(tokenizer.highest_id().saturating_add(1));
        let tokenizer = tokenizer.with_extra(&spec.extra_tokens)?.for_rows(rows)?;
        let mismatch = |model_limit| EngineError::TokenizerMismatch {
            path: tokenizer.path().to_owned(),
            highest_id: tokenizer.highest_id(),
            model_limit,
        };
        let module_sizes = dense::sizes(&spec.modules);
        let hidden_size = spec.hidden_size.or(module_sizes.map_or(spec.expected_dimensions, |(taken, _)| Some(taken)));
        let wanted = WantedOutput { pooling_is_known: spec.pooling.is_some(), hidden_size };
        let session = open_giving_way(runtime, &spec.graph, options.bulk, wanted)?;
        let output = session.output().clone();
        let unsupported = |reason| EngineError::UnsupportedGraph { path: spec.graph.onnx.clone(), reason };
        check_positions(&session, spec.positions.as_ref()).map_err(unsupported)?;
        let pooling = match output.kind {
            OutputKind::Texts if !spec.modules.is_empty() => {
                return Err(unsupported(format!(
                    "its output `{}` is pooled, so that nobody can tell whether the Dense modules of modules.json are \
                     part of the graph: export it with one vector per token, or leave them out of modules.json if they are",
                    output.name
                )));
            }
            OutputKind::Texts => None,
            OutputKind::Tokens => Some(spec.pooling.ok_or_else(|| {
                unsupported(format!(
                    "its output `{}` has one vector per token, and nothing says how to pool them: set the model's \
                     `pooling` to \"mean\", \"mean_sqrt_len\", \"cls\", \"last_token\" or \"max\", or use a model folder \
                     with its 1_Pooling/config.json",
                    output.name
                ))
            })?),
        };
        let trial = |ids: &[u32], blame: &dyn Fn(Cause) -> EngineError| {
            let mut batch = PaddedBatch::default();
            batch.fill(std::iter::once(ids), options.batch.width(ids.len()));
            let run = session.run(&batch, |output| output.dimensions);
            run.map_err(|source| EngineError::of_open(&spec.graph.onnx, source, blame))
        };
        let highest_id = tokenizer.highest_id();
        // The lowest id first: when that runs and the highest does not, the tokenizer is the one to blame.
        let dimensions = trial(&[0, 0], &|source| unsupported(format!("a trial run of two tokens failed: {source}")))?;
        trial(&[0, highest_id], &|source| mismatch(format!("fails on the last of them ({source})")))?;
        check_size(&output, dimensions, spec.hidden_size, module_sizes.map(|(taken, _)| taken)).map_err(unsupported)?;
        let head = Head { pooling, modules: Arc::clone(&spec.modules) };
        let pads = options.batch.max_batch_texts > 1 || options.batch.width_step > 1;
        if pads && !spec.runs_alone {
            check_padding(&session, &head, &tokenizer).map_err(unsupported)?;
        }
        if options.bulk.bf16 {
            check_rounding(runtime, &session, &head, &tokenizer, (spec, options.bulk, wanted)).map_err(unsupported)?;
        }
        let limits = if spec.runs_alone {
            BatchLimits { max_batch_texts: 1, width_step: 1, ..options.batch }
        } else {
            options.batch
        };
        let session = Arc::new(session);
        let n_bulk = options.bulk.streams.max(1);
        let mut runners = vec![(Lane::Bulk, session); n_bulk];
        if let Some(options) = options.queries {
            let session = EncoderSession::open(runtime, &spec.graph, options, wanted)?;
            runners.push((Lane::Queries, Arc::new(session)));
        }
        let lanes: Vec<Lane> = runners.iter().map(|(lane, _)| *lane).collect();
        let mut encoder = Self {
            tokenizer: Arc::new(tokenizer),
            batcher: Arc::new(Batcher::new(limits, &lanes, &spec.label)),
            workers: Vec::new(),
            n_bulk,
            output,
            head,
            dimensions: module_sizes.map_or(dimensions, |(_, made)| made as usize),
        };
        for (index, (lane, session)) in runners.into_iter().enumerate() {
            let worker = Worker {
                lane,
                session,
                batcher: Arc::clone(&encoder.batcher),
                head: encoder.head.clone(),
                n_bulk,
                on_cpu: options.bulk.provider == Provider::Cpu,
                max_batch_tokens: limits.max_batch_tokens,
                padded: PaddedBatch::default(),
            };
            let thread = thread::Builder::new()
                .name(format!("infer-{index}"))
                .spawn(move || worker.run())
                .map_err(|source| EngineError::Start { what: "an inference thread", source })?;
            encoder.workers.push(thread);
        }
        Ok(encoder)
    }

    /// The graph output that is read.
    #[must_use]
    pub fn output(&self) -> &GraphOutput {
        &self.output
    }

    /// How token vectors are pooled; `None` when the graph has done it.
    #[must_use]
    pub fn pooling(&self) -> Option<Pooling> {
        self.head.pooling
    }

    /// The length of an uncut vector.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Batches that run at once, but for lone queries.
    #[must_use]
    pub fn n_bulk_workers(&self) -> usize {
        self.n_bulk
    }

    /// Sessions, each with weights of its own: one in bulk, and one for lone queries if it has that.
    #[must_use]
    pub fn n_sessions(&self) -> usize {
        1 + self.workers.len() - self.n_bulk
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    /// Tells which batch its workers have been running for longest, while the encoder is being dropped too.
    #[must_use]
    pub fn oldest_batch(&self) -> OldestBatch {
        let batcher = Arc::clone(&self.batcher);
        Box::new(move || batcher.oldest_running())
    }

    /// Embeds the request's inputs. Dropping the future gives its place in the queue back.
    ///
    /// # Errors
    /// Of the inputs, of the queue, or of the runtime: see [`EngineError`].
    pub async fn encode(&self, request: EncodeRequest) -> Result<Encoded, EngineError> {
        let started = Instant::now();
        let (finish, priority) = (request.finish, request.priority);
        self.batcher.check_room(request.low_n_tokens(self.tokenizer.max_tokens()), priority)?;
        let texts = self.tokenize(request).await?;
        let tokenization_time = started.elapsed();
        if let Some(trace) = Trace::current() {
            trace.record("tokenize", started, tokenization_time, &[("granary.texts", texts.len())]);
        }
        let n_tokens: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let truncated = (0..texts.len()).filter(|index| texts[*index].truncated).collect();
        let job = self.batcher.submit(texts, finish, priority)?;
        // What is refused costs nothing; who leaves before the end has cost as much as who stays.
        meter::note(n_tokens.iter().sum());
        let result = job.wait().await?;
        Ok(Encoded {
            vectors: result.vectors,
            dimensions: finish.dimensions,
            n_tokens,
            truncated,
            tokenization_time,
            queue_time: result.queue_time,
            inference_time: result.inference_time,
        })
    }

    async fn tokenize(&self, request: EncodeRequest) -> Result<Vec<Tokens>, EngineError> {
        let (n_bytes_of_all, over_long) = (request.n_bytes(), request.over_long);
        let (tokenizer, prompt) = (Arc::clone(&self.tokenizer), request.prompt.map(Arc::<str>::from));
        let tokens_of = move |i, input: &Input| tokenizer.tokens(i, input, prompt.as_deref(), over_long);
        in_place_or_turns(request.inputs, n_bytes_of_all, n_bytes, tokens_of).await
    }
}

impl EncodeRequest {
    /// About the fewest tokens that it can have. When a queue is full, telling so without tokenizing leaves that time to
    /// the requests in it.
    fn low_n_tokens(&self, max_tokens: usize) -> usize {
        let n_tokens = |input: &Input| match input {
            Input::Text(text) => text.chars().count() / MANY_CHARS_PER_TOKEN,
            Input::Tokens(ids) => ids.len(),
        };
        self.inputs.iter().map(|input| n_tokens(input).clamp(1, max_tokens)).sum()
    }

    /// How many bytes are tokenized: each text is with the prompt before it.
    fn n_bytes(&self) -> usize {
        let prompt_bytes = self.prompt.as_ref().map_or(0, String::len);
        self.inputs.iter().map(|input| prompt_bytes + n_bytes(input)).sum()
    }
}

/// Opens a session on a thread that gives way, since those do too that the provider starts there for its runs.
fn open_giving_way(
    runtime: &Runtime,
    graph: &GraphFiles,
    options: SessionOptions,
    wanted: WantedOutput,
) -> Result<EncoderSession, EngineError> {
    thread::scope(|scope| {
        let open = || {
            give_way();
            EncoderSession::open(runtime, graph, options, wanted)
        };
        let opening = thread::Builder::new().name("infer-bulk".to_owned()).spawn_scoped(scope, open);
        let opening = opening.map_err(|source| EngineError::Start { what: "a thread to open a model", source })?;
        opening.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Has this thread give way to others, as lone queries and what reads and writes requests. On other systems it would be the
/// process.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(BULK_NICENESS) {
        tracing::debug!(%error, "a thread that runs bulk does not give way to others");
    }
}

fn n_bytes(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.len(),
        Input::Tokens(ids) => size_of_val(ids.as_slice()),
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.batcher.close();
        for worker in self.workers.drain(..) {
            // A worker catches its panics; one that dies all the same has nothing left to hand over.
            let _ = worker.join();
        }
    }
}

/// A thread that runs one of the model's sessions, beside others.
struct Worker {
    lane: Lane,
    session: Arc<EncoderSession>,
    batcher: Arc<Batcher>,
    head: Head,
    n_bulk: usize,
    on_cpu: bool,
    max_batch_tokens: usize,
    padded: PaddedBatch,
}

impl Worker {
    fn run(mut self) {
        let batcher = Arc::clone(&self.batcher);
        if self.lane == Lane::Bulk {
            give_way();
        }
        if self.on_cpu {
            run_memory::keep_own();
        }
        while let Some(batch) = batcher.next_batch(self.lane) {
            let n_tokens = batch.items.iter().map(|item| item.ids().len()).sum::<usize>() as f64;
            histogram!(telemetry::TE_BATCH_NEXT_SIZE).record(batch.items.len() as f64);
            histogram!(telemetry::TE_BATCH_NEXT_TOKENS).record(n_tokens);
            let started = Instant::now();
            self.run_batch(&batch);
            let speed = n_tokens * self.n_bulk as f64 / started.elapsed().as_secs_f64().max(1e-6);
            batcher.finish(self.lane, &batch, speed);
            if self.on_cpu && batch.width > LONG_BATCHES * self.max_batch_tokens {
                // What a long text took of it would be there until the unload.
                run_memory::keep_own();
            }
        }
    }

    /// Runs a batch; where it fails, runs its texts one by one, so that one caller's text cannot fail another's.
    fn run_batch(&mut self, batch: &MicroBatch) {
        let Err(error) = self.try_items(&batch.items, batch.width) else { return };
        if let [item] = batch.items.as_slice() {
            item.job.fail(error);
            return;
        }
        tracing::warn!(%error, n_texts = batch.items.len(), "a batch failed; its texts are tried one by one");
        for item in &batch.items {
            if item.job.is_abandoned() {
                continue;
            }
            if let Err(error) = self.try_items(std::slice::from_ref(item), batch.width) {
                item.job.fail(error);
            }
        }
    }

    fn try_items(&mut self, items: &[BatchItem], width: usize) -> Result<(), EngineError> {
        let failed = |source| EngineError::of_run(items[0].index, source);
        let (session, padded, head) = (&self.session, &mut self.padded, &self.head);
        padded.fill(items.iter().map(BatchItem::ids), width);
        let started = Instant::now();
        // The runtime is foreign code: what it throws must end one batch and not the worker.
        let run = catch_unwind(AssertUnwindSafe(|| {
            session.run(padded, |output| {
                let elapsed = started.elapsed();
                head.finish_batch(items, &output, width, elapsed)
            })
        }));
        match run {
            Ok(Ok(finished)) => finished,
            Ok(Err(source)) => Err(failed(source)),
            Err(_panic) => Err(failed(Cause::from("the runtime panicked"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(inputs: &[Input], prompt: Option<&str>) -> EncodeRequest {
        EncodeRequest {
            inputs: inputs.to_vec(),
            prompt: prompt.map(str::to_owned),
            over_long: OverLong::Refuse,
            finish: Finish { dimensions: 1, normalize: false },
            priority: Priority::Interactive,
        }
    }

    #[test]
    fn the_prompt_counts_before_each_of_the_texts() {
        let inputs = ["a", "bc"].map(|text| Input::Text(text.to_owned()));
        let n_bytes = |prompt| request(&inputs, prompt).n_bytes();
        assert_eq!((n_bytes(None), n_bytes(Some("query: "))), (3, 17));
    }

    #[test]
    fn tokens_are_estimated_low_by_characters() {
        let low = |input: Input| request(&[input], None).low_n_tokens(256);
        assert_eq!(low(Input::Text("a".into())), 1);
        assert_eq!(low(Input::Text("words ".repeat(100))), 100);
        assert_eq!(low(Input::Text("слова ".repeat(100))), 100, "whatever bytes a character has");
        assert_eq!(low(Input::Text("words ".repeat(1_000))), 256, "the rest is cut");
        assert_eq!(low(Input::Tokens(vec![7; 12])), 12);
    }
}
