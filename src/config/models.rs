//! `[models]`: where models live and how long loading may take.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, Deserializer, Unexpected, Visitor};
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
        deserializer.deserialize_any(BudgetVisitor)
    }
}

struct BudgetVisitor;

impl Visitor<'_> for BudgetVisitor {
    type Value = MemoryBudget;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\", a size such as \"2GiB\", or a whole number of bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MemoryBudget, E> {
        match text {
            "auto" => Ok(MemoryBudget::Auto),
            size => size.parse().map(MemoryBudget::Bytes).map_err(|_| E::invalid_value(Unexpected::Str(size), &self)),
        }
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<MemoryBudget, E> {
        Ok(MemoryBudget::Bytes(ByteSize::b(bytes)))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<MemoryBudget, E> {
        let size = u64::try_from(bytes).map(ByteSize::b);
        size.map(MemoryBudget::Bytes).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
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
