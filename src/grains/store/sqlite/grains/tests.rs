//! How the database goes about filters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite};

use super::super::super::grain_store::{
    DeleteStore, Facet, OnlyIf, PageRequest, Position, ReadStore, SearchStore, Sort, SortKey, Vectors,
};
use super::super::{OpenOptions, SqliteStore};
use super::filter::Start;
use super::*;
use crate::domain::{AttributeCondition, AttributeValue, Filter, GrainId, Membership, Range};

const GRAINS: &str = "
    WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < ?)
    INSERT INTO grains (id, text, source, tags, attributes, created_at, updated_at, created_us, updated_us)
    SELECT 'g' || i, 'text', nullif('s' || (i % 30), 's0'), json_array(CASE i % 2 WHEN 1 THEN 'odd' ELSE 'even' END, 'all'),
           json_object('n', i, 'list', json_array(i % 5, i % 4, 'x')), '', '', i, i % 7
    FROM numbers";

/// A store with so many grains.
async fn store(n_grains: i64) -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(OpenOptions::at(folder.path().join("granary.db"))).await.expect("created");
    sqlx::query(GRAINS).bind(n_grains).execute(&store.writer).await.expect("inserted");
    let words = "INSERT INTO grain_words (rowid, terms) SELECT number, 'text ' FROM grains";
    sqlx::query(words).execute(&store.writer).await.expect("inserted");
    (folder, store)
}

fn tagged(tag: &str) -> Filter {
    Filter { tags: Membership { all: vec![tag.to_owned()], ..Membership::default() }, ..Filter::default() }
}

fn attribute(name: &str, condition: AttributeCondition) -> Vec<(String, AttributeCondition)> {
    vec![(name.to_owned(), condition)]
}

fn at_least(n: i64) -> AttributeCondition {
    let range = Range { gte: Some(AttributeValue::Integer(n)), ..Range::default() };
    AttributeCondition { range, ..AttributeCondition::default() }
}

fn any_of(values: &[AttributeValue]) -> AttributeCondition {
    let members = Membership { any: values.to_vec(), ..Membership::default() };
    AttributeCondition { members, ..AttributeCondition::default() }
}

async fn numbers(store: &SqliteStore, filter: &Filter, start: Option<Start>) -> Vec<i64> {
    let mut query = QueryBuilder::new("SELECT g.number");
    filter::push_from_start(&mut query, filter, start);
    let found = query.build_query_scalar().fetch_all(&store.readers).await;
    let mut found: Vec<i64> = found.expect("found");
    found.sort_unstable();
    found
}

#[tokio::test]
async fn wherever_a_search_begins_it_finds_the_same_grains() {
    let (_folder, store) = store(300).await;
    let early = Range { lt: Some(100), ..Range::default() };
    let mixed = [AttributeValue::Integer(1), AttributeValue::Integer(2), AttributeValue::Text("x".to_owned())];
    let sources = Some(["s1", "s2"].map(|source| Some(source.to_owned())).to_vec());
    let nameless = Some(vec![Some("s1".to_owned()), None]);
    let either = Membership { any: vec!["odd".to_owned(), "all".to_owned()], ..Membership::default() };
    let both = Membership { all: vec!["odd".to_owned(), "all".to_owned()], ..Membership::default() };
    let one_and_two = Membership { all: mixed[..2].to_vec(), ..Membership::default() };
    let one_and_two = AttributeCondition { members: one_and_two, ..AttributeCondition::default() };
    for (filter, n_starts, n_grains) in [
        (Filter { tags: both, attributes: attribute("list", one_and_two), ..Filter::default() }, 2, 15),
        (Filter { attributes: attribute("list", any_of(&mixed)), ..Filter::default() }, 1, 300),
        (Filter { attributes: attribute("list", any_of(&mixed[..2])), ..tagged("odd") }, 2, 105),
        (Filter { attributes: attribute("list", at_least(3)), created_us: early, ..tagged("odd") }, 3, 35),
        (Filter { sources: sources.clone(), tags: either, ..Filter::default() }, 2, 20),
        (Filter { sources: nameless, ..tagged("all") }, 1, 20),
        (Filter { sources, updated_us: Range { gt: Some(3), ..Range::default() }, ..tagged("all") }, 3, 9),
        (Filter { ids: Some(vec![GrainId::stored("g7".to_owned())]), ..tagged("odd") }, 1, 1),
    ] {
        let expected = numbers(&store, &filter, None).await;
        assert_eq!(expected.len(), n_grains, "{filter:?}");
        let starts = filter::starts(&filter);
        assert_eq!(starts.len(), n_starts, "{filter:?}");
        for start in starts {
            assert_eq!(numbers(&store, &filter, Some(start)).await, expected, "{filter:?}");
        }
        let mut found = store.numbers(filter.clone(), u32::MAX).await.expect("found");
        found.sort_unstable();
        assert_eq!(found, expected, "{filter:?}");
    }
    store.close().await;
}

#[tokio::test]
async fn a_search_begins_with_the_condition_that_fewest_grains_meet() {
    let (_folder, store) = store(300).await;
    let late = Range { gt: Some(295), ..Range::default() };
    let two = [AttributeValue::Integer(1), AttributeValue::Integer(2)];
    for (filter, begins) in [
        (Filter { attributes: attribute("n", at_least(290)), ..Filter::default() }, "grain_attributes"),
        (Filter { attributes: attribute("n", at_least(290)), ..tagged("all") }, "grain_attributes"),
        (Filter { attributes: attribute("n", at_least(2)), ..tagged("odd") }, "grain_tags"),
        (Filter { attributes: attribute("n", any_of(&two)), ..tagged("odd") }, "grain_attributes"),
        (Filter { created_us: late, ..tagged("odd") }, "grains USING COVERING INDEX grains_by_created"),
        (
            Filter { sources: Some(vec![Some("s1".to_owned())]), ..tagged("odd") },
            "grains USING COVERING INDEX grains_by_source",
        ),
    ] {
        let start = store.narrowest(&filter).await.expect("found");
        let mut query = QueryBuilder::new("EXPLAIN QUERY PLAN SELECT g.number");
        filter::push_from_start(&mut query, &filter, start);
        let rows = query.build().fetch_all(&store.readers).await.expect("explained");
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        let first = plan.iter().find(|step| step.starts_with("SEARCH") || step.starts_with("SCAN"));
        assert!(first.is_some_and(|step| step.starts_with(&format!("SEARCH {begins}"))), "{filter:?}: {plan:#?}");
    }
    store.close().await;
}

/// How many instructions of SQLite's machine it takes to see that these grains meet a filter.
async fn instructions(store: &SqliteStore, filter: &Filter, numbers: &[i64]) -> u64 {
    let mut query = QueryBuilder::new("SELECT g.number");
    filter::push_from_numbers(&mut query, filter, numbers);
    let n = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&n);
    let mut reader = store.readers.acquire().await.expect("a reader");
    let mut handle = reader.lock_handle().await.expect("idle");
    handle.set_progress_handler(1, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        true
    });
    drop(handle);
    let met: Vec<i64> = query.build_query_scalar().fetch_all(&mut *reader).await.expect("checked");
    assert_eq!(met, numbers);
    n.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_grain_of_many_values_is_looked_at_until_one_of_them_will_do() {
    const GRAINS: i64 = 20;
    const VALUES: i64 = 500;
    let (_folder, store) = store(GRAINS).await;
    let values: Vec<i64> = (0..VALUES).collect();
    let update = sqlx::query("UPDATE grains SET attributes = json_object('many', json(?)), tags = ?");
    let tags: Vec<String> = values.iter().map(ToString::to_string).collect();
    update.bind(json_text(&values)).bind(json_text(&tags)).execute(&store.writer).await.expect("written");
    let numbers: Vec<i64> = (1..=GRAINS).collect();
    let wanted: Vec<AttributeValue> = values.into_iter().map(AttributeValue::Integer).collect();
    for filter in [
        Filter { attributes: attribute("many", any_of(&wanted)), ..Filter::default() },
        Filter { attributes: attribute("many", at_least(0)), ..Filter::default() },
        Filter { tags: Membership { any: tags, ..Membership::default() }, ..Filter::default() },
    ] {
        // What is wanted is listed once, however many grains there are.
        let one = instructions(&store, &filter, &numbers[..1]).await;
        let all = instructions(&store, &filter, &numbers).await;
        assert!(all < one + (GRAINS * VALUES).unsigned_abs(), "{one} for one, {all} for all");
    }
    store.close().await;
}

#[tokio::test]
async fn no_grain_is_checked_for_a_caller_who_has_left() {
    let (_folder, store) = store(1).await;
    let values: Vec<i64> = (0..1_000).collect();
    let update = sqlx::query("UPDATE grains SET attributes = json_object('many', json(?))");
    update.bind(json_text(&values)).execute(&store.writer).await.expect("written");
    // Each of them is looked up each time the grain is: half a millisecond.
    let all = values.into_iter().map(AttributeValue::Integer).collect();
    let members = Membership { all, ..Membership::default() };
    let condition = AttributeCondition { members, ..AttributeCondition::default() };
    let filter = Filter { attributes: attribute("many", condition), ..Filter::default() };
    assert_eq!(store.passing(filter.clone(), vec![1; 3]).await.expect("checked"), [1; 3]);
    let checked = store.passing(filter, vec![1; 500_000]);
    tokio::time::timeout(Duration::from_millis(200), checked).await.expect_err("it takes minutes");
    tokio::time::timeout(Duration::from_secs(10), store.close()).await.expect("it was interrupted");
}

#[tokio::test]
async fn grains_that_are_named_are_counted_one_by_one_whatever_else_they_must_meet() {
    let (_folder, store) = store(300).await;
    let ids = (0..50).map(|n| GrainId::stored(format!("g{n}"))).collect();
    let named = Filter { ids: Some(ids), ..Filter::default() };
    let either = Membership { any: vec!["odd".to_owned(), "none".to_owned()], ..Membership::default() };
    let odd = [AttributeValue::Integer(1), AttributeValue::Integer(2)];
    for (filter, n_grains) in [
        (named.clone(), 49),
        (Filter { tags: either, ..named.clone() }, 25),
        (Filter { attributes: attribute("list", any_of(&odd)), ..named.clone() }, 34),
        (Filter { attributes: attribute("n", at_least(40)), ..named.clone() }, 10),
        (Filter { sources: Some(vec![Some("s1".to_owned())]), ..named.clone() }, 2),
    ] {
        let facets = vec![Facet::Source, Facet::Tags, Facet::Space];
        let counted = store.count(filter.clone(), facets.clone()).await.expect("counted");
        assert_eq!(counted.total, n_grains, "{filter:?}");
        let mut queries: Vec<_> = facets.into_iter().map(|facet| read::select_facet(facet, &filter)).collect();
        let mut count = QueryBuilder::new("SELECT count(*)");
        filter::push_from(&mut count, &filter);
        queries.push(count);
        for (at, query) in queries.into_iter().enumerate() {
            let n_values: u64 =
                counted.facets.get(at).map_or(0, |(_, values)| values.iter().map(|value| value.count).sum());
            // Each has one source, no space, and two tags.
            assert_eq!(n_values, [1, 2, 1, 0][at] * n_grains, "{filter:?}");
            let explained = format!("EXPLAIN QUERY PLAN {}", query.sql().as_str());
            let rows = sqlx::raw_sql(AssertSqlSafe(explained)).fetch_all(&store.readers).await.expect("explained");
            let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
            let begins = plan.iter().any(|step| step.contains("sqlite_autoindex_grains_1 (id=?)"));
            assert!(begins && !plan.iter().any(|step| step.contains("id=? AND rowid=?")), "{filter:?}: {plan:#?}");
        }
    }
    store.close().await;
}

/// A page that begins anywhere.
fn page_of(filter: &Filter, sort: Sort, after: Option<Position>) -> PageRequest {
    PageRequest { filter: filter.clone(), sort, after, limit: 7, vectors: Vectors::Omitted }
}

/// The numbers of all grains, page by page.
async fn all_pages(store: &SqliteStore, filter: &Filter, sort: Sort, few: Option<Start>) -> Vec<i64> {
    let mut found: Vec<i64> = Vec::new();
    let mut after = None;
    loop {
        let mut query = read::page_query(&page_of(filter, sort, after), few);
        let rows = query.build().fetch_all(&store.readers).await.expect("found");
        found.extend(rows.iter().take(7).map(|row| row.get::<i64, _>("number")));
        if rows.len() < 8 {
            return found;
        }
        let last = &rows[6];
        let at = |column: &str| Position::Time { us: last.get(column), number: last.get("number") };
        after = Some(match sort.key {
            SortKey::Created => at("created_us"),
            SortKey::Updated => at("updated_us"),
            SortKey::Id => Position::Id(last.get("id")),
        });
    }
}

#[tokio::test]
async fn pages_of_few_grains_and_of_many_are_the_same() {
    let (_folder, store) = store(300).await;
    let of_list = attribute("list", any_of(&[AttributeValue::Integer(1), AttributeValue::Integer(2)]));
    let range = Range { gte: Some(2), lt: Some(6), ..Range::default() };
    for filter in [
        tagged("odd"),
        Filter { attributes: of_list, ..tagged("odd") },
        Filter { sources: Some(vec![Some("s1".to_owned()), Some("s2".to_owned())]), ..tagged("all") },
        Filter { updated_us: range.clone(), ..Filter::default() },
        Filter { updated_us: range, created_us: Range { gt: Some(100), ..Range::default() }, ..tagged("even") },
    ] {
        let start = store.start_of_few(&filter).await.expect("counted").expect("few");
        let mut expected = numbers(&store, &filter, None).await;
        for (key, descending) in [
            (SortKey::Created, false),
            (SortKey::Created, true),
            (SortKey::Updated, false),
            (SortKey::Updated, true),
            (SortKey::Id, false),
            (SortKey::Id, true),
        ] {
            let sort = Sort { key, descending };
            match key {
                SortKey::Created => expected.sort_unstable(),
                SortKey::Updated => expected.sort_unstable_by_key(|number| (number % 7, *number)),
                SortKey::Id => expected.sort_unstable_by_key(|number| format!("g{number}")),
            }
            if descending {
                expected.reverse();
            }
            assert_eq!(all_pages(&store, &filter, sort, Some(start)).await, expected, "{sort:?} {filter:?}");
            assert_eq!(all_pages(&store, &filter, sort, None).await, expected, "{sort:?} {filter:?}");
        }
    }
    store.close().await;
}

#[tokio::test]
async fn a_page_of_many_grains_is_read_in_its_order() {
    let (_folder, store) = store(search::FEW + 1).await;
    let many = Filter { updated_us: Range { gte: Some(0), ..Range::default() }, ..tagged("all") };
    let sort = Sort { key: SortKey::Created, descending: false };
    for after in [None, Some(Position::Time { us: 3, number: 3 })] {
        let start = store.start_of_few(&many).await.expect("counted");
        let explained = read::page_query(&page_of(&many, sort, after.clone()), start);
        let mut query = QueryBuilder::<Sqlite>::new(format!("EXPLAIN QUERY PLAN {}", explained.sql().as_str()));
        let rows = query.build().fetch_all(&store.readers).await.expect("explained");
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        // Both the time and the number are gone to.
        assert!(after.is_none() || plan.iter().any(|step| step.contains("(created_us=? AND rowid>?)")), "{plan:#?}");
        let mut steps = plan.iter().filter(|step| step.contains(" g USING")).peekable();
        assert!(steps.peek().is_some() && steps.all(|step| step.contains("INDEX grains_by_created")), "{plan:#?}");
    }
    let few = Filter { sources: Some(vec![Some("s1".to_owned())]), ..many };
    assert!(store.start_of_few(&few).await.expect("counted").is_some());
    assert!(store.start_of_few(&Filter::default()).await.expect("counted").is_none());
    store.close().await;
}

#[tokio::test]
async fn a_lone_letter_is_counted_once_in_each_grain_that_has_words_which_begin_with_it() {
    let (_folder, store) = store(4).await;
    for (number, terms) in [(1, "猫が が 猫は は "), (2, "黒猫 猫 "), (3, "犬が が "), (4, "猫は は ")] {
        let put = sqlx::query("INSERT OR REPLACE INTO grain_words (rowid, terms) VALUES (?, ?)");
        put.bind(number).bind(terms).execute(&store.writer).await.expect("put");
    }
    let words = crate::grains::words::asked("猫 犬が 空");
    let counts = store.count_words(&words.iter().collect::<Vec<_>>()).await.expect("counted");
    assert_eq!(words.iter().map(|word| counts[word]).collect::<Vec<_>>(), [3, 1, 0]);
    let mut having = store.with_each_word("猫 犬が".to_owned(), vec![1, 2, 3]).await.expect("found");
    for numbers in &mut having {
        numbers.sort_unstable();
    }
    having.sort_unstable();
    assert_eq!(having, [vec![1, 2], vec![3]]);
    store.close().await;
}

#[tokio::test]
async fn many_grains_are_deleted_in_steps_as_far_as_nobody_has_written_them_since() {
    const STEP: usize = delete::DELETED_IN_ONE_STEP;
    let all = 2 * STEP as u64 + 1;
    let (_folder, store) = store(i64::try_from(all).expect("not so many")).await;
    let refused = store.delete(tagged("all"), OnlyIf::Count(all - 1)).await.expect("asked");
    assert_eq!(refused.expect_err("there is one more"), all);
    let deletion = store.delete(tagged("all"), OnlyIf::Count(all)).await.expect("asked").expect("as many");
    assert_eq!((deletion.gone.len(), deletion.left.len()), (STEP, STEP + 1));

    // Others change one of them meanwhile so that it meets the filter no more, write one anew, delete one, and add one.
    let [(changed, _), (written, _), (deleted, _), ..] = deletion.left[..] else { panic!("there are more") };
    for (sql, number) in [
        ("UPDATE grains SET tags = '[]' WHERE number = ?", changed),
        ("UPDATE grains SET version = version + 1 WHERE number = ?", written),
        ("DELETE FROM grains WHERE number = ?", deleted),
        (
            "INSERT INTO grains (id, text, tags, created_at, updated_at, created_us, updated_us) \
             VALUES (?, 'text', '[\"all\"]', '', '', 0, 0)",
            -1,
        ),
    ] {
        sqlx::query(sql).bind(number).execute(&store.writer).await.expect("written");
    }
    let (mut left, mut n_gone) = (deletion.left, 0);
    while !left.is_empty() {
        let step = store.delete_left(tagged("all"), left).await.expect("deleted");
        assert!(step.gone.len() <= STEP);
        n_gone += step.gone.len();
        left = step.left;
    }
    assert_eq!(n_gone, STEP + 1 - 3);
    let stay = numbers(&store, &Filter::default(), None).await;
    assert!(stay.len() == 3 && stay.contains(&changed) && stay.contains(&written), "{stay:?}");
    store.close().await;
}
