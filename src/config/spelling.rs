//! How values are spelled in the configuration: durations, sizes in bytes, words, and the limits they keep.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{self, Deserialize, Deserializer, IntoDeserializer};

/// A key whose value was understood and is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The key with its section: `server.port`.
    pub(super) key: String,
    /// What was found and what was expected.
    pub(super) sentence: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { key: key.into(), sentence: sentence.into() }
    }
}

/// The problem of a value outside its limits; `spell` writes value and limits as the file would.
pub(super) fn outside<T: PartialOrd>(
    key: &str,
    value: &T,
    limits: &RangeInclusive<T>,
    spell: impl Fn(&T) -> String,
) -> Option<Problem> {
    (!limits.contains(value)).then(|| {
        let sentence = format!("found {}, expected {} to {}", spell(value), spell(limits.start()), spell(limits.end()));
        Problem::new(key, sentence)
    })
}

/// Reads an enum from its word only. Left alone, the deserializer below `figment` also takes `1` for the second variant.
pub(super) fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let word = String::deserialize(deserializer)?;
    T::deserialize(word.into_deserializer())
}

/// [`word`] for a key that may be absent.
pub(super) fn optional_word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    word(deserializer).map(Some)
}

/// Reads a type from a string through its `FromStr`.
pub(super) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

/// Durations as `"30s"` or `"1h 30m"`.
pub(super) mod duration {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{self, Deserializer, Unexpected, Visitor};
    use serde::ser::Serializer;

    const DAY_S: u64 = 24 * 60 * 60;

    /// In days and less: to `humantime`, 365 days are less than a year, and a month has 30.44.
    fn text(duration: &Duration) -> String {
        let n_days = duration.as_secs() / DAY_S;
        let rest = Duration::new(duration.as_secs() % DAY_S, duration.subsec_nanos());
        let days = if n_days == 1 { "1day".to_owned() } else { format!("{n_days}days") };
        match (n_days, rest.is_zero()) {
            (0, _) => humantime::format_duration(rest).to_string(),
            (_, true) => days,
            (_, false) => format!("{days} {}", humantime::format_duration(rest)),
        }
    }

    pub(crate) fn spell(duration: &Duration) -> String {
        format!("\"{}\"", text(duration))
    }

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(DurationVisitor)
    }

    struct DurationVisitor;

    impl Visitor<'_> for DurationVisitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration with its unit, such as \"30s\", \"500ms\" or \"2h\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}

/// Sizes as `"64MiB"`, or a whole number of bytes.
pub(super) mod size {
    use std::fmt;

    use bytesize::ByteSize;
    use serde::de::{self, Deserializer, Unexpected, Visitor};
    use serde::ser::Serializer;

    /// The shortest exact spelling: what is printed must be read back as the same number of bytes.
    fn exact(size: ByteSize) -> String {
        const UNITS: [(&str, u64); 4] =
            [("TiB", bytesize::TIB), ("GiB", bytesize::GIB), ("MiB", bytesize::MIB), ("KiB", bytesize::KIB)];
        let bytes = size.as_u64();
        UNITS
            .into_iter()
            .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
            .map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
    }

    pub(crate) fn spell(size: ByteSize) -> String {
        format!("\"{}\"", exact(size))
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    pub(crate) fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&exact(*size))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }

    struct SizeVisitor;

    impl Visitor<'_> for SizeVisitor {
        type Value = ByteSize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as \"64MiB\", or a whole number of bytes")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
            text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
            Ok(ByteSize::b(bytes))
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
            u64::try_from(bytes).map(ByteSize::b).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
        }
    }
}
