//! Grains: small text records, each with the knowledge of what made its vector.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::space::SpaceId;
use super::text::{text_type, words};

/// The longest id that a caller may choose, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// Words that stand where an id would in a path.
const RESERVED: [&str; 7] = [".", "..", "search", "import", "export", "delete", "count"];

/// A grain's name. Grains of version 0.3 may have ids of any form, and stay reachable by them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GrainId(String);

/// A string that cannot be the id of a new grain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrainIdError {
    /// Characters or a length that ids do not have.
    #[error("`{0}` is not a grain id: an id has 1 to {MAX_ID_BYTES} of the characters A-Z a-z 0-9 . _ : @ ~ -")]
    Form(String),
    /// A word with a meaning of its own.
    #[error("`{0}` is not a grain id: the word stands for something else in a path")]
    Reserved(String),
}

impl GrainId {
    /// The id of a new grain.
    ///
    /// # Errors
    /// When it has another form, or means something else in a path.
    pub fn parse(text: &str) -> Result<Self, GrainIdError> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:@~-".contains(&b);
        if RESERVED.contains(&text) {
            Err(GrainIdError::Reserved(text.to_owned()))
        } else if (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(is_allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(GrainIdError::Form(text.chars().take(MAX_ID_BYTES).collect()))
        }
    }

    /// The id of a grain that is stored already, whatever its form.
    #[must_use]
    pub fn stored(text: String) -> Self {
        Self(text)
    }
}

text_type!(GrainId);

/// The bytes of a time in UTC to the microsecond.
const MAX_TIME_BYTES: usize = "2026-01-31T12:00:00.123456Z".len();

/// Where its date ends.
const DATE_END: usize = "2026-01-31".len();

/// Where the second stands in it.
const SECOND: Range<usize> = 17..19;

/// The digits of a second's fraction down to the microsecond.
const MICROSECOND_DIGITS: usize = 6;

/// When a grain was created elsewhere: it keeps that time when it moves here, to the microsecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedAt {
    text: String,
    us: i64,
}

impl CreatedAt {
    /// Reads a time in RFC 3339, after the year 0, which readers such as Python's `datetime` do not have. In the form of
    /// those made here it is kept as it is written: in UTC, with `T` and `Z`, and to the microsecond at most. Any other is
    /// brought into that form. A leap second, which nothing here counts and such readers refuse, becomes the microsecond
    /// before it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (time, us) = read_time(text)?;
        if time.year() < 1 {
            return None;
        }
        let is_kept = text.as_bytes().get(DATE_END) == Some(&b'T')
            && text.ends_with('Z')
            && text.get(SECOND) != Some("60")
            && text.len() <= MAX_TIME_BYTES;
        let text = if is_kept { text.to_owned() } else { time_of_us(us)?.format(&Rfc3339).ok()? };
        Some(Self { text, us })
    }

    /// RFC 3339, UTC.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn us(&self) -> i64 {
        self.us
    }
}

/// A time that those of grains are compared with: they are whole microseconds, and it may be finer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeBound {
    us: i64,
    is_finer: bool,
}

impl TimeBound {
    /// Reads a time in RFC 3339.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (_, us) = read_time(text)?;
        // In the text: the parser leaves out what is behind the nanosecond, and has none for a leap second.
        let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
        let mut finer = fraction.bytes().take_while(u8::is_ascii_digit).skip(MICROSECOND_DIGITS);
        Some(Self { us, is_finer: finer.any(|digit| digit != b'0') })
    }

    /// The last microsecond that is not after it, since 1970.
    #[must_use]
    pub fn floor_us(self) -> i64 {
        self.us
    }

    /// The first microsecond that is not before it, since 1970.
    #[must_use]
    pub fn ceil_us(self) -> i64 {
        self.us + i64::from(self.is_finer)
    }
}

/// A time in RFC 3339, in UTC, and the microseconds since 1970 that were over by then.
fn read_time(text: &str) -> Option<(OffsetDateTime, i64)> {
    // The parser takes any byte between date and time.
    if !matches!(text.as_bytes().get(DATE_END), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
    let us = i64::try_from(time.unix_timestamp_nanos().div_euclid(1000)).ok()?;
    Some((time, us))
}

/// The time so many microseconds after the beginning of 1970; `None` beyond the years that `time` has.
#[must_use]
pub fn time_of_us(us: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).ok()
}

/// How a grain came to its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A model of this server embedded the text.
    Computed,
    /// A caller brought it along, and said which space it is in.
    Supplied,
    /// It is older than the knowledge of what made it, which was proved since.
    Adopted,
}

words! {
    /// The word on the wire and in the database.
    Origin { Computed => "computed", Supplied => "supplied", Adopted => "adopted" }
}

/// What a grain is besides its name: everything that its owner writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The text that is searched.
    pub text: String,
    /// Where it comes from.
    pub source: Option<String>,
    /// Words to filter by.
    pub tags: Vec<String>,
    /// Anything else.
    pub attributes: Map<String, Value>,
}

/// A text record as it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grain {
    /// Its name.
    pub id: GrainId,
    /// What its owner wrote.
    pub content: Content,
    /// Metadata of version 0.3 that is no JSON object or cannot be read, in its own bytes.
    pub raw_meta: Option<String>,
    /// The vector it is served by; `None` when it has none of its current text.
    pub provenance: Option<Provenance>,
    /// The vector that version 0.3 stored without saying what made it.
    pub unproven: Option<Unproven>,
    /// Counts the changes; the first is 1.
    pub version: u64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
}

/// What made a vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The space it is in.
    pub space: SpaceId,
    /// The model that made it, as far as that is known.
    pub model: Option<String>,
    /// Its length.
    pub dimensions: u32,
    /// How the grain came to it.
    pub origin: Origin,
    /// Tokens it was made of, special tokens included.
    pub n_tokens: Option<u32>,
    /// Whether the model took less than the whole text.
    pub truncated: Option<bool>,
}

/// A vector of which nobody wrote down what made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unproven {
    /// What was written down of the model, unproven too.
    pub model: Option<String>,
    /// The length that was written down.
    pub dimensions: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_new_grains_are_safe_in_paths() {
        for good in ["a", "A.b_c:d@e~f-9", "...", &"x".repeat(MAX_ID_BYTES), "Search"] {
            assert_eq!(GrainId::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "a b", "a/b", "ü", "a\0", "a%20", &"x".repeat(MAX_ID_BYTES + 1)] {
            assert!(matches!(GrainId::parse(bad), Err(GrainIdError::Form(_))), "{bad:?}");
        }
        for word in RESERVED {
            assert!(matches!(GrainId::parse(word), Err(GrainIdError::Reserved(_))), "{word:?}");
        }
    }

    #[test]
    fn times_are_kept_as_they_are_written_or_brought_into_that_form() {
        let read = |text: &str| CreatedAt::parse(text).map(|time| (time.as_str().to_owned(), time.us()));
        assert_eq!(read("1970-01-01T00:00:01.50Z"), Some(("1970-01-01T00:00:01.50Z".to_owned(), 1_500_000)));
        for second in ["1970-01-01T02:00:01+02:00", "1970-01-01 00:00:01Z", "1970-01-01t00:00:01z"] {
            assert_eq!(read(second), Some(("1970-01-01T00:00:01Z".to_owned(), 1_000_000)), "{second}");
        }
        // Digits beyond the microsecond are cut, before 1970 too.
        let longest = "1970-01-01T00:00:01.123456";
        for digits in [0, 1, 3, 1_000_000] {
            let written = format!("{longest}{}Z", "7".repeat(digits));
            assert_eq!(read(&written), Some((format!("{longest}Z"), 1_123_456)), "{digits} digits more");
        }
        assert_eq!(read("1969-12-31T23:59:59.9999995Z"), Some(("1969-12-31T23:59:59.999999Z".to_owned(), -1)));
        assert_eq!(read("1970-01-01T00:00:01.0000009Z"), Some(("1970-01-01T00:00:01Z".to_owned(), 1_000_000)));
        let leap_second = Some(("1972-06-30T23:59:59.999999Z".to_owned(), 78_796_799_999_999));
        for written in ["1972-06-30T23:59:60Z", "1972-06-30T23:59:60.5Z", "1972-07-01T00:59:60+01:00"] {
            assert_eq!(read(written), leap_second, "{written}");
        }
        for wrong in ["yesterday", "1970-01-01\u{0}00:00:01Z", "1970-01-01_00:00:01Z", "1970-01-01T12:00:60Z", ""] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        // They are of the years 10000, 0 and -1 in UTC.
        for beyond in [
            "9999-12-31T23:59:59-01:00",
            "0000-12-31T23:59:59Z",
            "0001-01-01T00:59:59+01:00",
            "0000-01-01T00:00:00+01:00",
        ] {
            assert_eq!(read(beyond), None, "{beyond}");
        }
        for first in ["0001-01-01T00:00:00Z", "0000-12-31T23:00:00-01:00"] {
            assert_eq!(read(first).map(|(text, _)| text).as_deref(), Some("0001-01-01T00:00:00Z"), "{first}");
        }
    }

    #[test]
    fn a_bound_finer_than_a_microsecond_is_between_two() {
        for (text, floor_us, ceil_us) in [
            ("1970-01-01T00:00:01Z", 1_000_000, 1_000_000),
            ("1970-01-01T00:00:01.123456Z", 1_123_456, 1_123_456),
            ("1970-01-01 00:00:01.1234560000Z", 1_123_456, 1_123_456),
            ("1970-01-01T00:00:01.1234565Z", 1_123_456, 1_123_457),
            ("1970-01-01T00:00:01.1234560000001Z", 1_123_456, 1_123_457),
            ("1970-01-01T02:00:01.9999999+02:00", 1_999_999, 2_000_000),
            ("1969-12-31T23:59:59.9999995Z", -1, 0),
            ("1969-12-31T23:59:59.9999985Z", -2, -1),
            ("1972-06-30T23:59:60Z", 78_796_799_999_999, 78_796_799_999_999),
        ] {
            let bound = TimeBound::parse(text).expect(text);
            assert_eq!((bound.floor_us(), bound.ceil_us()), (floor_us, ceil_us), "{text}");
        }
        for wrong in ["yesterday", "1970-01-01_00:00:01Z", "9999-12-31T23:59:59-01:00"] {
            assert_eq!(TimeBound::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn origins_are_read_as_they_are_written() {
        for origin in Origin::ALL {
            assert_eq!(Origin::parse(origin.as_str()), Some(origin));
        }
        assert_eq!(Origin::parse("guessed"), None);
    }
}
