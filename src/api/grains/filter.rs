//! Filters on the wire.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::api::error::{ApiError, Code};
use crate::api::extract::{required_space, shortened};
use crate::api::fields::{IS_LIST, Object, optional_object};
use crate::domain::{
    AttributeCondition, AttributeValue, Filter, GrainId, Membership, Range, SpaceCondition, TimeBound,
};
use crate::json::AnyValue;

/// The most values of one condition.
const MAX_VALUES: usize = 1000;

/// The most attributes of one filter.
pub(in crate::api) const MAX_ATTRIBUTES: usize = 20;

/// Which grains are meant: all conditions must hold.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = Filter)]
#[serde(deny_unknown_fields)]
pub struct FilterBody {
    /// One of these ids; an empty list finds nothing.
    #[schema(max_items = 1000, example = json!(null))]
    ids: Option<Vec<String>>,
    /// This source, or one of these; null within the list stands for grains without a source. An empty list finds nothing.
    #[schema(value_type = Option<OneOrMany>, example = json!(null))]
    source: Option<OneOrMany>,
    #[schema(value_type = Option<TagsBody>)]
    tags: Option<Tags>,
    /// Conditions by attribute, for up to 20 of them: a value that it is, or has in its list, or an object of conditions.
    #[schema(value_type = Option<BTreeMap<String, AttributeBody>>, example = json!({"year": {"gte": 2020}}))]
    attributes: Option<BTreeMap<String, AttributeBody>>,
    #[serde(default, deserialize_with = "optional_object")]
    created_at: Option<TimesBody>,
    #[serde(default, deserialize_with = "optional_object")]
    updated_at: Option<TimesBody>,
    /// The space it is served from, or `unknown`.
    #[schema(pattern = "^([0-9a-fA-F]{16}|unknown)$", example = json!(null))]
    space: Option<String>,
}

/// One string, or a list of strings and null.
#[derive(Clone, Debug)]
pub struct OneOrMany(Vec<Option<String>>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a string or a list of strings")]
        enum Word {
            One(String),
            Many(Vec<Option<String>>),
        }
        Ok(match Word::deserialize(deserializer)? {
            Word::One(one) => Self(vec![Some(one)]),
            Word::Many(many) => Self(many),
        })
    }
}

impl PartialSchema for OneOrMany {
    fn schema() -> RefOr<Schema> {
        Schema::from(OneOfBuilder::new().item(String::schema()).item(Vec::<Option<String>>::schema())).into()
    }
}

impl ToSchema for OneOrMany {}

/// Tags a grain must have.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = TagsCondition)]
#[serde(deny_unknown_fields)]
pub struct TagsBody {
    /// At least one of these. An empty list is refused.
    #[schema(max_items = 1000, min_items = 1)]
    any: Option<Vec<String>>,
    /// All of these.
    #[schema(max_items = 1000)]
    all: Option<Vec<String>>,
    /// None of these.
    #[schema(max_items = 1000)]
    none: Option<Vec<String>>,
}

/// The same, read as an object: a list is what tags are elsewhere, and an error shows the way out.
#[derive(Clone, Debug, Default)]
struct Tags(TagsBody);

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TagsVisitor)
    }
}

struct TagsVisitor;

impl<'de> Visitor<'de> for TagsVisitor {
    type Value = Tags;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"an object such as {"any": ["rye"]}"#)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Tags, A::Error> {
        Err(de::Error::custom(format_args!(r#"{IS_LIST} such as {{"any": ["rye"]}}"#)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tags, A::Error> {
        TagsBody::deserialize(MapAccessDeserializer::new(map)).map(Tags)
    }
}

/// A time's bounds, in RFC 3339.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = TimesCondition)]
#[serde(deny_unknown_fields)]
pub struct TimesBody {
    #[schema(format = DateTime)]
    gt: Option<String>,
    #[schema(format = DateTime)]
    gte: Option<String>,
    #[schema(format = DateTime)]
    lt: Option<String>,
    #[schema(format = DateTime)]
    lte: Option<String>,
}

/// A string, a number or a boolean.
#[derive(Clone, Debug)]
pub struct ValueBody(AttributeValue);

impl<'de> Deserialize<'de> for ValueBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a string, a number or a boolean")]
        enum Word {
            Boolean(bool),
            Integer(i64),
            Number(f64),
            Text(String),
        }
        Ok(Self(match Word::deserialize(deserializer)? {
            Word::Boolean(yes) => AttributeValue::Boolean(yes),
            Word::Integer(number) => AttributeValue::Integer(number),
            Word::Number(number) => AttributeValue::Number(number),
            Word::Text(text) => AttributeValue::Text(text),
        }))
    }
}

impl PartialSchema for ValueBody {
    fn schema() -> RefOr<Schema> {
        Schema::from(one_value()).into()
    }
}

impl ToSchema for ValueBody {}

/// What a value is, for the document.
fn one_value() -> OneOfBuilder {
    OneOfBuilder::new().item(String::schema()).item(f64::schema()).item(bool::schema())
}

/// What an attribute must be.
#[derive(Clone, Debug)]
pub struct AttributeBody(ConditionBody);

/// Conditions on an attribute. Of a list each element counts.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = AttributeCondition)]
#[serde(deny_unknown_fields)]
pub struct ConditionBody {
    /// At least one of these. An empty list is refused.
    #[schema(max_items = 1000, min_items = 1)]
    any: Option<Vec<ValueBody>>,
    /// All of these, for lists.
    #[schema(max_items = 1000)]
    all: Option<Vec<ValueBody>>,
    /// None of these.
    #[schema(max_items = 1000)]
    none: Option<Vec<ValueBody>>,
    gt: Option<ValueBody>,
    gte: Option<ValueBody>,
    lt: Option<ValueBody>,
    lte: Option<ValueBody>,
    /// Whether there is such an attribute; null is none.
    exists: Option<bool>,
}

impl<'de> Deserialize<'de> for AttributeBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let AnyValue(value) = AnyValue::deserialize(deserializer)?;
        let read = if value.is_object() {
            serde_json::from_value(value)
        } else {
            serde_json::from_value(value)
                .map(|value| ConditionBody { any: Some(vec![value]), ..ConditionBody::default() })
        };
        read.map(Self).map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for AttributeBody {
    fn schema() -> RefOr<Schema> {
        // Not a choice within the choice, and with a name for each object: generated clients have types for no others.
        Schema::from(one_value().item(Ref::from_schema_name(ConditionBody::name()))).into()
    }
}

impl ToSchema for AttributeBody {
    // Its schema is written by hand, so what that refers to must be named by hand too.
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((ConditionBody::name().into_owned(), ConditionBody::schema()));
        ConditionBody::schemas(schemas);
    }
}

impl FilterBody {
    /// The filter.
    ///
    /// # Errors
    /// With the condition that is none.
    pub fn into_filter(self) -> Result<Filter, ApiError> {
        let ids = self.ids.map(|ids| bounded("ids", ids)).transpose()?;
        let Tags(tags) = self.tags.unwrap_or_default();
        let attributes = self.attributes.unwrap_or_default();
        if attributes.len() > MAX_ATTRIBUTES {
            let message = format!("`filter.attributes` has {}; a filter takes {MAX_ATTRIBUTES}", attributes.len());
            return Err(refused("attributes", message));
        }
        Ok(Filter {
            ids: ids.map(|ids| ids.into_iter().map(GrainId::stored).collect()),
            sources: self.source.map(|OneOrMany(sources)| bounded("source", sources)).transpose()?,
            tags: membership("tags", tags.any, tags.all, tags.none)?,
            attributes: conditions(attributes)?,
            created_us: self.created_at.unwrap_or_default().read("created_at")?,
            updated_us: self.updated_at.unwrap_or_default().read("updated_at")?,
            space: self.space.as_deref().map(|word| space_condition("filter.space", word)).transpose()?,
        })
    }

    /// The filter of a query parameter: JSON, as in bodies.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_parameter(text: Option<&str>) -> Result<Filter, ApiError> {
        let Some(text) = text else { return Ok(Filter::default()) };
        let Object(body): Object<Self> = serde_json::from_str(text).map_err(|error| {
            let reason = shortened(&error.to_string());
            ApiError::new(Code::InvalidRequest, format!("`filter` is not a filter in JSON: {reason}"))
                .with_param("filter")
        })?;
        body.into_filter()
    }
}

impl ConditionBody {
    fn read(self) -> Result<AttributeCondition, ApiError> {
        let values = |values: Option<Vec<ValueBody>>| values.map(|all| all.into_iter().map(|value| value.0).collect());
        let value = |value: Option<ValueBody>| value.map(|value| value.0);
        Ok(AttributeCondition {
            members: membership("attributes", values(self.any), values(self.all), values(self.none))?,
            range: Range { gt: value(self.gt), gte: value(self.gte), lt: value(self.lt), lte: value(self.lte) },
            exists: self.exists,
        })
    }
}

impl TimesBody {
    fn read(self, field: &str) -> Result<Range<i64>, ApiError> {
        let bound = |text: Option<String>| -> Result<Option<TimeBound>, ApiError> {
            let read = |text: String| {
                TimeBound::parse(&text).ok_or_else(|| {
                    let shown: String = text.chars().take(40).collect();
                    refused(field, format!("`filter.{field}`: `{shown}` is not a time such as 2026-01-31T12:00:00Z"))
                })
            };
            text.map(read).transpose()
        };
        // The times of grains are whole microseconds: what is before a finer bound ends with the one below it, and what
        // is after it begins with the one above.
        Ok(Range {
            gt: bound(self.gt)?.map(TimeBound::floor_us),
            gte: bound(self.gte)?.map(TimeBound::ceil_us),
            lt: bound(self.lt)?.map(TimeBound::ceil_us),
            lte: bound(self.lte)?.map(TimeBound::floor_us),
        })
    }
}

/// The grains that a field means by the id of the space that serves them, or by `unknown`.
///
/// # Errors
/// When it is neither.
pub(in crate::api) fn space_condition(field: &str, word: &str) -> Result<SpaceCondition, ApiError> {
    match word {
        "unknown" => Ok(SpaceCondition::Unknown),
        id => required_space(field, id).map(SpaceCondition::Is),
    }
}

/// Conditions by attribute. One that asks nothing is left out: else a filter that every grain meets would seem to have
/// a condition.
fn conditions(bodies: BTreeMap<String, AttributeBody>) -> Result<Vec<(String, AttributeCondition)>, ApiError> {
    let mut conditions = Vec::with_capacity(bodies.len());
    for (name, body) in bodies {
        let condition = body.0.read()?;
        if condition != AttributeCondition::default() {
            conditions.push((name, condition));
        }
    }
    Ok(conditions)
}

/// Lists without a member say nothing, but of `any`, which nothing meets then, they would say too much: it is refused.
fn membership<T>(
    field: &str,
    any: Option<Vec<T>>,
    all: Option<Vec<T>>,
    none: Option<Vec<T>>,
) -> Result<Membership<T>, ApiError> {
    if any.as_ref().is_some_and(Vec::is_empty) {
        return Err(refused(field, format!("`filter.{field}`: `any` is empty, which no grain can meet: leave it out")));
    }
    let list = |values: Option<Vec<T>>| bounded(field, values.unwrap_or_default());
    Ok(Membership { any: list(any)?, all: list(all)?, none: list(none)? })
}

fn bounded<T>(field: &str, values: Vec<T>) -> Result<Vec<T>, ApiError> {
    if values.len() > MAX_VALUES {
        let message = format!("`filter.{field}` has {} values; it takes {MAX_VALUES}", values.len());
        return Err(refused(field, message));
    }
    Ok(values)
}

fn refused(field: &str, message: String) -> ApiError {
    ApiError::invalid(format!("filter.{field}"), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Filter, ApiError> {
        FilterBody::of_parameter(Some(json))
    }

    #[test]
    fn every_condition_is_read() {
        let filter = read(
            r#"{"ids": ["a b"], "source": "s", "tags": {"any": ["x"], "none": ["y"]}, "created_at":
            {"gte": "1970-01-01T00:00:01Z"}, "space": "unknown", "attributes": {"a": 1, "b": {"lt": "m", "exists": true},
            "c": {"any": [true, 2.5]}}, "updated_at": null}"#,
        )
        .expect("a filter");
        assert_eq!(filter.ids, Some(vec![GrainId::stored("a b".into())]));
        assert_eq!(filter.sources, Some(vec![Some("s".to_owned())]));
        assert_eq!((filter.tags.any, filter.tags.none), (vec!["x".to_owned()], vec!["y".to_owned()]));
        assert_eq!(filter.created_us.gte, Some(1_000_000));
        assert_eq!(filter.space, Some(SpaceCondition::Unknown));
        let [(_, a), (_, b), (_, c)] = &filter.attributes[..] else { panic!("{:?}", filter.attributes) };
        assert_eq!(a.members.any, [AttributeValue::Integer(1)]);
        assert_eq!((b.range.lt.clone(), b.exists), (Some(AttributeValue::Text("m".into())), Some(true)));
        assert_eq!(c.members.any, [AttributeValue::Boolean(true), AttributeValue::Number(2.5)]);
        assert!(read("{}").expect("a filter").is_empty());
    }

    #[test]
    fn a_bound_between_two_microseconds_parts_them_whatever_it_bounds() {
        let all = |time: &str| {
            let times = format!(r#"{{"gt": "{time}", "gte": "{time}", "lt": "{time}", "lte": "{time}"}}"#);
            let filter = read(&format!(r#"{{"created_at": {times}, "updated_at": {times}}}"#)).expect("a filter");
            assert_eq!(filter.created_us, filter.updated_us);
            filter.created_us
        };
        let whole = all("1970-01-01T00:00:01.000007Z");
        assert_eq!([whole.gt, whole.gte, whole.lt, whole.lte], [Some(1_000_007); 4]);
        for (time, before) in [("1970-01-01T00:00:01.0000075Z", 1_000_007), ("1969-12-31T23:59:59.9999995Z", -1)] {
            let expected = Range { gt: Some(before), gte: Some(before + 1), lt: Some(before + 1), lte: Some(before) };
            assert_eq!(all(time), expected, "{time}");
        }
    }

    #[test]
    fn conditions_that_ask_nothing_leave_the_filter_empty() {
        for json in [
            r#"{"attributes": {"year": {}}}"#,
            r#"{"attributes": {"year": {"gte": null, "exists": null}}}"#,
            r#"{"attributes": {"year": {"none": []}, "month": {"all": []}}}"#,
            r#"{"tags": {"none": [], "all": []}}"#,
            r#"{"created_at": {"gte": null}, "updated_at": {}}"#,
            r#"{"ids": null, "source": null, "tags": null, "attributes": {}, "space": null}"#,
        ] {
            assert!(read(json).expect("a filter").is_empty(), "{json}");
        }
        // Lists that no grain can be in ask for something.
        for json in [r#"{"ids": []}"#, r#"{"source": []}"#, r#"{"attributes": {"year": {"exists": false}}}"#] {
            assert!(!read(json).expect("a filter").is_empty(), "{json}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for json in [
            "[]",
            "[null, null, null, null, null, null, null]",
            r#"{"tags": [["x"], null, null]}"#,
            r#"{"sources": "typo"}"#,
            r#"{"tags": {"any": []}}"#,
            r#"{"attributes": {"a": {"above": 1}}}"#,
            r#"{"attributes": {"a": null}}"#,
            r#"{"attributes": {"a": {"gte": [1]}}}"#,
            r#"{"created_at": {"gte": "yesterday"}}"#,
            r#"{"space": "elsewhere"}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        let attributes = |n: usize| {
            let all: BTreeMap<String, usize> = (0..n).map(|n| (n.to_string(), n)).collect();
            read(&format!(r#"{{"attributes": {}}}"#, serde_json::to_string(&all).expect("JSON")))
        };
        assert_eq!(attributes(MAX_ATTRIBUTES).expect("a filter").attributes.len(), MAX_ATTRIBUTES);
        let error = attributes(MAX_ATTRIBUTES + 1).expect_err("one too many");
        assert_eq!(error.message(), "`filter.attributes` has 21; a filter takes 20");
        let many = format!(r#"{{"ids": {}}}"#, serde_json::to_string(&vec!["x"; MAX_VALUES + 1]).expect("JSON"));
        assert!(read(&many).is_err());
    }
}
