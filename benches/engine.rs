//! The engine alone, without HTTP: tokens per second in bulk, and the time of a lone text.
//!
//! `cargo bench --bench engine -- [PROVIDER] [WORKERS] [THREADS] [N_TEXTS]`, with texts from `apt-cache dumpavail`.

use std::process::Command;
use std::time::{Duration, Instant};

use granary::domain::{Pooling, TruncationSide};
use granary::engine::{
    BatchLimits, EncodeRequest, Encoder, EncoderOptions, EncoderSpec, Finish, Input, OverLong, Provider, Runtime,
    SessionOptions,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |index: usize, default: usize| args.get(index).map_or(default, |arg| arg.parse().expect("a number"));
    let provider = match args.first().map(String::as_str) {
        Some("openvino") => Provider::OpenVino,
        _ => Provider::Cpu,
    };
    let (workers, threads, n_texts) = (number(1, 2), number(2, 2), number(3, 600));
    let texts = descriptions(n_texts);
    let runtime = Runtime::load(".granary/runtime/libonnxruntime.so".as_ref()).expect("make setup");
    let folder = std::path::Path::new(".granary/models/all-MiniLM-L6-v2");
    let spec = EncoderSpec {
        label: "bench".into(),
        onnx: folder.join("onnx/model.onnx"),
        tokenizer: folder.join("tokenizer.json"),
        pooling: Some(Pooling::Mean),
        hidden_size: Some(384),
        expected_dimensions: None,
        vocabulary_size: Some(30522),
        max_tokens: 256,
        runs_alone: false,
    };
    let options = EncoderOptions {
        session: SessionOptions { provider, threads, streams: workers, bf16: true },
        workers,
        batch: BatchLimits {
            max_batch_tokens: number(4, 1024),
            max_batch_texts: 32,
            max_queue_tokens: 1 << 24,
            width_step: if provider == Provider::Cpu { 1 } else { 16 },
        },
    };
    let started = Instant::now();
    let encoder = Encoder::open(&runtime, &spec, options).expect("the model opens");
    let opened = started.elapsed();
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    tokio.block_on(async {
        let embed = |texts: &[String]| {
            let request = EncodeRequest {
                inputs: texts.iter().cloned().map(Input::Text).collect(),
                prompt: None,
                over_long: OverLong::Cut(TruncationSide::Right),
                finish: Finish { dimensions: 384, normalize: true },
            };
            encoder.encode(request)
        };
        embed(&texts[..64]).await.expect("warm");
        let started = Instant::now();
        let bulk = embed(&texts).await.expect("vectors");
        let n_tokens: usize = bulk.n_tokens.iter().sum();
        let speed = n_tokens as f64 / started.elapsed().as_secs_f64();
        let cut_to = |n_words: usize| {
            let texts: Vec<String> =
                texts.iter().map(|text| text.split_whitespace().take(n_words).collect::<Vec<_>>().join(" ")).collect();
            texts
        };
        let (short, long) = (cut_to(9), cut_to(90));
        let mut medians = Vec::new();
        for texts in [short, long] {
            let mut times: Vec<Duration> = Vec::new();
            for text in texts.iter().take(100) {
                let started = Instant::now();
                embed(std::slice::from_ref(text)).await.expect("a vector");
                times.push(started.elapsed());
            }
            times.sort();
            medians.push(times[times.len() / 2].as_secs_f64() * 1e3);
        }
        println!(
            "{provider} workers {workers} threads {threads}: {speed:.0} tokens/s, lone short {:.2} ms, lone long {:.2} ms, open {opened:.2?}, rss {} MB",
            medians[0], medians[1], rss_mb()
        );
    });
}

fn descriptions(n: usize) -> Vec<String> {
    let dump = Command::new("apt-cache").arg("dumpavail").output().expect("apt-cache runs").stdout;
    let dump = String::from_utf8_lossy(&dump);
    let mut texts = Vec::new();
    let mut current: Option<String> = None;
    for line in dump.lines() {
        if let Some(first) = line.strip_prefix("Description: ") {
            current = Some(first.to_owned());
        } else if let (Some(text), Some(more)) = (&mut current, line.strip_prefix(' ')) {
            text.push(' ');
            text.push_str(more);
        } else if let Some(text) = current.take() {
            texts.push(text);
        }
    }
    let step = (texts.len() / n).max(1);
    texts.into_iter().step_by(step).take(n).collect()
}

fn rss_mb() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or_default() / 1024
}
