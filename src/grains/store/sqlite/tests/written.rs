//! Grains written over what another has written meanwhile.

use super::*;
use crate::domain::{Content, Filter, GrainId};
use crate::grains::store::{Applied, Atomicity, Batch, Change, Committed, Expected, GrainStore, Numbered, OnlyIf};

/// Writes the text of the one grain, `g`. When something else is there than expected: in which version.
async fn write(store: &SqliteStore, expected: Expected, text: &str) -> Result<Numbered, Option<u64>> {
    let change = Change {
        id: GrainId::stored("g".to_owned()),
        expected,
        content: Content { text: text.to_owned(), ..Content::default() },
        created_at: None,
        vector: None,
        staged: None,
    };
    let batch = Batch { changes: vec![change], atomicity: Atomicity::Each, while_active: None, receipt: None };
    let Committed::Applied(mut applied) = store.write(batch, 1_700_000_000_000_000).await.expect("written") else {
        panic!("not applied")
    };
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
