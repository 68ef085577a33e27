//! What the indexes take of memory, for whoever asks too often to wait for a change of them, and the gauges of it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{All, Indexes, OneIndex};
use crate::telemetry;

/// What the indexes take of memory, in bytes.
#[derive(Default)]
pub(super) struct Taken {
    /// Those that are in step with the database, after their last change.
    whole: AtomicU64,
    /// One that is being made again, which nobody sees yet.
    unfinished: AtomicU64,
}

impl Taken {
    pub(super) fn note_unfinished(&self, bytes: u64) {
        self.unfinished.store(bytes, Ordering::Relaxed);
    }
}

impl All {
    /// Notes what they take. To be called after each change.
    pub(super) fn note_taken(&self) {
        let bytes = self.in_order.iter().filter_map(OneIndex::whole).map(|whole| whole.size().memory).sum();
        self.taken.whole.store(bytes, Ordering::Relaxed);
    }
}

impl Indexes {
    /// What all of them take of memory, in bytes. Does not wait while they change.
    pub(in super::super) fn memory_bytes(&self) -> u64 {
        self.taken.whole.load(Ordering::Relaxed) + self.taken.unfinished.load(Ordering::Relaxed)
    }

    /// Sets the gauges.
    pub(in super::super) fn measure(&self) {
        for index in &self.glance().in_order {
            let Some(whole) = index.whole() else { continue };
            let (space, size) = (index.space.to_string(), whole.size());
            metrics::gauge!(telemetry::GRAINS, "space" => space.clone()).set(whole.n_served() as f64);
            metrics::gauge!(telemetry::INDEX_BYTES, "space" => space.clone(), "where" => "memory")
                .set(size.memory as f64);
            metrics::gauge!(telemetry::INDEX_BYTES, "space" => space, "where" => "disk").set(size.disk as f64);
        }
    }
}
