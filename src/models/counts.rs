//! What is counted of one model's work, under its name.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};

use crate::domain::ModelName;
use crate::engine::Encoded;
use crate::telemetry;

/// The metrics of a model's work. They are looked up when there is something to count for the first time, and not shown
/// before.
#[derive(Debug)]
pub struct Counts {
    model: ModelName,
    metrics: OnceLock<Metrics>,
}

#[derive(Debug)]
struct Metrics {
    texts: Counter,
    tokens: Counter,
    truncated_texts: Counter,
    embed_duration: Histogram,
}

impl Counts {
    /// Those of the model of that name.
    #[must_use]
    pub fn of(model: ModelName) -> Self {
        Self { model, metrics: OnceLock::new() }
    }

    /// Counts what the model has made.
    pub fn record(&self, encoded: &Encoded) {
        let metrics = self.metrics();
        metrics.texts.increment(encoded.n_tokens.len() as u64);
        metrics.tokens.increment(encoded.n_tokens.iter().sum::<usize>() as u64);
        metrics.truncated_texts.increment(encoded.truncated.len() as u64);
    }

    /// Counts how long a request waited for what the model has made.
    pub fn record_duration(&self, total: Duration) {
        self.metrics().embed_duration.record(total.as_secs_f64());
    }

    fn metrics(&self) -> &Metrics {
        self.metrics.get_or_init(|| Metrics::of(&self.model))
    }
}

impl Metrics {
    fn of(model: &ModelName) -> Self {
        let label = model.to_string();
        Self {
            texts: counter!(telemetry::TEXTS, "model" => label.clone()),
            tokens: counter!(telemetry::TOKENS, "model" => label.clone()),
            truncated_texts: counter!(telemetry::TRUNCATED_TEXTS, "model" => label.clone()),
            embed_duration: histogram!(telemetry::EMBED_DURATION, "model" => label),
        }
    }
}
