//! `[models]`: where models live and how long loading may take.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::spelling::{self, Problem, outside};

const LOAD_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(1);
const IDLE_UNLOAD: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24 * 365);
const FAILED_LOAD_COOLDOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);

/// `[models]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelsConfig {
    /// Holds models and the database; relative to the working directory.
    pub data_dir: PathBuf,
    /// What an installation brings along, laid out as the data directory and only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_dir: Option<PathBuf>,
    /// How long a request waits for a model that is loading.
    #[serde(with = "spelling::duration")]
    pub load_timeout: Duration,
    /// How long a model that could not be loaded is left alone.
    #[serde(with = "spelling::duration")]
    pub failed_load_cooldown: Duration,
    /// What models may take of memory together.
    pub memory_budget: MemoryBudget,
    /// After how long without a request a model is unloaded; zero: never.
    #[serde(with = "spelling::duration")]
    pub idle_unload: Duration,
    /// Bytes of vectors to keep of texts that were embedded before; none: no cache.
    #[serde(with = "spelling::size")]
    pub embedding_cache: ByteSize,
}

/// What models may take of memory together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBudget {
    /// A share of what the machine, or the container, has.
    Auto,
    /// So many bytes.
    Bytes(ByteSize),
}

impl Serialize for MemoryBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => spelling::size::serialize(bytes, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Found {
            Word(String),
            Bytes(u64),
        }

        let bytes = match Found::deserialize(deserializer) {
            Ok(Found::Word(word)) if word == "auto" => return Ok(Self::Auto),
            Ok(Found::Word(word)) => word.parse().ok(),
            Ok(Found::Bytes(bytes)) => Some(ByteSize::b(bytes)),
            Err(_) => None,
        };
        bytes
            .map(Self::Bytes)
            .ok_or_else(|| de::Error::custom("expected \"auto\", a size such as \"2GiB\", or a whole number of bytes"))
    }
}

impl ModelsConfig {
    /// Where relative model paths start.
    #[must_use]
    pub fn models_dir(&self) -> PathBuf {
        self.data_dir.join("models")
    }

    /// Where built-in models are looked for, the first place first.
    pub fn built_in_dirs(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(&self.data_dir).chain(&self.system_dir).map(|folder| folder.join("models"))
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let empty = (self.data_dir == Path::new("")).then(|| {
            Problem::new("models.data_dir", "found an empty path, expected a directory; \".\" is the working directory")
        });
        let empty_system = (self.system_dir.as_deref() == Some(Path::new(""))).then(|| {
            Problem::new(
                "models.system_dir",
                "found an empty path, expected a directory; leave it out if there is none",
            )
        });
        let cooldown = &self.failed_load_cooldown;
        [
            empty,
            empty_system,
            outside("models.load_timeout", &self.load_timeout, &LOAD_TIMEOUT, spelling::duration::spell),
            outside("models.idle_unload", &self.idle_unload, &IDLE_UNLOAD, spelling::duration::spell),
            outside("models.failed_load_cooldown", cooldown, &FAILED_LOAD_COOLDOWN, spelling::duration::spell),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
