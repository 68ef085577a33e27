//! Numbers of grains by filter and by words.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Row};

use super::super::super::StoreError;
use super::super::super::grain_store::{Scored, SearchStore};
use super::super::SqliteStore;
use super::filter::{self, Plan, Start};
use super::{json_text, shown};
use crate::domain::Filter;
use crate::grains::words::Asked;

/// Grains that are counted of each condition at most, to see which has the fewest: counting a thousand takes a fifth of a
/// millisecond.
const MOST_COUNTED: i64 = 10_000;

/// The most grains under a filter that are listed and sorted for each page of them. Of more the order is read, and each
/// grain in it checked: there a page is not far from the one before.
pub(super) const FEW: i64 = 5_000;

/// Those of some grains that have a word. Each number is looked up: the list of a word may have as many as there are
/// grains.
const HAVING: &str = "
    SELECT w.rowid FROM json_each(?) AS n CROSS JOIN grain_words AS w ON w.rowid = n.value
    WHERE w.grain_words MATCH ?";

/// Those of some grains that have a word that begins so. The lists of all such words are made one, and only once: for each
/// number that would be done anew.
const HAVING_BEGINNING: &str = "
    SELECT w.rowid FROM grain_words AS w WHERE +w.rowid IN (SELECT value FROM json_each(?)) AND w.grain_words MATCH ?";

/// Some grains as words find them. The words are looked up once (hence the `+`): for each number FTS5 would count anew how
/// many grains have them.
const SCORED: &str = "
    SELECT w.rowid, -w.rank FROM grain_words AS w
    WHERE w.grain_words MATCH ? AND +w.rowid IN (SELECT value FROM json_each(?))";

/// A query of FTS5 that any of these words meets, each quoted, so that none is taken for an operator. `None` without a word.
pub(super) fn quoted(words: &[Asked]) -> Option<String> {
    let quoted = |Asked { term, is_beginning }: &Asked| format!("\"{term}\"{}", if *is_beginning { " *" } else { "" });
    (!words.is_empty()).then(|| words.iter().map(quoted).collect::<Vec<_>>().join(" OR "))
}

impl SqliteStore {
    /// The condition that fewest grains meet of those that the database can begin with.
    pub(super) async fn narrowest(&self, filter: &Filter) -> Result<Option<Start>, StoreError> {
        let starts = filter::starts(filter);
        if starts.len() < 2 {
            return Ok(starts.into_iter().next());
        }
        let mut query = QueryBuilder::new("SELECT ");
        for (at, start) in starts.iter().enumerate() {
            query.push(if at == 0 { "" } else { ", " });
            filter::push_length(&mut query, filter, *start, MOST_COUNTED);
        }
        let failed = self.failed("look for the narrowest condition");
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let row = query.build().fetch_one(&mut *reader).await.map_err(&failed)?;
        let lengths = (0..starts.len()).map(|at| row.try_get::<i64, _>(at)).collect::<Result<Vec<_>, _>>();
        let narrowest = starts.into_iter().zip(lengths.map_err(failed)?).min_by_key(|(_, n)| *n);
        Ok(narrowest.map(|(start, _)| start))
    }

    /// Where to begin with a filter that few grains meet; `None` where many do, or where it has no such condition.
    pub(super) async fn start_of_few(&self, filter: &Filter) -> Result<Option<Start>, StoreError> {
        let Some(start) = self.narrowest(filter).await? else { return Ok(None) };
        let mut query = QueryBuilder::new("SELECT count(*) FROM (SELECT g.number");
        filter::push_from_start(&mut query, filter, Some(start));
        query.push(" LIMIT ").push_bind(FEW + 1).push(")");
        let failed = self.failed("see whether few grains meet a filter");
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let n: i64 = query.build_query_scalar().fetch_one(&mut *reader).await.map_err(failed)?;
        Ok(Some(start).filter(|_| n <= FEW))
    }
}

#[async_trait]
impl SearchStore for SqliteStore {
    async fn numbers(&self, filter: Filter, at_most: u32) -> Result<Vec<i64>, StoreError> {
        let _shown = shown("numbers");
        let start = self.narrowest(&filter).await?;
        // One row: a hundred thousand of them would take longer than the search.
        let mut query = QueryBuilder::new("SELECT group_concat(number) FROM (SELECT g.number");
        filter::push_from_start(&mut query, &filter, start);
        query.push(" LIMIT ").push_bind(i64::from(at_most)).push(")");
        let failed = self.failed("find grains by a filter");
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let list: Option<String> = query.build_query_scalar().fetch_one(&mut *reader).await.map_err(failed)?;
        let numbers = list.as_deref().unwrap_or_default().split(',').filter(|number| !number.is_empty());
        numbers.map(str::parse).collect::<Result<_, _>>().map_err(|source: std::num::ParseIntError| {
            self.malformed("a number of a grain (table `grains`)", source.into())
        })
    }

    async fn passing(&self, filter: Filter, numbers: Vec<i64>) -> Result<Vec<i64>, StoreError> {
        let _shown = shown("passing");
        let mut query = QueryBuilder::new("SELECT g.number");
        filter::push_from_numbers(&mut query, &filter, &numbers);
        query.push(" ORDER BY g.key");
        let failed = self.failed("check grains by a filter");
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let passing = query.build_query_scalar().fetch_all(&mut *reader).await;
        passing.map_err(failed)
    }

    async fn with_words(&self, query: String, filter: Filter, at_most: u32) -> Result<Vec<Scored>, StoreError> {
        let _shown = shown("with_words");
        let Some(words) = quoted(&self.words_to_find(&query).await?) else { return Ok(Vec::new()) };
        let mut query = QueryBuilder::new("SELECT w.rowid, -w.rank FROM grain_words AS w ");
        if !filter.is_empty() {
            query.push("CROSS JOIN grains AS g ON g.number = w.rowid ");
        }
        query.push("WHERE w.grain_words MATCH ").push_bind(words);
        if !filter.is_empty() {
            filter::push(&mut query, &filter, Plan::Check);
        }
        query.push(" ORDER BY w.rank, w.rowid LIMIT ").push_bind(i64::from(at_most));
        let failed = self.failed("search for words");
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let rows: Vec<(i64, f64)> = query.build_query_as().fetch_all(&mut *reader).await.map_err(&failed)?;
        Ok(rows.into_iter().map(|(number, score)| Scored { number, score }).collect())
    }

    async fn words_of(&self, query: String, numbers: Vec<i64>) -> Result<Vec<Scored>, StoreError> {
        let _shown = shown("words_of");
        let Some(words) = quoted(&self.words_to_find(&query).await?) else { return Ok(Vec::new()) };
        let failed = self.failed("score grains by words");
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let rows = sqlx::query_as(SCORED).bind(words).bind(json_text(&numbers)).fetch_all(&mut *reader);
        let rows: Vec<(i64, f64)> = rows.await.map_err(failed)?;
        Ok(rows.into_iter().map(|(number, score)| Scored { number, score }).collect())
    }

    async fn with_each_word(&self, query: String, numbers: Vec<i64>) -> Result<Vec<Vec<i64>>, StoreError> {
        let _shown = shown("with_each_word");
        let (failed, numbers) = (self.failed("see which grains have a word"), json_text(&numbers));
        let mut by_word: Vec<Vec<i64>> = Vec::new();
        let words = self.words_to_find(&query).await?;
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        for word in words {
            let having = sqlx::query_scalar(if word.is_beginning { HAVING_BEGINNING } else { HAVING });
            let having = having.bind(numbers.as_str()).bind(quoted(&[word]));
            by_word.push(having.fetch_all(&mut *reader).await.map_err(&failed)?);
        }
        Ok(by_word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grains::words::asked;

    #[test]
    fn words_are_quoted_and_nothing_is_an_operator() {
        for (text, query) in [
            ("C++ NOT java", Some(r#""c" OR "not" OR "java""#)),
            (r#"say "hi" * ^ NEAR(a b)"#, Some(r#""say" OR "hi" OR "near" OR "a" OR "b""#)),
            ("Grüße, 世界 猫", Some(r#""grusse" OR "世界" OR "猫" *"#)),
            (" -:() \"\" \u{301}", None),
        ] {
            assert_eq!(quoted(&asked(text)).as_deref(), query, "{text}");
        }
    }
}
