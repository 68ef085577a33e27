//! What is asked of all grains at once reads neither texts nor vectors.

use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite};

use super::super::super::grain_store::Facet;
use super::super::super::reembedding_store::Lacking;
use super::super::ledger::{select_made, select_served_by_maker};
use super::super::{OpenOptions, SqliteStore};
use super::read::select_facet;
use super::reembed::select_count_of_withheld_beyond;
use super::reembeddings::{select_count_of_lacking, select_lacking};
use super::vectors::select_served;
use crate::domain::{Filter, ReembeddingId, SpaceCondition, SpaceId};

/// What SQLite says of each table that a statement reads.
async fn reads(store: &SqliteStore, query: &QueryBuilder<Sqlite>) -> Vec<String> {
    let plan = format!("EXPLAIN QUERY PLAN {}", query.sql().as_str());
    let rows = sqlx::raw_sql(AssertSqlSafe(plan)).fetch_all(&store.readers).await.expect("a plan");
    let details = rows.iter().map(|row| row.get::<String, _>("detail"));
    details.filter(|detail| detail.starts_with("SCAN") || detail.starts_with("SEARCH")).collect()
}

#[tokio::test]
async fn what_is_asked_of_all_grains_reads_neither_texts_nor_vectors() {
    const TABLES: [&str; 5] = ["g", "e", "served", "embeddings", "grains"];
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(OpenOptions::at(folder.path().join("granary.db"))).await.expect("created");
    let space = SpaceId::parse("0123456789abcdef").expect("a space");
    let lacking = Lacking {
        space: space.clone(),
        filter: Filter::default(),
        unless_failed_in: Some(ReembeddingId::of("job")),
        among: None,
    };
    let from_space = Filter { space: Some(SpaceCondition::Is(space.clone())), ..Filter::default() };
    for query in [
        select_count_of_lacking(&lacking),
        select_lacking(&lacking, 0, 64),
        select_count_of_withheld_beyond(&space, &from_space),
        select_facet(Facet::Source, &Filter::default()),
        select_facet(Facet::Space, &Filter::default()),
        select_facet(Facet::Space, &from_space),
        select_served(),
        select_made(),
        select_served_by_maker(),
    ] {
        let reads = reads(&store, &query).await;
        let of_tables: Vec<&String> =
            reads.iter().filter(|read| read.split(' ').nth(1).is_some_and(|table| TABLES.contains(&table))).collect();
        assert!(!of_tables.is_empty(), "{reads:?}");
        for read in of_tables {
            assert!(read.contains("USING COVERING INDEX"), "{read}, in {reads:?}, of {}", query.sql().as_str());
        }
    }
    store.close().await;
}
