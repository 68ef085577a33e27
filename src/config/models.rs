//! `[models]`: where models live and how long loading may take.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::spelling::{self, Problem, outside};

const LOAD_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);
const FAILED_LOAD_COOLDOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);

/// `[models]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelsConfig {
    /// Holds models and the database; relative to the working directory.
    pub data_dir: PathBuf,
    /// How long a request waits for a model that is loading.
    #[serde(with = "spelling::duration")]
    pub load_timeout: Duration,
    /// How long a model that could not be loaded is left alone.
    #[serde(with = "spelling::duration")]
    pub failed_load_cooldown: Duration,
    /// Bytes of vectors to keep of texts that were embedded before; none: no cache.
    #[serde(with = "spelling::size")]
    pub embedding_cache: ByteSize,
}

impl ModelsConfig {
    /// Where relative model paths start.
    #[must_use]
    pub fn models_dir(&self) -> PathBuf {
        self.data_dir.join("models")
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let empty = (self.data_dir == Path::new("")).then(|| {
            Problem::new("models.data_dir", "found an empty path, expected a directory; \".\" is the working directory")
        });
        let cooldown = &self.failed_load_cooldown;
        [
            empty,
            outside("models.load_timeout", &self.load_timeout, &LOAD_TIMEOUT, spelling::duration::spell),
            outside("models.failed_load_cooldown", cooldown, &FAILED_LOAD_COOLDOWN, spelling::duration::spell),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
