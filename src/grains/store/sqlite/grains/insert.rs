//! New grains and vectors, many in one statement.
//!
//! The table of words writes what it has gathered at the end of each statement: 64 grains in one statement take a quarter
//! of the time of as many statements, and more save little.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::super::super::grain_store::{Change, NewVector, Numbered};
use super::rows::bytes_of;
use super::write::stored_time;
use super::{index_of_words, json_text};
use crate::domain::Grain;

/// Rows of one statement.
pub(super) const ROWS: usize = 64;

/// A vector of the grain with this number, of this version of its text.
struct NewEmbedding<'a> {
    number: i64,
    text_version: i64,
    vector: &'a NewVector,
}

/// Writes new grains with their vectors, in this order. What is stored is what is answered, so nothing need be read back.
pub(super) async fn insert(
    transaction: &mut Transaction<'_, Sqlite>,
    changes: Vec<Change>,
    now_us: i64,
) -> Result<Vec<Numbered>, sqlx::Error> {
    let now = stored_time(now_us);
    let mut numbers = HashMap::with_capacity(changes.len());
    for changes in changes.chunks(ROWS) {
        let mut query = QueryBuilder::new(
            "INSERT INTO grains (id, text, source, tags, attributes, created_at, updated_at, created_us, updated_us) ",
        );
        query.push_values(changes, |mut row, Change { id, content, created_at, .. }| {
            let created = created_at.as_ref().map_or((now.as_str(), now_us), |time| (time.as_str(), time.us()));
            row.push_bind(id.as_str()).push_bind(&content.text).push_bind(&content.source);
            row.push_bind(json_text(&content.tags)).push_bind(json_text(&content.attributes));
            row.push_bind(created.0).push_bind(&now).push_bind(created.1).push_bind(now_us);
        });
        query.push(" RETURNING id, number");
        let is_usual = is_usual(changes.len());
        let rows: Vec<(String, i64)> =
            query.build_query_as().persistent(is_usual).fetch_all(&mut **transaction).await?;
        numbers.extend(rows);
        let texts = changes.iter().map(|change| Ok((number_of(&numbers, change)?, change.content.text.clone())));
        index_of_words::put(transaction, texts.collect::<Result<_, sqlx::Error>>()?).await?;
    }
    let mut vectors = Vec::new();
    for change in &changes {
        if let Some(vector) = &change.vector {
            vectors.push(NewEmbedding { number: number_of(&numbers, change)?, text_version: 1, vector });
        }
    }
    put_vectors(transaction, &vectors).await?;
    let numbered = |change: Change| {
        let number = number_of(&numbers, &change)?;
        let Change { id, content, created_at, vector, .. } = change;
        let grain = Grain {
            id,
            content,
            raw_meta: None,
            provenance: vector.map(|vector| vector.provenance),
            unproven: None,
            version: 1,
            created_at: created_at.map_or_else(|| now.clone(), |time| time.as_str().to_owned()),
            updated_at: now.clone(),
        };
        Ok(Numbered { number, grain })
    };
    changes.into_iter().map(numbered).collect()
}

fn number_of(numbers: &HashMap<String, i64>, change: &Change) -> Result<i64, sqlx::Error> {
    numbers.get(change.id.as_str()).copied().ok_or(sqlx::Error::RowNotFound)
}

/// Writes a vector of a version of a grain's text, in place of the grain's former one in its space.
pub(super) async fn put_vector(
    transaction: &mut Transaction<'_, Sqlite>,
    vector: &NewVector,
    number: i64,
    text_version: i64,
) -> Result<(), sqlx::Error> {
    put_vectors(transaction, &[NewEmbedding { number, text_version, vector }]).await
}

/// As [`put_vector`], unless the grain has another text by now or a vector of this one in the space. Answers whether it
/// was written.
pub(super) async fn put_unless_late(
    transaction: &mut Transaction<'_, Sqlite>,
    vector: &NewVector,
    number: i64,
    text_version: i64,
) -> Result<bool, sqlx::Error> {
    let is_wanted: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM grains AS g WHERE g.number = ? AND g.text_version = ? AND NOT EXISTS \
         (SELECT 1 FROM embeddings AS e WHERE e.grain = g.number AND e.space = ? AND e.text_version = g.text_version)",
    )
    .bind(number)
    .bind(text_version)
    .bind(vector.provenance.space.as_str())
    .fetch_optional(&mut **transaction)
    .await?;
    if is_wanted.is_some() {
        put_vector(transaction, vector, number, text_version).await?;
    }
    Ok(is_wanted.is_some())
}

async fn put_vectors(
    transaction: &mut Transaction<'_, Sqlite>,
    vectors: &[NewEmbedding<'_>],
) -> Result<(), sqlx::Error> {
    for vectors in vectors.chunks(ROWS) {
        let mut query = QueryBuilder::new(
            "INSERT INTO embeddings (grain, space, vector, text_version, origin, model, tokens, truncated) ",
        );
        query.push_values(vectors, |mut row, NewEmbedding { number, text_version, vector }| {
            let NewVector { provenance, vector } = vector;
            row.push_bind(number).push_bind(provenance.space.to_string()).push_bind(bytes_of(vector));
            row.push_bind(text_version).push_bind(provenance.origin.as_str()).push_bind(&provenance.model);
            row.push_bind(provenance.n_tokens).push_bind(provenance.truncated);
        });
        query.push(
            " ON CONFLICT (grain, space) DO UPDATE SET vector = excluded.vector, \
             text_version = excluded.text_version, origin = excluded.origin, model = excluded.model, \
             tokens = excluded.tokens, truncated = excluded.truncated",
        );
        query.build().persistent(is_usual(vectors.len())).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Whether statements of so many rows come often: others are not worth a place among those that are kept prepared.
pub(super) fn is_usual(n_rows: usize) -> bool {
    n_rows == 1 || n_rows == ROWS
}
