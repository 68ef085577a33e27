//! Files that are only looked at: what they are is known, and the folder stays as it was.

use super::super::{FileState, latest_version};
use super::*;
use crate::domain::ModelName;
use crate::models::Ledger;

async fn state_of(path: &Path) -> Result<FileState, StoreError> {
    let folder = path.parent().expect("a folder");
    let before = files_in(folder);
    let state = FileState::of(path).await;
    assert!(files_in(folder) == before, "the folder is as it was");
    state
}

#[tokio::test]
async fn every_state_of_a_file_is_told_without_changing_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("granary.db");
    assert_eq!(state_of(&path).await.expect("no file"), FileState::Absent);
    fs_err::write(&path, "").expect("written");
    assert_eq!(state_of(&path).await.expect("an empty file"), FileState::Blank);
    fs_err::remove_file(&path).expect("removed");

    let latest = latest_version();
    let known = |version, active_model: Option<&str>| FileState::Known {
        version,
        latest,
        active_model: active_model.map(str::to_owned),
        disabled_models: Vec::new(),
        contents: None,
    };
    write_v1(&path, &old_grains()).await;
    assert_eq!(state_of(&path).await.expect("an old file"), known(1, None));

    let store = open(&path).await.expect("opened");
    let in_use = FileState::of(&path).await.expect("a file in use");
    assert!(matches!(&in_use, FileState::InUse { holder } if holder.starts_with("process ")), "{in_use:?}");
    store.record_active_model(&ModelName::parse("tiny").expect("a name")).await.expect("recorded");
    store.close().await;
    // The lock file, which was there before, is signed by whoever looked last.
    let FileState::Known { version, active_model, contents, .. } = FileState::of(&path).await.expect("a database")
    else {
        panic!("it is known");
    };
    assert_eq!((version, active_model.as_deref()), (latest, Some("tiny")));
    let contents = contents.expect("a database of this version");
    assert_eq!((contents.n_grains, &contents.spaces[..], &contents.faults[..]), (50, &[][..], &[][..]));

    let damage = "PRAGMA foreign_keys = OFF; INSERT INTO embeddings (grain, space, vector, text_version, origin) \
                  VALUES (999, '0123456789abcdef', x'00', 1, 'supplied'); DELETE FROM grain_words WHERE rowid < 3";
    write_file(&path, damage).await;
    let FileState::Known { contents: Some(contents), .. } = FileState::of(&path).await.expect("a database") else {
        panic!("it is known");
    };
    assert_eq!(
        contents.faults,
        ["1 vectors belong to no grain", "1 vectors are in no known space", "2 grains are not in the index of words"]
    );
}

#[tokio::test]
async fn what_would_not_be_opened_is_refused_here_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let foreign = folder.path().join("other.db");
    write_file(&foreign, "CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url TEXT)").await;
    assert!(matches!(state_of(&foreign).await, Err(StoreError::Foreign { .. })));
    assert!(matches!(FileState::of(folder.path()).await, Err(StoreError::Foreign { .. })));
}
