//! How a grain is read: the columns, and what they become.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::super::super::StoreError;
use super::super::super::grain_store::Numbered;
use super::super::SqliteStore;
use super::filter::SERVED;
use crate::domain::{Content, Grain, GrainId, Origin, Provenance, SpaceId, Unproven};
use crate::json::AnyObject;

/// `SELECT` of everything that [`SqliteStore::grain_of`] reads, with the grain as `g` and its vector as `e`.
pub(super) fn select_grains() -> QueryBuilder<Sqlite> {
    select_grains_and("")
}

/// As [`select_grains`], with these columns behind the others, each after a comma.
pub(super) fn select_grains_and(columns: &'static str) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::default();
    push_select(&mut query, columns);
    query
}

/// Appends what [`select_grains_and`] begins with.
pub(super) fn push_select(query: &mut QueryBuilder<Sqlite>, columns: &'static str) {
    query.push(
        "SELECT g.number, g.id, g.text, g.source, g.tags, g.attributes, g.version, g.created_at, g.updated_at, \
         g.created_us, g.updated_us, \
         CASE WHEN json_valid(g.old_meta) AND json_type(g.old_meta) = 'object' THEN NULL ELSE g.old_meta END AS raw_meta, \
         g.old_meta, g.old_vector IS NOT NULL AS is_unproven, g.old_model, g.old_dimensions, \
         e.space, e.model, e.origin, e.tokens, e.truncated, length(e.vector) / 4 AS dimensions",
    );
    query.push(columns).push(" FROM grains AS g LEFT JOIN embeddings AS e ON e.rowid = ").push(SERVED);
}

impl SqliteStore {
    pub(super) fn grain_of(&self, row: &SqliteRow) -> Result<Numbered, StoreError> {
        let sql = self.failed("read a grain");
        let text = |column: &str| row.try_get::<String, _>(column);
        let optional_text = |column: &str| row.try_get::<Option<String>, _>(column);
        let attributes = text("attributes").map_err(&sql)?;
        // Versions before 0.4 took numbers that no JSON reader has room for, and every name: then the document is shown
        // as it is.
        let parsed = serde_json::from_str(&attributes).ok().map(|AnyObject(members)| members);
        // They took half of a surrogate pair, too: tags still have it escaped, and `source` as bytes that are no UTF-8.
        let source: Option<Vec<u8>> = row.try_get("source").map_err(&sql)?;
        let source = source.map(String::from_utf8).transpose();
        let tags: Result<Vec<String>, _> = serde_json::from_str(&text("tags").map_err(&sql)?);
        let is_read = source.is_ok() && tags.is_ok();
        let raw_meta = optional_text(if is_read { "raw_meta" } else { "old_meta" }).map_err(&sql)?;
        let tags = match tags {
            Ok(tags) => tags,
            Err(_) if raw_meta.is_some() => Vec::new(),
            Err(error) => return Err(self.malformed("tags (table `grains`)", error.into())),
        };
        let raw_meta = raw_meta.or_else(|| parsed.is_none().then(|| attributes.clone()));
        let content = Content {
            text: text("text").map_err(&sql)?,
            source: source.unwrap_or_default(),
            tags,
            attributes: parsed.unwrap_or_default(),
        };
        let is_unproven = row.try_get("is_unproven").map_err(&sql)?;
        let unproven = || -> Result<Unproven, sqlx::Error> {
            Ok(Unproven { model: row.try_get("old_model")?, dimensions: row.try_get("old_dimensions")? })
        };
        let grain = Grain {
            id: GrainId::stored(text("id").map_err(&sql)?),
            content,
            raw_meta,
            provenance: self.provenance_of(row)?,
            unproven: if is_unproven { Some(unproven().map_err(&sql)?) } else { None },
            version: super::count(row.try_get("version").map_err(&sql)?),
            created_at: text("created_at").map_err(&sql)?,
            updated_at: text("updated_at").map_err(&sql)?,
        };
        Ok(Numbered { number: row.try_get("number").map_err(&sql)?, grain })
    }

    pub(super) fn provenance_of(&self, row: &SqliteRow) -> Result<Option<Provenance>, StoreError> {
        let sql = self.failed("read what made a vector");
        let Some(space) = row.try_get::<Option<String>, _>("space").map_err(&sql)? else { return Ok(None) };
        let origin: String = row.try_get("origin").map_err(&sql)?;
        Ok(Some(Provenance {
            space: self.space_id(&space)?,
            model: row.try_get("model").map_err(&sql)?,
            dimensions: row.try_get("dimensions").map_err(&sql)?,
            origin: Origin::parse(&origin)
                .ok_or_else(|| self.malformed("an origin (table `embeddings`)", "it is none of three words".into()))?,
            n_tokens: row.try_get("tokens").map_err(&sql)?,
            truncated: row.try_get("truncated").map_err(&sql)?,
        }))
    }

    pub(super) fn space_id(&self, text: &str) -> Result<SpaceId, StoreError> {
        SpaceId::parse(text).map_err(|source| self.malformed("a space (table `embeddings`)", source.into()))
    }
}

/// A vector as its little-endian bytes.
pub(in super::super) fn bytes_of(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// What [`bytes_of`] wrote.
pub(in super::super) fn vector_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
