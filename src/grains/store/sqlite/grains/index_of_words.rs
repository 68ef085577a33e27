//! Words of texts, as the full text has them.

use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection, Transaction};

use super::count;
use super::insert::{ROWS, is_usual};
use crate::grains::words::{rules, words};
use crate::shutdown::blocking;

/// Bytes of texts that are cut at once, but for a longer one: their words take several times as much memory.
const BYTES_AT_ONCE: usize = 4 << 20;

/// Puts the words of texts into the index, in place of those that grains of these numbers have there.
pub(super) async fn put(
    transaction: &mut Transaction<'_, Sqlite>,
    texts: Vec<(i64, String)>,
) -> Result<(), sqlx::Error> {
    let mut texts = texts.into_iter().peekable();
    while texts.peek().is_some() {
        let (mut some, mut n_bytes) = (Vec::new(), 0);
        while let Some((number, text)) =
            texts.next_if(|(_, text)| some.is_empty() || some.len() < ROWS && n_bytes + text.len() <= BYTES_AT_ONCE)
        {
            n_bytes += text.len();
            some.push((number, text));
        }
        // Texts may be long, and nobody else should wait for that.
        let cut = |(number, text): (i64, String)| (number, terms(&text));
        let terms: Vec<(i64, String)> = blocking(move || some.into_iter().map(cut).collect()).await;
        let mut query = QueryBuilder::new("INSERT OR REPLACE INTO grain_words (rowid, terms) ");
        query.push_values(&terms, |mut row, (number, terms)| {
            row.push_bind(number).push_bind(terms);
        });
        query.build().persistent(is_usual(terms.len())).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// The words of a text, with a space after each.
fn terms(text: &str) -> String {
    let mut terms = String::with_capacity(text.len());
    for word in words(text) {
        terms.push_str(&word.term);
        terms.push(' ');
    }
    terms
}

/// Makes the index anew, if its words were cut by other rules than those of this build, in one transaction.
pub(in super::super) async fn bring_up_to_date(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let known: i64 = sqlx::query_scalar("SELECT version FROM word_rules").fetch_one(&mut *connection).await?;
    if known == rules() {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let n_grains: i64 = sqlx::query_scalar("SELECT count(*) FROM grains").fetch_one(&mut *transaction).await?;
    if n_grains > 0 {
        tracing::info!(grains = count(n_grains), "making the index of words anew");
    }
    let mut last = i64::MIN;
    while let Some(to) = next_to(&mut transaction, last).await? {
        let rows = sqlx::query("SELECT number, text FROM grains WHERE number > ? AND number <= ?")
            .bind(last)
            .bind(to)
            .fetch_all(&mut *transaction)
            .await?;
        put(&mut transaction, rows.iter().map(text_of).collect::<Result<_, _>>()?).await?;
        last = to;
    }
    sqlx::query("UPDATE word_rules SET version = ?").bind(rules()).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Up to which number texts are cut at once, of those behind another. `None` when there are no more.
async fn next_to(transaction: &mut Transaction<'_, Sqlite>, last: i64) -> Result<Option<i64>, sqlx::Error> {
    let sizes: Vec<(i64, i64)> =
        sqlx::query_as("SELECT number, octet_length(text) FROM grains WHERE number > ? ORDER BY number LIMIT ?")
            .bind(last)
            .bind(i64::try_from(ROWS).unwrap_or(i64::MAX))
            .fetch_all(&mut **transaction)
            .await?;
    let mut n_bytes = 0;
    let fit = sizes.iter().take_while(|(_, size)| {
        n_bytes += count(*size);
        n_bytes <= BYTES_AT_ONCE as u64
    });
    Ok(fit.last().or(sizes.first()).map(|(number, _)| *number))
}

/// The number and the text of a grain. Version 0.3 took what is no UTF-8, too.
fn text_of(row: &SqliteRow) -> Result<(i64, String), sqlx::Error> {
    let bytes = || row.try_get::<Vec<u8>, _>(1).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((row.try_get(0)?, row.try_get(1).or_else(|_| bytes())?))
}
