//! The engine alone, without HTTP: tokens per second in bulk and by length and batch, lone texts, memory, and how much
//! of the machine's matrix peak that is.
//!
//! `cargo bench --bench engine -- --help`. The peak is what one product of 1024 × 1024 matrices reaches through the same
//! runtime, provider and precision on all cores.

mod peak;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use granary::domain::{Pooling, Provider, TruncationSide};
use granary::engine::{
    BatchLimits, CpuFeatures, EncodeRequest, Encoded, Encoder, EncoderOptions, EncoderSpec, Finish, GraphFiles, Input,
    OverLong, Priority, Runtime, SessionOptions, allow_turns,
};
use granary::models::hardware;

use self::support::corpus::{Corpus, Form, Text};
use self::support::machine::Origin;
use self::support::process::Usage;
use self::support::stats::{median, percentile, sorted_ms};
use self::support::{Failure, data_folder};

/// Multiplications and additions for one token in the default model's six layers, attention's products left out: four
/// matrices of 384 × 384 and two of 384 × 1536.
const FLOPS_PER_TOKEN: f64 = 2.0 * 6.0 * (4.0 * 384.0 * 384.0 + 2.0 * 384.0 * 1536.0);
const N_LONE: usize = 200;
const GRID_TEXTS: [usize; 3] = [1, 8, 32];
const GRID_TOKENS: [usize; 4] = [16, 32, 128, 256];

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProviderName {
    Cpu,
    Openvino,
}

impl ProviderName {
    fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Openvino => "openvino",
        }
    }

    /// The provider, and whether it rounds to bf16 here.
    fn of_this_machine(self) -> (Provider, bool) {
        match self {
            Self::Cpu => (Provider::Cpu, false),
            Self::Openvino => (Provider::OpenVino, CpuFeatures::probe().multiplies_bf16()),
        }
    }
}

/// Measure the engine without HTTP
#[derive(Debug, Parser)]
struct Options {
    /// What executes the model
    #[arg(long, value_enum, default_value = "openvino")]
    provider: ProviderName,
    /// Streams of the bulk session
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Threads of the bulk session
    #[arg(long)]
    threads: Option<usize>,
    /// Threads of the query lane; 0 for none
    #[arg(long, default_value_t = 2)]
    query_threads: usize,
    /// Padded tokens in a batch
    #[arg(long, default_value_t = 1024)]
    batch_tokens: usize,
    /// Texts in bulk
    #[arg(long, default_value_t = 1500)]
    texts: usize,
    /// How often all is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Leave the grid of lengths and batches out
    #[arg(long)]
    no_grid: bool,
    /// Measure the matrix peak and nothing else
    #[arg(long, hide = true)]
    peak: bool,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    support::exit_code(if options.peak { print_peak(&options) } else { support::run(measure(&options)) })
}

fn print_peak(options: &Options) -> Result<(), Failure> {
    let (provider, bf16) = options.provider.of_this_machine();
    println!("{}", peak::gflops(provider, bf16)?);
    Ok(())
}

async fn measure(options: &Options) -> Result<(), Failure> {
    println!("{}", Origin::here().line());
    allow_turns(hardware::cores(0));
    let (provider, bf16) = options.provider.of_this_machine();
    let threads = options.threads.unwrap_or(match provider {
        Provider::OpenVino => options.workers,
        Provider::Cpu | Provider::Cuda => 1,
    });
    let bulk =
        SessionOptions { provider, threads, streams: options.workers, stays_awake: false, bf16, is_tried_once: false };
    let queries = SessionOptions { threads: options.query_threads, streams: 1, stays_awake: true, ..bulk };
    let peak = peak::gflops_in_its_own_process(options.provider.word())?;
    let runtime = Runtime::load(&data_folder().join("runtime/libonnxruntime.so"))?;
    let started = Instant::now();
    let encoder = Encoder::open(
        &runtime,
        &spec(),
        EncoderOptions {
            bulk,
            queries: (options.query_threads > 0).then_some(queries),
            batch: BatchLimits {
                max_batch_tokens: options.batch_tokens,
                max_batch_texts: 32,
                max_queue_tokens: 1 << 24,
                max_request_tokens: 1 << 24,
                width_step: if provider == Provider::Cpu { 1 } else { 16 },
                max_width: 256,
                max_padding: if provider == Provider::Cpu { 10 } else { usize::MAX },
            },
        },
    )?;
    let opened = started.elapsed();
    println!(
        "{provider}, {}, bulk {} x {threads} threads, query lane {}: opened in {:.2} s, {:.0} MiB; matrix peak {peak:.0} GFLOP/s",
        if bf16 { "bf16" } else { "fp32" },
        options.workers,
        options.query_threads,
        opened.as_secs_f64(),
        rss_mib(),
    );
    let model = data_folder().join("models/all-MiniLM-L6-v2");
    let corpus = Corpus::read(&data_folder().join("bench/texts.txt"), &model.join("tokenizer.json"))?;
    let bulk = corpus.stream(Form::Natural).take(options.texts);
    let mut queries = corpus.stream(Form::Query);
    let mut passages = corpus.stream(Form::Passage);
    let share = |tokens_per_s: f64| tokens_per_s * FLOPS_PER_TOKEN / 1e9 / peak * 100.0;
    let mut speeds = Vec::new();
    for round in 0..=options.rounds {
        let speed = tokens_per_s(&encoder, &bulk).await?;
        if round > 0 {
            speeds.push(speed);
        }
    }
    let speed = median(speeds.iter().copied());
    println!(
        "bulk: {speed:.0} tokens/s over {} texts, {:.0} % of the peak, {:.0} MiB",
        bulk.len(),
        share(speed),
        rss_mib()
    );
    for (name, stream) in [("query", &mut queries), ("passage", &mut passages)] {
        let mut times = Vec::new();
        for text in stream.take(N_LONE) {
            let started = Instant::now();
            embed(&encoder, &[text]).await?;
            times.push(started.elapsed());
        }
        let times = sorted_ms(&times);
        println!("lone {name}: p50 {:.2} ms, p99 {:.2} ms", percentile(&times, 50), percentile(&times, 99));
    }
    if options.no_grid {
        return Ok(());
    }
    println!("tokens/s (and % of the peak) by tokens a text, down, and texts a request, across: {GRID_TEXTS:?}");
    for n_tokens in GRID_TOKENS {
        print!("{n_tokens:>5}");
        for n_texts in GRID_TEXTS {
            let speed = median(speeds_of(&encoder, n_texts, n_tokens).await?);
            print!("{speed:>9.0} ({:>2.0} %)", share(speed));
        }
        println!();
    }
    Ok(())
}

fn spec() -> EncoderSpec {
    let model = data_folder().join("models/all-MiniLM-L6-v2");
    EncoderSpec {
        label: "bench".into(),
        graph: GraphFiles {
            onnx: model.join("onnx/model.onnx"),
            external_data: vec![model.join("onnx/model.onnx_data")],
            unfit_for_bf16: Vec::new(),
            apart: None,
        },
        tokenizer: model.join("tokenizer.json"),
        extra_tokens: Vec::new(),
        pooling: Some(Pooling::Mean),
        modules: Arc::new([]),
        hidden_size: Some(384),
        expected_dimensions: None,
        vocabulary_size: Some(30_522),
        positions: None,
        max_tokens: 256,
        runs_alone: false,
    }
}

async fn embed_inputs(encoder: &Encoder, inputs: Vec<Input>) -> Result<Encoded, Failure> {
    let request = EncodeRequest {
        inputs,
        prompt: None,
        over_long: OverLong::Cut(TruncationSide::Right),
        finish: Finish { dimensions: 384, normalize: true },
        priority: Priority::Interactive,
    };
    Ok(encoder.encode(request).await?)
}

async fn embed(encoder: &Encoder, texts: &[Arc<Text>]) -> Result<Encoded, Failure> {
    embed_inputs(encoder, texts.iter().map(|text| Input::Text(text.text.clone())).collect()).await
}

async fn tokens_per_s(encoder: &Encoder, texts: &[Arc<Text>]) -> Result<f64, Failure> {
    let started = Instant::now();
    let answer = embed(encoder, texts).await?;
    Ok(answer.n_tokens.iter().sum::<usize>() as f64 / started.elapsed().as_secs_f64())
}

/// Some requests of one shape, each timed.
async fn speeds_of(encoder: &Encoder, n_texts: usize, n_tokens: usize) -> Result<Vec<f64>, Failure> {
    let text: Vec<u32> = std::iter::once(101).chain((2000..).take(n_tokens - 2)).chain([102]).collect();
    let mut speeds = Vec::new();
    for _ in 0..10 {
        let started = Instant::now();
        embed_inputs(encoder, vec![Input::Tokens(text.clone()); n_texts]).await?;
        speeds.push((n_texts * n_tokens) as f64 / started.elapsed().as_secs_f64());
    }
    Ok(speeds)
}

fn rss_mib() -> f64 {
    Usage::of_tree(std::process::id()).rss_bytes as f64 / 1_048_576.0
}
