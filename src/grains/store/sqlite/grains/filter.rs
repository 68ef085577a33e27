//! Conditions as SQL. Every value of the caller's is a parameter; what is built of strings is ours alone.

use serde_json::{Value, json};
use sqlx::{QueryBuilder, Sqlite};

use super::json_text;
use crate::domain::{AttributeCondition, AttributeValue, Filter, Membership, Range, SpaceCondition};

/// A column of the row of `embeddings` that a grain `g` is served by. The order of spaces is one short JSON array.
macro_rules! served {
    ($column:literal) => {
        concat!(
            "(SELECT served.",
            $column,
            " FROM json_each((SELECT spaces FROM space_order)) AS place \
             JOIN embeddings AS served ON served.grain = g.number AND served.space = place.value \
             WHERE served.text_version = g.text_version ORDER BY place.key LIMIT 1)"
        )
    };
}

/// The row of `embeddings` that a grain `g` is served by.
pub(super) const SERVED: &str = served!("rowid");

/// The space that a grain `g` is served from. For this an index is enough: no vector is read.
pub(in super::super) const SERVED_SPACE: &str = served!("space");

/// Of values that must all be there, so many are looked up each for itself, by its index. The others are checked together:
/// SQLite takes a thousand terms in a row at most.
const LOOKUPS: usize = 8;

/// How the database goes about a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Every grain is a candidate: begin with what the conditions' indexes have.
    Enumerate,
    /// Few grains are candidates: look each up.
    Check,
    /// Grains are read in the order of this column, by its index, until there are enough: look each up.
    InOrderOf(&'static str),
}

impl Plan {
    /// A column as a condition names it. SQLite uses no index for one that has a sign: else it would begin with what is
    /// to be checked, or look each of a hundred values up where a grain has two.
    pub(super) fn column(self, column: &'static str) -> String {
        let may_begin = match self {
            Self::Enumerate => true,
            Self::Check => false,
            Self::InOrderOf(order) => order == column,
        };
        format!("{}{column}", if may_begin { "" } else { "+" })
    }
}

/// A condition of a filter whose index lists the grains that meet it. It only says where in the filter it stands: a copy of
/// it and of the rest, for each condition, would be ten times the filter, which may have thousands of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Ids,
    Sources,
    /// The last of the tags that must all be there.
    Tag,
    AnyTag,
    Created,
    Updated,
    /// The last of the values that must all be there, of the attribute at this place.
    Value(usize),
    AnyValue(usize),
    Within(usize),
}

/// Appends ` AND …` for each condition on the grain `g`.
pub(super) fn push(query: &mut QueryBuilder<Sqlite>, filter: &Filter, plan: Plan) {
    if let Some(ids) = &filter.ids {
        query.push(" AND ").push(plan.column("g.id"));
        push_list(query, ids.iter().map(|id| id.as_str().to_owned()));
    }
    if let Some(sources) = &filter.sources {
        query.push(" AND (").push(plan.column("g.source"));
        push_list(query, sources.iter().flatten().cloned());
        if sources.contains(&None) {
            query.push(" OR g.source IS NULL");
        }
        query.push(")");
    }
    let conditions = Conditions { query, plan };
    conditions.tags(&filter.tags);
    for (name, condition) in &filter.attributes {
        Conditions { query, plan }.attribute(name, condition);
    }
    push_range(query, &plan.column("g.created_us"), &filter.created_us);
    push_range(query, &plan.column("g.updated_us"), &filter.updated_us);
    match &filter.space {
        None => {}
        Some(SpaceCondition::Unknown) => {
            query.push(" AND ").push(SERVED).push(" IS NULL");
        }
        Some(SpaceCondition::Is(space)) => {
            query.push(" AND ").push(SERVED_SPACE).push(" = ").push_bind(space.to_string());
        }
    }
}

/// Appends ` FROM … AS g WHERE TRUE AND …`: the numbers of the grains that meet the filter. Where their ids are given, or
/// one tag or one value must be there, its index is where the database begins; and where no condition asks for more than a
/// number, the grains themselves are not read.
pub(super) fn push_from(query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    let can_begin = |start: &Start| match *start {
        Start::Ids => true,
        Start::Tag | Start::Value(_) => !needs_rows(filter),
        Start::AnyTag => filter.tags.any.len() == 1 && !needs_rows(filter),
        Start::AnyValue(at) => filter.attributes[at].1.members.any.len() == 1 && !needs_rows(filter),
        _ => false,
    };
    push_from_start(query, filter, starts(filter).into_iter().find(can_begin));
}

/// The same with all columns of the grains.
pub(super) fn push_from_rows(query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    // Beside the other conditions, the database would look each id up for each grain that meets these.
    let by_id = filter.ids.is_some().then_some(Start::Ids);
    push_beginning(query, filter, by_id, true);
}

/// Appends ` FROM … AS g WHERE TRUE AND …`: the numbers of the grains that meet the filter. With a start the first of them
/// are found without the rest.
pub(super) fn push_from_start(query: &mut QueryBuilder<Sqlite>, filter: &Filter, start: Option<Start>) {
    push_beginning(query, filter, start, false);
}

fn push_beginning(query: &mut QueryBuilder<Sqlite>, filter: &Filter, start: Option<Start>, with_rows: bool) {
    let Some(start) = start else {
        query.push(" FROM grains AS g WHERE TRUE");
        return push(query, filter, Plan::Enumerate);
    };
    let rest = start.rest(filter);
    query.push(" FROM (");
    start.push(query, filter);
    query.push(if with_rows || needs_rows(&rest) {
        ") AS found CROSS JOIN grains AS g ON g.number = found.number WHERE TRUE"
    } else {
        ") AS g WHERE TRUE"
    });
    push(query, &rest, Plan::Check);
}

/// Appends an expression: how many grains a start lists, up to that many.
pub(super) fn push_length(query: &mut QueryBuilder<Sqlite>, filter: &Filter, start: Start, at_most: i64) {
    query.push("(SELECT count(*) FROM (");
    start.push(query, filter);
    query.push(" LIMIT ").push_bind(at_most).push("))");
}

/// The conditions that the database can begin with, some of them. There are few ids in a filter: beside them no other
/// condition is worth a look.
pub(super) fn starts(filter: &Filter) -> Vec<Start> {
    let Filter { ids, sources, tags, attributes, created_us, updated_us, space: _ } = filter;
    if ids.is_some() {
        return vec![Start::Ids];
    }
    // The index of sources does not have the grains without one.
    let has_sources = sources.as_ref().is_some_and(|sources| sources.iter().all(Option::is_some));
    let mut conditions = vec![
        (Start::Tag, !tags.all.is_empty()),
        (Start::AnyTag, !tags.any.is_empty()),
        (Start::Sources, has_sources),
        (Start::Created, !created_us.is_empty()),
        (Start::Updated, !updated_us.is_empty()),
    ];
    for (at, (_, AttributeCondition { members, range, .. })) in attributes.iter().enumerate().take(LOOKUPS) {
        conditions.extend([
            (Start::Value(at), !members.all.is_empty()),
            (Start::AnyValue(at), !members.any.is_empty()),
            (Start::Within(at), !range.is_empty()),
        ]);
    }
    conditions.into_iter().filter(|(_, is_there)| *is_there).map(|(start, _)| start).collect()
}

/// Appends ` FROM … AS g WHERE TRUE AND …`: those of the numbers whose grains meet the filter, with their place as `g.key`.
pub(super) fn push_from_numbers(query: &mut QueryBuilder<Sqlite>, filter: &Filter, numbers: &[i64]) {
    let table = if needs_rows(filter) {
        "place.key, g.* FROM json_each("
    } else {
        "place.key, value AS number FROM json_each("
    };
    query.push(" FROM (SELECT ").push(table).push_bind(json_text(numbers)).push(") AS place");
    if needs_rows(filter) {
        query.push(" JOIN grains AS g ON g.number = place.value");
    }
    query.push(") AS g WHERE TRUE");
    push(query, filter, Plan::Check);
}

/// Whether a condition asks for more than the number of a grain.
fn needs_rows(filter: &Filter) -> bool {
    let Filter { ids, sources, tags: _, attributes, created_us, updated_us, space } = filter;
    let of_grain = ids.is_some() || sources.is_some() || space.is_some();
    let of_time = !created_us.is_empty() || !updated_us.is_empty();
    of_grain || of_time || attributes.iter().any(|(_, condition)| condition.exists.is_some())
}

impl Start {
    /// The filter without this condition.
    fn rest(self, filter: &Filter) -> Filter {
        let mut rest = filter.clone();
        match self {
            Self::Ids => rest.ids = None,
            Self::Sources => rest.sources = None,
            Self::Tag => drop(rest.tags.all.pop()),
            Self::AnyTag => rest.tags.any.clear(),
            Self::Created => rest.created_us = Range::default(),
            Self::Updated => rest.updated_us = Range::default(),
            Self::Value(at) => drop(rest.attributes[at].1.members.all.pop()),
            Self::AnyValue(at) => rest.attributes[at].1.members.any.clear(),
            Self::Within(at) => rest.attributes[at].1.range = Range::default(),
        }
        rest
    }

    /// Appends `SELECT … AS number FROM …`: each grain once.
    fn push(self, query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
        match self {
            Self::Ids => {
                query.push("SELECT number FROM grains WHERE id");
                push_list(query, filter.ids.iter().flatten().map(|id| id.as_str().to_owned()));
            }
            Self::Sources => {
                query.push("SELECT number FROM grains WHERE source");
                push_list(query, filter.sources.iter().flatten().flatten().cloned());
            }
            Self::Tag => push_tagged(query, last(&filter.tags.all)),
            Self::AnyTag => push_tagged(query, &filter.tags.any),
            Self::Created => {
                query.push("SELECT number FROM grains WHERE TRUE");
                push_range(query, "created_us", &filter.created_us);
            }
            Self::Updated => {
                query.push("SELECT number FROM grains WHERE TRUE");
                push_range(query, "updated_us", &filter.updated_us);
            }
            Self::Value(at) => {
                let (name, condition) = &filter.attributes[at];
                push_having(query, name, last(&condition.members.all));
            }
            Self::AnyValue(at) => {
                let (name, condition) = &filter.attributes[at];
                push_having(query, name, &condition.members.any);
            }
            Self::Within(at) => {
                let (name, condition) = &filter.attributes[at];
                query.push("SELECT DISTINCT grain AS number FROM grain_attributes WHERE name = ");
                query.push_bind(name.clone());
                push_attribute_range(query, &condition.range);
            }
        }
    }
}

/// The last of some values, alone.
fn last<T>(values: &[T]) -> &[T] {
    &values[values.len().saturating_sub(1)..]
}

fn push_tagged(query: &mut QueryBuilder<Sqlite>, tags: &[String]) {
    if let [tag] = tags {
        query.push("SELECT grain AS number FROM grain_tags WHERE tag = ").push_bind(tag.clone());
    } else {
        query.push("SELECT DISTINCT grain AS number FROM grain_tags WHERE tag");
        push_list(query, tags.iter().cloned());
    }
}

fn push_having(query: &mut QueryBuilder<Sqlite>, name: &str, values: &[AttributeValue]) {
    query.push(if values.len() == 1 { "SELECT" } else { "SELECT DISTINCT" });
    query.push(" grain AS number FROM grain_attributes WHERE name = ").push_bind(name.to_owned());
    push_values(query, values, Plan::Enumerate);
}

struct Conditions<'a> {
    query: &'a mut QueryBuilder<Sqlite>,
    plan: Plan,
}

impl Conditions<'_> {
    fn tags(self, tags: &Membership<String>) {
        let Self { query, plan } = self;
        if !tags.any.is_empty() {
            query.push(" AND g.number IN (SELECT grain FROM grain_tags WHERE ").push(plan.column("tag"));
            push_list(query, tags.any.iter().cloned());
            end_of_lookup(query, plan);
        }
        let (first, rest) = tags.all.split_at(tags.all.len().min(LOOKUPS));
        for tag in first {
            query.push(" AND g.number IN (SELECT grain FROM grain_tags WHERE tag = ").push_bind(tag.clone());
            end_of_lookup(query, plan);
        }
        if !rest.is_empty() {
            begin_all(query, rest.iter().map(|tag| Value::from(tag.as_str())));
            query.push("SELECT 1 FROM grain_tags WHERE grain = g.number AND tag = wanted.value))");
        }
        if !tags.none.is_empty() {
            query.push(" AND NOT EXISTS (SELECT 1 FROM grain_tags WHERE grain = g.number AND +tag");
            push_list(query, tags.none.iter().cloned());
            query.push(")");
        }
    }

    fn attribute(self, name: &str, condition: &AttributeCondition) {
        let Self { query, plan } = self;
        let AttributeCondition { members, range, exists } = condition;
        if !members.any.is_empty() {
            begin_attribute(query, name);
            push_values(query, &members.any, plan);
            end_of_lookup(query, plan);
        }
        let (first, rest) = members.all.split_at(members.all.len().min(LOOKUPS));
        for value in first {
            begin_attribute(query, name);
            push_values(query, std::slice::from_ref(value), plan);
            end_of_lookup(query, plan);
        }
        if !rest.is_empty() {
            begin_all(query, rest.iter().map(|value| json!([kind(value), json_of(value)])));
            query.push("SELECT 1 FROM grain_attributes WHERE grain = g.number AND name = ").push_bind(name.to_owned());
            query.push(" AND kind = wanted.value ->> 0 AND value = wanted.value ->> 1))");
        }
        if !members.none.is_empty() {
            begin_absent_attribute(query, name);
            push_values(query, &members.none, Plan::Check);
            query.push(")");
        }
        if !range.is_empty() {
            begin_attribute(query, name);
            push_attribute_range(query, range);
            end_of_lookup(query, plan);
        }
        if let Some(exists) = exists {
            // Objects and empty lists are attributes too, though they have no value to filter by.
            query.push(if *exists { " AND EXISTS" } else { " AND NOT EXISTS" });
            query.push(" (SELECT 1 FROM json_each(g.attributes) WHERE type <> 'null' AND key = ");
            query.push_bind(name.to_owned()).push(")");
        }
    }
}

fn begin_attribute(query: &mut QueryBuilder<Sqlite>, name: &str) {
    query.push(" AND g.number IN (SELECT grain FROM grain_attributes WHERE name = ").push_bind(name.to_owned());
}

fn begin_absent_attribute(query: &mut QueryBuilder<Sqlite>, name: &str) {
    query.push(" AND NOT EXISTS (SELECT 1 FROM grain_attributes WHERE grain = g.number AND name = ");
    query.push_bind(name.to_owned());
}

/// Tied to the grain, the subquery is looked up for each candidate, where the first row is enough: a grain may have a
/// thousand values of which another would do, too. Else it is one list for all of them.
fn end_of_lookup(query: &mut QueryBuilder<Sqlite>, plan: Plan) {
    query.push(match plan {
        Plan::Enumerate => ")",
        Plan::Check | Plan::InOrderOf(_) => " AND grain = g.number LIMIT 1)",
    });
}

fn push_list(query: &mut QueryBuilder<Sqlite>, values: impl Iterator<Item = String>) {
    // One parameter, however many values there are.
    let values: Vec<String> = values.collect();
    query.push(" IN (SELECT value FROM json_each(").push_bind(json_text(&values)).push("))");
}

/// Begins the condition that each of these values is there; the lookup of one, `wanted`, follows.
fn begin_all(query: &mut QueryBuilder<Sqlite>, values: impl Iterator<Item = Value>) {
    query.push(" AND NOT EXISTS (SELECT 1 FROM json_each(").push_bind(values.collect::<Value>().to_string());
    query.push(") AS wanted WHERE NOT EXISTS (");
}

fn push_values(query: &mut QueryBuilder<Sqlite>, values: &[AttributeValue], plan: Plan) {
    if let [value] = values {
        query.push(" AND kind = ").push_bind(kind(value)).push(" AND value = ");
        return push_value(query, value);
    }
    let mut before = " AND (";
    for wanted in KINDS {
        let of_kind: Value = values.iter().filter(|value| kind(value) == wanted).map(json_of).collect();
        if of_kind != Value::Array(Vec::new()) {
            query.push(before).push("kind = ").push_bind(wanted).push(" AND ").push(plan.column("value"));
            query.push(" IN (SELECT value FROM json_each(").push_bind(of_kind.to_string()).push("))");
            before = " OR ";
        }
    }
    query.push(")");
}

fn push_attribute_range(query: &mut QueryBuilder<Sqlite>, range: &Range<AttributeValue>) {
    for (operator, bound) in bounds(range) {
        query.push(" AND kind = ").push_bind(kind(bound)).push(" AND value ").push(operator).push(" ");
        push_value(query, bound);
    }
}

fn push_range(query: &mut QueryBuilder<Sqlite>, column: &str, range: &Range<i64>) {
    for (operator, bound) in bounds(range) {
        query.push(" AND ").push(column).push(" ").push(operator).push(" ").push_bind(*bound);
    }
}

fn bounds<T>(range: &Range<T>) -> impl Iterator<Item = (&'static str, &T)> {
    let Range { gt, gte, lt, lte } = range;
    [(">", gt), (">=", gte), ("<", lt), ("<=", lte)]
        .into_iter()
        .filter_map(|(operator, bound)| Some((operator, bound.as_ref()?)))
}

/// What [`kind`] answers.
const KINDS: [&str; 3] = ["text", "number", "boolean"];

fn kind(value: &AttributeValue) -> &'static str {
    match value {
        AttributeValue::Text(_) => "text",
        AttributeValue::Integer(_) | AttributeValue::Number(_) => "number",
        AttributeValue::Boolean(_) => "boolean",
    }
}

fn json_of(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::Text(text) => text.as_str().into(),
        AttributeValue::Integer(number) => (*number).into(),
        AttributeValue::Number(number) => (*number).into(),
        AttributeValue::Boolean(yes) => (*yes).into(),
    }
}

fn push_value(query: &mut QueryBuilder<Sqlite>, value: &AttributeValue) {
    match value {
        AttributeValue::Text(text) => query.push_bind(text.clone()),
        AttributeValue::Integer(number) => query.push_bind(*number),
        // Read by the database, as those of grains are: its double of these digits may be another than ours.
        AttributeValue::Number(_) => query.push("json_extract(").push_bind(json_of(value).to_string()).push(", '$')"),
        AttributeValue::Boolean(yes) => query.push_bind(i64::from(*yes)),
    };
}
