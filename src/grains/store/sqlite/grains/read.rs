//! Grains by id and number, page by page, and counted.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection};
use tokio::time::timeout;

use super::super::super::StoreError;
use super::super::super::grain_store::{
    Counted, Facet, FacetValue, Numbered, Page, PageRequest, Position, ReadStore, Receipt, ReceiptKey, SortKey, Vectors,
};
use super::super::SqliteStore;
use super::filter::{self, Plan, SERVED_SPACE, Start};
use super::rows::{push_select, select_grains, select_grains_and, vector_of};
use super::{count, json_text, shown};
use crate::domain::{Content, Filter, Grain, GrainId};
use crate::json::parsed_bytes_of_any_shape;

/// Bytes of texts and metadata after which a page ends, however many grains it may have.
const PAGE_BYTES: usize = 16 << 20;

/// The column of a grain's vector. It is read in one statement with the grain: between two, either may change.
const VECTOR: &str = ", e.vector";

/// How long many grains under a filter are looked for in their order, before all of them are listed and sorted.
const IN_ORDER_FOR: Duration = Duration::from_secs(1);

/// The most values that are counted of a facet.
const MAX_FACET_VALUES: i64 = 100;

/// Bytes of attributes that are not worth reading to learn what they take of memory.
const SMALL_ATTRIBUTES: i64 = 1 << 10;

#[async_trait]
impl ReadStore for SqliteStore {
    async fn grain(&self, id: &GrainId) -> Result<Option<Numbered>, StoreError> {
        let _shown = shown("grain");
        let mut query = select_grains();
        query.push(" WHERE g.id = ").push_bind(id.as_str().to_owned());
        let row = query.build().fetch_optional(&self.readers).await.map_err(self.failed("read a grain"))?;
        row.map(|row| self.grain_of(&row)).transpose()
    }

    async fn grain_with_vector(&self, id: &GrainId) -> Result<Option<(Numbered, Option<Vec<f32>>)>, StoreError> {
        let _shown = shown("grain_with_vector");
        let failed = self.failed("read a grain with its vector");
        let mut query = select_grains_and(VECTOR);
        query.push(" WHERE g.id = ").push_bind(id.as_str().to_owned());
        let row = query.build().fetch_optional(&self.readers).await.map_err(&failed)?;
        row.map(|row| Ok((self.grain_of(&row)?, vector_in(&row).map_err(&failed)?))).transpose()
    }

    async fn grains(&self, numbers: Vec<i64>, filter: Filter) -> Result<Vec<Numbered>, StoreError> {
        let _shown = shown("grains");
        let mut query = select_grains();
        query.push(" WHERE g.number IN (SELECT value FROM json_each(").push_bind(json_text(&numbers)).push("))");
        filter::push(&mut query, &filter, Plan::Check);
        let failed = self.failed("read grains");
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let rows = query.build().fetch_all(&mut *reader).await.map_err(failed)?;
        rows.iter().map(|row| self.grain_of(row)).collect()
    }

    async fn size(&self, numbers: Vec<i64>) -> Result<u64, StoreError> {
        let _shown = shown("size");
        let failed = self.failed("measure grains");
        let json = json_text(&numbers);
        let mut rows = sqlx::query_as::<_, (i64, Option<String>)>(
            "SELECT octet_length(id) + octet_length(text) + coalesce(octet_length(source), 0) + octet_length(tags) \
             + octet_length(attributes) + octet_length(created_at) + octet_length(updated_at) \
             + CASE WHEN json_valid(old_meta) AND json_type(old_meta) = 'object' THEN 0 \
               ELSE coalesce(octet_length(old_meta), 0) END, \
             CASE WHEN octet_length(attributes) > ? THEN attributes END FROM grains \
             WHERE number IN (SELECT value FROM json_each(?))",
        )
        .bind(SMALL_ATTRIBUTES)
        .bind(&json)
        .fetch(&self.readers);
        let mut size = 0;
        while let Some((n_bytes, attributes)) = rows.try_next().await.map_err(&failed)? {
            size += count(n_bytes)
                + attributes.map_or(0, |attributes| parsed_bytes_of_any_shape(attributes.as_bytes()) as u64);
        }
        Ok(size)
    }

    async fn page(&self, request: PageRequest) -> Result<Page, StoreError> {
        let _shown = shown("page");
        let failed = self.failed("list grains");
        let mut few = self.start_of_few(&request.filter).await?;
        if few.is_none()
            && let Some(start) = self.narrowest(&request.filter).await?
        {
            // Many that lie together, as those of one source do, may be at the other end of the order. What is given up is
            // interrupted.
            let (mut reader, _interest) = self.patient_reader().await.map_err(&failed)?;
            if let Ok(page) = timeout(IN_ORDER_FOR, self.page_by(&mut reader, &request, None)).await {
                return page;
            }
            few = Some(start);
        }
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        self.page_by(&mut reader, &request, few).await
    }

    async fn count(&self, filter: Filter, facets: Vec<Facet>) -> Result<Counted, StoreError> {
        let _shown = shown("count");
        let failed = self.failed("count grains");
        let mut query = QueryBuilder::new("SELECT count(*)");
        filter::push_from(&mut query, &filter);
        // All is counted at one moment: else the values of a facet may make more or less than the total.
        let (mut reader, _interest) = self.callers_reader().await.map_err(&failed)?;
        let mut transaction = reader.begin().await.map_err(&failed)?;
        let total: i64 = query.build_query_scalar().fetch_one(&mut *transaction).await.map_err(&failed)?;
        let mut counted = Vec::with_capacity(facets.len());
        for facet in facets {
            let values: Vec<(Option<Vec<u8>>, i64)> =
                select_facet(facet, &filter).build_query_as().fetch_all(&mut *transaction).await.map_err(&failed)?;
            let shown = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
            let values = values.into_iter().map(|(value, n)| FacetValue { value: value.map(shown), count: count(n) });
            let values = values.collect();
            counted.push((facet, values));
        }
        Ok(Counted { total: count(total), facets: counted })
    }

    async fn receipt(&self, key: &ReceiptKey, since_us: i64) -> Result<Option<Receipt>, StoreError> {
        let _shown = shown("receipt");
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT request, answer FROM idempotency_keys WHERE caller = ? AND key = ? AND recorded_us >= ?",
        )
        .bind(&key.caller)
        .bind(&key.key)
        .bind(since_us)
        .fetch_optional(&self.readers)
        .await
        .map_err(self.failed("look for an earlier answer"))?;
        Ok(row.map(|(request, answer)| Receipt { request, answer }))
    }
}

impl SqliteStore {
    async fn page_by(
        &self,
        reader: &mut SqliteConnection,
        request: &PageRequest,
        few: Option<Start>,
    ) -> Result<Page, StoreError> {
        let PageRequest { sort, limit, vectors, .. } = *request;
        let failed = self.failed("list grains");
        let mut query = page_query(request, few);
        let mut rows = query.build().fetch(reader);
        let mut page = Page { grains: Vec::new(), vectors: HashMap::new(), next: None };
        let (mut n_bytes, mut last) = (0, None);
        while let Some(row) = rows.try_next().await.map_err(&failed)? {
            if page.grains.len() == limit as usize || n_bytes >= PAGE_BYTES {
                page.next = last.map(|last| position_of(&last, sort.key)).transpose().map_err(&failed)?;
                return Ok(page);
            }
            let numbered = self.grain_of(&row)?;
            let attributes: &str = row.try_get("attributes").map_err(&failed)?;
            n_bytes +=
                text_bytes(&numbered.grain) + attributes.len() + parsed_bytes_of_any_shape(attributes.as_bytes());
            if vectors == Vectors::Included {
                page.vectors.extend(vector_in(&row).map_err(&failed)?.map(|vector| (numbered.number, vector)));
            }
            page.grains.push(numbered);
            last = Some(row);
        }
        Ok(page)
    }
}

/// The most frequent values of a facet, and how many grains have each.
pub(super) fn select_facet(facet: Facet, filter: &Filter) -> QueryBuilder<Sqlite> {
    let of_all = *filter == Filter::default();
    let mut query = QueryBuilder::new("SELECT value, n FROM (");
    match facet {
        // The index of sources does not have the grains without one.
        Facet::Source if of_all => {
            query.push(
                "SELECT source AS value, count(*) AS n FROM grains WHERE source IS NOT NULL GROUP BY value UNION ALL \
                 SELECT NULL, (SELECT count(*) FROM grains) - (SELECT count(*) FROM grains WHERE source IS NOT NULL)",
            );
        }
        Facet::Tags if of_all => {
            query.push("SELECT tag AS value, count(*) AS n FROM grain_tags GROUP BY value");
        }
        Facet::Source => push_values(&mut query, "g.source", filter),
        Facet::Tags => {
            query.push("SELECT t.tag AS value, count(*) AS n FROM (SELECT g.number");
            filter::push_from(&mut query, filter);
            query.push(") AS found CROSS JOIN grain_tags AS t ON t.grain = found.number GROUP BY value");
        }
        Facet::Space => push_values(&mut query, SERVED_SPACE, filter),
    }
    query.push(") WHERE n > 0 ORDER BY n DESC, value LIMIT ").push_bind(MAX_FACET_VALUES);
    query
}

/// Appends the values of grains that meet a filter, and how many have each.
fn push_values(query: &mut QueryBuilder<Sqlite>, value: &str, filter: &Filter) {
    query.push(format!("SELECT {value} AS value, count(*) AS n"));
    filter::push_from_rows(query, filter);
    query.push(" GROUP BY value");
}

/// Bytes of all that is shown of a grain as a string. What an older version stored may be of any length.
fn text_bytes(grain: &Grain) -> usize {
    let Grain { id, content: Content { text, source, tags, .. }, raw_meta, created_at, updated_at, .. } = grain;
    let strings = [Some(text), source.as_ref(), raw_meta.as_ref(), Some(created_at), Some(updated_at)];
    id.as_str().len() + strings.into_iter().flatten().chain(tags).map(String::len).sum::<usize>()
}

/// The vector that a row has in [`VECTOR`].
fn vector_in(row: &SqliteRow) -> Result<Option<Vec<f32>>, sqlx::Error> {
    Ok(row.try_get::<Option<&[u8]>, _>("vector")?.map(vector_of))
}

/// Grains behind a place in an order.
#[derive(Clone, Copy)]
enum Behind {
    /// Those of the same time.
    AtOnce,
    /// Those of another time, or of any id.
    Further,
}

/// The grains of a page, and one more: it tells whether there is another page.
pub(super) fn page_query(request: &PageRequest, few: Option<Start>) -> QueryBuilder<Sqlite> {
    let PageRequest { filter, sort, after, limit, vectors } = request;
    let column = match sort.key {
        SortKey::Created => "g.created_us",
        SortKey::Updated => "g.updated_us",
        SortKey::Id => "g.id",
    };
    let plan = if few.is_some() { Plan::Check } else { Plan::InOrderOf(column) };
    // Compared as pairs, SQLite would read all grains of the time to come to the number.
    let parts: &[Behind] = match after {
        Some(Position::Time { .. }) => &[Behind::AtOnce, Behind::Further],
        Some(Position::Id(_)) | None => &[Behind::Further],
    };
    let mut query = QueryBuilder::default();
    for (at, part) in parts.iter().enumerate() {
        query.push(if at == 0 { "" } else { " UNION ALL " });
        push_select(&mut query, if *vectors == Vectors::Included { VECTOR } else { "" });
        query.push(" WHERE TRUE");
        // Before the filter: of two bounds of a column SQLite uses the first, and this is the nearer one.
        if let Some(after) = after {
            push_place(&mut query, after, *part, &plan.column(column), if sort.descending { "<" } else { ">" });
        }
        if few.is_some() {
            query.push(" AND g.number IN (SELECT g.number");
            filter::push_from_start(&mut query, filter, few);
            query.push(")");
        } else {
            filter::push(&mut query, filter, plan);
        }
    }
    let direction = if sort.descending { " DESC" } else { "" };
    query.push(format!(" ORDER BY {column}{direction}, g.number{direction} LIMIT ")).push_bind(i64::from(*limit) + 1);
    query
}

fn push_place(query: &mut QueryBuilder<Sqlite>, after: &Position, part: Behind, column: &str, operator: &str) {
    match (after, part) {
        (Position::Time { us, number }, Behind::AtOnce) => {
            query.push(format!(" AND {column} = ")).push_bind(*us);
            query.push(format!(" AND g.number {operator} ")).push_bind(*number);
        }
        (Position::Time { us, .. }, Behind::Further) => {
            query.push(format!(" AND {column} {operator} ")).push_bind(*us);
        }
        (Position::Id(id), _) => {
            query.push(format!(" AND {column} {operator} ")).push_bind(id.clone());
        }
    }
}

fn position_of(row: &SqliteRow, key: SortKey) -> Result<Position, sqlx::Error> {
    let time = |column: &str| Ok(Position::Time { us: row.try_get(column)?, number: row.try_get("number")? });
    match key {
        SortKey::Created => time("created_us"),
        SortKey::Updated => time("updated_us"),
        SortKey::Id => Ok(Position::Id(row.try_get("id")?)),
    }
}
