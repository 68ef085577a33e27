//! The `parameters` beside the inputs of `POST /`, which are options only for sentences to compare.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::embed::EmbedOptions;
use super::error::ApiError;
use super::extract::{Object, value_error};

/// What may be options: only the inputs, which may come later, say whether it is. Lists, and objects within, which no
/// option is, are kept as empty ones, so that no more is built than the body is counted for of what is not read.
#[derive(Clone, Debug)]
pub struct Parameters(Value);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Shallow::Fields.deserialize(deserializer).map(Self)
    }
}

impl Parameters {
    /// The options.
    ///
    /// # Errors
    /// When they are none; the message names the field.
    pub(super) fn read(self) -> Result<EmbedOptions, ApiError> {
        serde_path_to_error::deserialize(self.0).map(|Object(options)| options).map_err(|error| {
            let path = match error.path().to_string().as_str() {
                "." => "parameters".to_owned(),
                path => format!("parameters.{path}"),
            };
            value_error(&error.into_inner().to_string(), &path)
        })
    }
}

/// How much of a value is kept.
#[derive(Clone, Copy, Debug)]
enum Shallow {
    /// A plain value, or an object with its fields as [`Shallow::Plain`].
    Fields,
    /// A plain value.
    Plain,
}

impl<'de> DeserializeSeed<'de> for Shallow {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shallow {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Value, A::Error> {
        IgnoredAny.visit_seq(list).map(|_| Value::Array(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        match self {
            Self::Fields => {
                while let Some(name) = object.next_key()? {
                    fields.insert(name, object.next_value_seed(Self::Plain)?);
                }
            }
            Self::Plain => {
                IgnoredAny.visit_map(object)?;
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_options_can_be() {
        let kept = |parameters: &str| {
            serde_json::from_str::<Option<Parameters>>(parameters)
                .expect(parameters)
                .map(|Parameters(kept)| kept.to_string())
        };
        for (parameters, expected) in [
            ("null", None),
            ("[0, 0, [0], {}]", Some("[]")),
            (r#""x""#, Some(r#""x""#)),
            ("-1", Some("-1")),
            (
                r#"{"truncate": true, "dimensions": 384, "a": [0, 0], "b": {"c": [0]}, "d": null, "e": "x", "f": 0.5}"#,
                Some(r#"{"truncate":true,"dimensions":384,"a":[],"b":{},"d":null,"e":"x","f":0.5}"#),
            ),
        ] {
            assert_eq!(kept(parameters).as_deref(), expected, "{parameters}");
        }
    }
}
