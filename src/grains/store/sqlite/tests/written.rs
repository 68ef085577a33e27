//! Grains written over what another has written meanwhile, and counted meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::domain::{
    Content, DeclaredSpace, Filter, GrainId, ModelName, OldVectors, Origin, Provenance, Reembedding, ReembeddingId,
    ReembeddingState, SpaceId,
};
use crate::grains::store::{
    AnchorStore, Applied, Atomicity, Batch, Change, Committed, DeleteStore, Expected, Facet, Makers, NewVector,
    Numbered, OnlyIf, ReadStore, ReembeddingStore, SearchStore, Staged, StagingStore, VectorStore, WriteStore,
};
use crate::models::ledger::Ledger;

fn change(id: &str, expected: Expected, text: &str) -> Change {
    Change {
        id: GrainId::stored(id.to_owned()),
        expected,
        content: Content { text: text.to_owned(), ..Content::default() },
        created_at: None,
        vector: None,
        staged: None,
    }
}

async fn commit(store: &SqliteStore, change: Change, makers: Makers) -> Committed {
    let batch = Batch { changes: vec![change], atomicity: Atomicity::Each, makers, receipt: None };
    store.write(batch, 1_700_000_000_000_000).await.expect("written")
}

/// Writes the text of the one grain, `g`. When something else is there than expected: in which version.
async fn write(store: &SqliteStore, expected: Expected, text: &str) -> Result<Numbered, Option<u64>> {
    let committed = commit(store, change("g", expected, text), Makers::default()).await;
    let Committed::Applied(mut applied) = committed else { panic!("not applied") };
    match applied.pop().expect("one change") {
        Applied::Written(written) => Ok(written.numbered),
        Applied::Stale(found) => Err(found),
    }
}

#[tokio::test]
async fn a_change_of_a_grain_that_was_deleted_and_made_anew_is_stale() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let old = write(&store, Expected::Absent, "old").await.expect("there is none");
    store.delete(Filter::default(), OnlyIf::Always).await.expect("deleted").expect("in any case");
    let new = write(&store, Expected::Absent, "new").await.expect("there is none");
    assert_eq!((old.grain.version, new.grain.version), (1, 1));

    let of_old = Expected::Version { number: old.number, version: 1 };
    assert_eq!(write(&store, of_old, "old, changed").await, Err(Some(1)));
    let found = store.grain(&new.grain.id).await.expect("read").expect("a grain");
    assert_eq!(found, new);

    let of_new = Expected::Version { number: new.number, version: 1 };
    let changed = write(&store, of_new, "new, changed").await.expect("as expected");
    assert_eq!((changed.number, changed.grain.version), (new.number, 2));
    assert_eq!(write(&store, of_new, "new, late").await, Err(Some(2)));
    store.close().await;
}

/// Two spaces that are known.
async fn spaces(store: &SqliteStore) -> [SpaceId; 2] {
    let spaces = ["one", "two"].map(|name| DeclaredSpace::new(name, 2).expect("a space"));
    for space in &spaces {
        store.declare_space(space).await.expect("declared");
    }
    spaces.map(|space| space.fingerprint().space())
}

fn vector_in(space: &SpaceId) -> NewVector {
    let provenance = Provenance {
        space: space.clone(),
        model: Some("tiny".to_owned()),
        dimensions: 2,
        origin: Origin::Computed,
        n_tokens: None,
        truncated: None,
    };
    NewVector { provenance, vector: vec![1.0, 0.0] }
}

#[tokio::test]
async fn nothing_is_written_with_a_model_whose_grains_are_in_another_space_by_now_or_that_was_deleted() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let [old, new] = spaces(&store).await;
    let model = ModelName::parse("tiny").expect("a name");
    let write = async |id: &str, space: &SpaceId, spaces: Vec<(ModelName, SpaceId)>| {
        let change = Change { vector: Some(vector_in(space)), ..change(id, Expected::Absent, "wheat") };
        let committed = commit(&store, change, Makers { active: None, spaces }).await;
        assert!(matches!(committed, Committed::Applied(_) | Committed::ModelMoved), "{committed:?}");
        matches!(committed, Committed::Applied(_))
    };
    let made_in = |space: &SpaceId| vec![(model.clone(), space.clone())];
    store.accept_space(&model, &old).await.expect("recorded");
    assert!(write("a", &old, made_in(&old)).await);

    store.accept_space(&model, &new).await.expect("recorded");
    assert!(!write("b", &old, made_in(&old)).await, "another space was accepted");
    assert!(write("b", &new, made_in(&new)).await);
    assert!(write("c", &old, Vec::new()).await, "no model made it");

    store.forget_registration(&model).await.expect("forgotten");
    assert!(!write("d", &new, made_in(&new)).await, "the model was deleted");
    assert_eq!(store.numbers(Filter::default(), 10).await.expect("read").len(), 3);
    store.close().await;
}

#[tokio::test]
async fn a_vector_that_replaces_another_of_the_same_text_takes_the_anchor_away() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let [space, other] = spaces(&store).await;
    let number = write(&store, Expected::Absent, "wheat").await.expect("there is none").number;
    // Puts a vector, and answers in which of the spaces there is an anchor then.
    let put = async |version: u64, space: &SpaceId, vector: Vec<f32>| {
        let vector = Some(NewVector { vector, ..vector_in(space) });
        let change = Change { vector, ..change("g", Expected::Version { number, version }, "wheat") };
        let committed = commit(&store, change, Makers::default()).await;
        assert!(matches!(committed, Committed::Applied(_)), "{committed:?}");
        let anchors = store.anchors().await.expect("read");
        anchors.into_iter().map(|anchor| anchor.space).collect::<Vec<_>>()
    };
    let copy = async || store.copy_to_anchors(&space, vec![number]).await.expect("copied");
    put(1, &space, vec![1.0, 0.0]).await;
    assert_eq!(copy().await.len(), 1);
    assert_eq!(put(2, &other, vec![1.0, 0.0]).await, std::slice::from_ref(&space), "of another space");
    assert!(put(3, &space, vec![0.0, 1.0]).await.is_empty());
    assert_eq!(copy().await.first().map(|anchor| anchor.vector.clone()), Some(vec![0.0, 1.0]));
    store.close().await;
}

fn job_into(space: &SpaceId) -> Reembedding {
    Reembedding {
        id: ReembeddingId::of("1"),
        model: ModelName::parse("tiny").expect("a name"),
        space: space.clone(),
        selection: Filter::default(),
        throttle: 1.0,
        state: ReembeddingState::Running,
        reason: None,
        done: 0,
        total: 0,
        previous_model: None,
        previous_order: None,
        old_vectors: OldVectors::Kept,
        created_us: 0,
        changed_us: 0,
        cut_over_us: None,
    }
}

#[tokio::test]
async fn a_vector_for_a_job_that_was_given_up_is_not_written_and_one_for_a_job_that_took_over_is() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let [served, target] = spaces(&store).await;
    let mut job = job_into(&target);
    let added = store.add_reembedding(job.clone(), None).await.expect("recorded");
    assert_eq!(added, Ok(()));
    // Whether the grain has a vector in the space of the job.
    let write = async |id: &str| {
        let staged = Staged { vector: vector_in(&target), selection: Arc::default() };
        let change =
            Change { vector: Some(vector_in(&served)), staged: Some(staged), ..change(id, Expected::Absent, "wheat") };
        let Committed::Applied(applied) = commit(&store, change, Makers::default()).await else {
            panic!("not applied")
        };
        let [Applied::Written(written)] = &applied[..] else { panic!("{applied:?}") };
        let stored = store.vector_in(written.numbered.number, &target).await.expect("read");
        assert_eq!(stored.is_some(), written.staged.is_some());
        stored.is_some()
    };
    for state in [ReembeddingState::Running, ReembeddingState::Paused] {
        job.state = state;
        store.record_reembedding(job.clone()).await.expect("recorded");
        assert!(write(state.as_str()).await, "it may go on");
    }
    for state in [ReembeddingState::Cancelled, ReembeddingState::Failed] {
        job.state = state;
        store.record_reembedding(job.clone()).await.expect("recorded");
        assert!(!write(state.as_str()).await, "nobody would purge it");
    }
    job.state = ReembeddingState::Completed;
    let order = vec![target.clone(), served.clone()];
    store.record_with_order(job, order).await.expect("recorded");
    assert!(write("completed").await, "its space serves");
    store.close().await;
}

#[tokio::test]
async fn a_vector_for_a_job_takes_the_place_of_none_of_the_same_text() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let [served, target] = spaces(&store).await;
    let added = store.add_reembedding(job_into(&target), None).await.expect("recorded");
    assert_eq!(added, Ok(()));
    let own = NewVector { vector: vec![0.0, 1.0], ..vector_in(&target) };
    commit(&store, Change { vector: Some(own), ..change("g", Expected::Absent, "wheat") }, Makers::default()).await;
    let number = store.numbers(Filter::default(), 1).await.expect("read")[0];
    // Whether the vector for the job was written, and what the grain has in its space then.
    let write = async |version: u64, text: &str| {
        let staged = Staged { vector: vector_in(&target), selection: Arc::default() };
        let expected = Expected::Version { number, version };
        let change = Change { vector: Some(vector_in(&served)), staged: Some(staged), ..change("g", expected, text) };
        let Committed::Applied(applied) = commit(&store, change, Makers::default()).await else {
            panic!("not applied")
        };
        let [Applied::Written(written)] = &applied[..] else { panic!("{applied:?}") };
        let stored = store.vector_in(number, &target).await.expect("read");
        (written.staged.is_some(), stored.map(|stored| stored.vector))
    };
    assert_eq!(write(1, "wheat").await, (false, Some(vec![0.0, 1.0])), "the caller's own");
    assert_eq!(write(2, "barley").await, (true, Some(vec![1.0, 0.0])), "of another text");
    store.close().await;
}

#[tokio::test]
async fn the_values_of_a_facet_make_the_total_while_grains_are_written() {
    let (_folder, path) = folder();
    let store = open(&path).await.expect("created");
    let is_written = AtomicBool::new(false);
    let write = async {
        for _ in 0..500 {
            sqlx::query(
                "INSERT INTO grains (id, text, created_at, updated_at, created_us, updated_us) \
                 VALUES (hex(randomblob(16)), '', '', '', 0, 0)",
            )
            .execute(&store.writer)
            .await
            .expect("written");
        }
        is_written.store(true, Ordering::Release);
    };
    let count = async {
        while !is_written.load(Ordering::Acquire) {
            let facets = vec![Facet::Space, Facet::Source];
            let counted = store.count(Filter::default(), facets).await.expect("counted");
            for (facet, values) in counted.facets {
                let sum: u64 = values.iter().map(|value| value.count).sum();
                assert_eq!(sum, counted.total, "{facet:?}");
            }
        }
    };
    tokio::join!(write, count);
    store.close().await;
}
