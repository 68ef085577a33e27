//! Conditions as SQL. Every value of the caller's is a parameter; what is built of strings is ours alone.

use serde_json::{Value, json};
use sqlx::{QueryBuilder, Sqlite};

use super::json_text;
use crate::domain::{AttributeCondition, AttributeValue, Filter, GrainId, Membership, Range, SpaceCondition};

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

/// A condition whose index lists the grains that meet it, and what else these must meet.
pub(super) struct Start {
    list: List,
    rest: Filter,
}

/// Grains that an index lists.
enum List {
    Ids(Vec<GrainId>),
    Sources(Vec<String>),
    Tags(Vec<String>),
    Values(String, Vec<AttributeValue>),
    Within(String, Range<AttributeValue>),
    Created(Range<i64>),
    Updated(Range<i64>),
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
    let can_begin = |start: &Start| match &start.list {
        List::Ids(_) => true,
        List::Tags(tags) => tags.len() == 1 && !needs_rows(filter),
        List::Values(_, values) => values.len() == 1 && !needs_rows(filter),
        _ => false,
    };
    push_from_start(query, filter, starts(filter).into_iter().find(can_begin).as_ref());
}

/// The same with all columns of the grains.
pub(super) fn push_from_rows(query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    // Beside the other conditions, the database would look each id up for each grain that meets these.
    let by_id = starts(filter).into_iter().find(|start| matches!(start.list, List::Ids(_)));
    push_beginning(query, filter, by_id.as_ref(), true);
}

/// Appends ` FROM … AS g WHERE TRUE AND …`: the numbers of the grains that meet the filter. With a start the first of them
/// are found without the rest.
pub(super) fn push_from_start(query: &mut QueryBuilder<Sqlite>, filter: &Filter, start: Option<&Start>) {
    push_beginning(query, filter, start, false);
}

fn push_beginning(query: &mut QueryBuilder<Sqlite>, filter: &Filter, start: Option<&Start>, with_rows: bool) {
    let Some(Start { list, rest }) = start else {
        query.push(" FROM grains AS g WHERE TRUE");
        return push(query, filter, Plan::Enumerate);
    };
    query.push(" FROM (");
    list.push(query);
    query.push(if with_rows || needs_rows(rest) {
        ") AS found CROSS JOIN grains AS g ON g.number = found.number WHERE TRUE"
    } else {
        ") AS g WHERE TRUE"
    });
    push(query, rest, Plan::Check);
}

/// Appends an expression: how many grains a start lists, up to that many.
pub(super) fn push_length(query: &mut QueryBuilder<Sqlite>, start: &Start, at_most: i64) {
    query.push("(SELECT count(*) FROM (");
    start.list.push(query);
    query.push(" LIMIT ").push_bind(at_most).push("))");
}

/// The conditions that the database can begin with, some of them. There are few ids in a filter: beside them no other
/// condition is worth a look.
pub(super) fn starts(filter: &Filter) -> Vec<Start> {
    if let Some(start) = Start::of(filter, |rest| rest.ids.take().map(List::Ids)) {
        return vec![start];
    }
    let mut starts = Vec::new();
    starts.extend(Start::of(filter, |rest| rest.tags.all.pop().map(|tag| List::Tags(vec![tag]))));
    starts.extend(Start::of(filter, |rest| taken(&mut rest.tags.any).map(List::Tags)));
    // The index of sources does not have the grains without one.
    starts.extend(Start::of(filter, |rest| rest.sources.take()?.into_iter().collect::<Option<_>>().map(List::Sources)));
    starts.extend(Start::of(filter, |rest| taken_range(&mut rest.created_us).map(List::Created)));
    starts.extend(Start::of(filter, |rest| taken_range(&mut rest.updated_us).map(List::Updated)));
    for (at, (name, _)) in filter.attributes.iter().enumerate().take(LOOKUPS) {
        let values = |values| List::Values(name.clone(), values);
        let within = |range| List::Within(name.clone(), range);
        let value = |value| values(vec![value]);
        starts.extend(Start::of(filter, |rest| rest.attributes[at].1.members.all.pop().map(value)));
        starts.extend(Start::of(filter, |rest| taken(&mut rest.attributes[at].1.members.any).map(values)));
        starts.extend(Start::of(filter, |rest| taken_range(&mut rest.attributes[at].1.range).map(within)));
    }
    starts
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

/// All of some values, taken out, when there are any.
fn taken<T>(values: &mut Vec<T>) -> Option<Vec<T>> {
    Some(std::mem::take(values)).filter(|values| !values.is_empty())
}

/// Bounds, taken out, when there are any.
fn taken_range<T>(range: &mut Range<T>) -> Option<Range<T>> {
    Some(std::mem::take(range)).filter(|range| !range.is_empty())
}

impl Start {
    /// The condition that is taken out of the filter, if there is one, and the rest.
    fn of(filter: &Filter, take: impl FnOnce(&mut Filter) -> Option<List>) -> Option<Self> {
        let mut rest = filter.clone();
        take(&mut rest).map(|list| Self { list, rest })
    }
}

impl List {
    /// Appends `SELECT … AS number FROM …`: each grain once.
    fn push(&self, query: &mut QueryBuilder<Sqlite>) {
        match self {
            Self::Ids(ids) => {
                query.push("SELECT number FROM grains WHERE id");
                push_list(query, ids.iter().map(|id| id.as_str().to_owned()));
            }
            Self::Sources(sources) => {
                query.push("SELECT number FROM grains WHERE source");
                push_list(query, sources.iter().cloned());
            }
            Self::Tags(tags) => match tags.as_slice() {
                [tag] => {
                    query.push("SELECT grain AS number FROM grain_tags WHERE tag = ").push_bind(tag.clone());
                }
                tags => {
                    query.push("SELECT DISTINCT grain AS number FROM grain_tags WHERE tag");
                    push_list(query, tags.iter().cloned());
                }
            },
            Self::Values(name, values) => {
                query.push(if values.len() == 1 { "SELECT" } else { "SELECT DISTINCT" });
                query.push(" grain AS number FROM grain_attributes WHERE name = ").push_bind(name.clone());
                push_values(query, values, Plan::Enumerate);
            }
            Self::Within(name, range) => {
                query.push("SELECT DISTINCT grain AS number FROM grain_attributes WHERE name = ");
                query.push_bind(name.clone());
                push_attribute_range(query, range);
            }
            Self::Created(range) => {
                query.push("SELECT number FROM grains WHERE TRUE");
                push_range(query, "created_us", range);
            }
            Self::Updated(range) => {
                query.push("SELECT number FROM grains WHERE TRUE");
                push_range(query, "updated_us", range);
            }
        }
    }
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

/// Tied to the grain, the subquery is looked up for each candidate; else it is one list for all of them.
fn end_of_lookup(query: &mut QueryBuilder<Sqlite>, plan: Plan) {
    query.push(match plan {
        Plan::Enumerate => ")",
        Plan::Check | Plan::InOrderOf(_) => " AND grain = g.number)",
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
