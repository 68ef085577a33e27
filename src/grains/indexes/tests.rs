//! What searches see while the indexes change.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::FutureExt;

use super::super::index::{IndexError, IndexOptions, SpaceIndex};
use super::super::store::{
    Atomicity, Batch, Change, Expected, Identity, Makers, NewVector, OpenOptions, SearchStore, SqliteStore, TextFate,
    VectorStore, WriteStore,
};
use super::making::{build, mark};
use super::{All, CHANGED_AT_ONCE, GrainChange, Indexes, OneIndex};
use crate::domain::{Content, DeclaredSpace, Filter, GrainId, Origin, Provenance, SpaceId};
use crate::models::Ledger;

const VECTOR: [f32; 2] = [1.0, 0.0];

fn vector_in(space: &SpaceId) -> NewVector {
    let provenance = Provenance {
        space: space.clone(),
        model: None,
        dimensions: 2,
        origin: Origin::Supplied,
        n_tokens: None,
        truncated: None,
    };
    NewVector { provenance, vector: VECTOR.to_vec() }
}

/// The numbers of the grains that a search finds in all spaces at one moment, and how many vectors are held then.
async fn look(indexes: &Indexes, at_most: usize) -> (Vec<i64>, usize) {
    let looked = indexes.look(move |moment| {
        let mut found = Vec::new();
        for space in moment.serving() {
            found.extend(moment.nearest(&space, &VECTOR, at_most)?);
        }
        let n_held: usize = moment.0.in_order.iter().filter_map(OneIndex::whole).map(SpaceIndex::len).sum();
        Ok((found.into_iter().map(|hit| hit.number).collect(), n_held))
    });
    looked.await.expect("no index is broken")
}

/// The indexes of a database that has none.
fn no_indexes(folder: &Path) -> Indexes {
    let identity = Identity { database: "one".to_owned(), epoch: "first".to_owned() };
    Indexes::of(All::default(), folder.to_owned(), identity)
}

#[tokio::test]
async fn a_space_takes_its_place_when_the_order_can_be_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("granary.db");
    let [first, second] = ["0123456789abcdef", "fedcba9876543210"].map(|id| SpaceId::parse(id).expect("a space"));
    let store = SqliteStore::open(OpenOptions::at(&path)).await.expect("a database");
    store.write_space_order(vec![first.clone(), second.clone()]).await.expect("written");
    store.close().await;
    let indexes = no_indexes(&folder.path().join("indexes"));
    indexes.learn(&store, [&first, &second]).await;
    for space in [&second, &first] {
        let change = GrainChange { number: 1, text: TextFate::Kept, vectors: vec![vector_in(space)] };
        indexes.apply(vec![change]).await;
    }
    assert_eq!(indexes.served(), Some(vec![(second.clone(), 1), (first.clone(), 0)]), "nobody knows better");

    let store = SqliteStore::open(OpenOptions::at(&path)).await.expect("a database");
    indexes.learn(&store, [&first]).await;
    assert_eq!(indexes.served(), Some(vec![(first, 1), (second, 0)]));
    store.close().await;
}

#[tokio::test]
async fn a_start_removes_the_files_of_spaces_without_vectors() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(OpenOptions::at(folder.path().join("granary.db"))).await.expect("a database");
    let emptied = SpaceId::parse("0123456789abcdef").expect("a space");
    store.write_space_order(vec![emptied]).await.expect("written");
    let files = folder.path().join("indexes");
    fs_err::create_dir(&files).expect("made");
    let of_unknown = ["fedcba9876543210.index", "fedcba9876543210.index.tmp", "fedcba9876543210.vectors"];
    for name in of_unknown.into_iter().chain(["0123456789abcdef.vectors", "notes.vectors"]) {
        fs_err::write(files.join(name), "vectors").expect("written");
    }
    Indexes::open(&store, files.clone()).await.expect("opened");
    let left = fs_err::read_dir(&files).expect("a folder").map(|file| file.expect("a file").file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["notes.vectors"], "what is no index's is not ours");
    store.close().await;
}

#[tokio::test]
async fn what_served_for_a_broken_index_does_so_no_more_after_the_next_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(OpenOptions::at(folder.path().join("granary.db"))).await.expect("a database");
    let spaces = ["one", "two"].map(|name| DeclaredSpace::new(name, 2).expect("a space"));
    for space in &spaces {
        store.declare_space(space).await.expect("declared");
    }
    let [vector, other] = spaces.map(|space| vector_in(&space.fingerprint().space()));
    let write = async |expected: Expected, vector: NewVector| {
        let change = Change {
            id: GrainId::parse("grain").expect("an id"),
            expected,
            content: Content { text: "wheat".to_owned(), ..Content::default() },
            created_at: None,
            vector: Some(vector),
            staged: None,
        };
        let makers = Makers::default();
        let batch = Batch { changes: vec![change], atomicity: Atomicity::AllOrNothing, makers, receipt: None };
        store.write(batch, 0).await.expect("written");
    };
    write(Expected::Absent, vector).await;
    let [number] = store.numbers(Filter::default(), 2).await.expect("read")[..] else { panic!("there is one grain") };
    write(Expected::Version { number, version: 1 }, other).await;

    let open = || Indexes::open(&store, folder.path().join("indexes"));
    let indexes = open().await.expect("opened");
    let served = indexes.served().expect("none is broken");
    let [(first, 1), (_, 0)] = &served[..] else { panic!("{served:?}") };
    indexes.note_unreadable(first, &IndexError::Dimensions { expected: 2, found: 3 }).await;
    indexes.apply(vec![GrainChange { number, text: TextFate::Kept, vectors: Vec::new() }]).await;
    assert_eq!(indexes.serving().len(), 2, "the broken one, and the other in its stead");
    indexes.save(&store).await;
    assert_eq!(open().await.expect("opened").served(), Some(served));
    store.close().await;
}

#[tokio::test]
async fn what_indexes_take_is_known_after_each_change_and_during_the_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let indexes = no_indexes(folder.path());
    assert_eq!(indexes.memory_bytes(), 0);
    let space = SpaceId::parse("0123456789abcdef").expect("a space");
    let vectors = vec![vector_in(&space)];
    indexes.apply(vec![GrainChange { number: 1, text: TextFate::New, vectors }]).await;
    let taken = indexes.memory_bytes();
    assert!(taken > 0);
    {
        let _held = indexes.all.write();
        assert_eq!(indexes.memory_bytes(), taken);
    }
    indexes.note_unreadable(&space, &IndexError::Dimensions { expected: 2, found: 3 }).await;
    assert_eq!(indexes.memory_bytes(), 0, "a broken one is not kept");
}

#[tokio::test]
async fn what_an_index_takes_that_is_made_again_counts_before_it_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(OpenOptions::at(folder.path().join("granary.db"))).await.expect("a database");
    let declared = DeclaredSpace::new("one", 2).expect("a space");
    store.declare_space(&declared).await.expect("declared");
    let space = declared.fingerprint().space();
    let change = Change {
        id: GrainId::parse("grain").expect("an id"),
        expected: Expected::Absent,
        content: Content { text: "wheat".to_owned(), ..Content::default() },
        created_at: None,
        vector: Some(vector_in(&space)),
        staged: None,
    };
    let makers = Makers::default();
    let batch = Batch { changes: vec![change], atomicity: Atomicity::AllOrNothing, makers, receipt: None };
    store.write(batch, 0).await.expect("written");

    let indexes = Indexes::open(&store, folder.path().join("indexes")).await.expect("opened");
    let taken = indexes.memory_bytes();
    let options = IndexOptions::new(folder.path().join("again"), 2, mark(&indexes.identity, &space));
    let again = build(&store, &space, options, &indexes.taken).await.expect("made");
    assert!(again.size().memory > 0);
    assert_eq!(indexes.memory_bytes(), taken + again.size().memory);

    indexes.note_unreadable(&space, &IndexError::Dimensions { expected: 2, found: 3 }).await;
    indexes.repair(&store).await;
    assert_eq!(indexes.memory_bytes(), again.size().memory, "it counts once");
    store.close().await;
}

#[tokio::test]
async fn who_searches_is_not_told_where_a_broken_index_lies() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("index");
    let space = SpaceId::parse("0123456789abcdef").expect("a space");
    let told = async |indexes: &Indexes| {
        let of = space.clone();
        let looked = indexes.look(move |moment| moment.nearest(&of, &VECTOR, 1)).await;
        looked.expect_err("it is broken").to_string()
    };
    let change = || GrainChange { number: 1, text: TextFate::New, vectors: vec![vector_in(&space)] };
    let indexes = no_indexes(&path);
    indexes.apply(vec![change()]).await;
    indexes.note_unreadable(&space, &IndexError::Damaged { path: path.clone(), slot: 0 }).await;
    let damaged = told(&indexes).await;
    assert!(damaged.contains("its disk loses data"), "{damaged}");

    fs_err::remove_dir_all(&path).expect("removed");
    fs_err::write(&path, "no folder").expect("written");
    let indexes = no_indexes(&path);
    indexes.apply(vec![change()]).await;
    let absent = told(&indexes).await;
    assert!(absent.contains("it was not possible to make the folder"), "{absent}");
    for told in [damaged, absent] {
        assert!(!told.contains(&*folder.path().to_string_lossy()), "{told}");
    }
}

#[tokio::test]
async fn a_panic_in_a_change_breaks_every_index() {
    let folder = tempfile::tempdir().expect("a folder");
    let indexes = no_indexes(folder.path());
    let vectors = ["0123456789abcdef", "fedcba9876543210"].map(|id| vector_in(&SpaceId::parse(id).expect("a space")));
    indexes.apply(vec![GrainChange { number: 1, text: TextFate::New, vectors: vectors.to_vec() }]).await;
    assert!(indexes.served().is_some());
    let change = indexes.change_each(&[1], |_, _| panic!("on purpose"));
    assert!(AssertUnwindSafe(change).catch_unwind().await.is_err());
    assert!(indexes.all.read().in_order.iter().all(|index| index.broken().is_some()), "the second was not told either");
}

#[tokio::test]
async fn a_search_finds_all_of_the_grains_that_are_changed_at_once_or_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let indexes = no_indexes(folder.path());
    let vectors = vec![vector_in(&SpaceId::parse("0123456789abcdef").expect("a space"))];
    let change = |number| GrainChange { number, text: TextFate::New, vectors: vectors.clone() };
    let mut write = pin!(indexes.apply((1..).take(CHANGED_AT_ONCE).map(change).collect()));
    let mut search = pin!(look(&indexes, CHANGED_AT_ONCE));
    {
        // Both begin, and wait for the same lock.
        let _held = indexes.all.write();
        assert!(write.as_mut().now_or_never().is_none() && search.as_mut().now_or_never().is_none());
    }
    let (found, _) = search.await;
    assert!([0, CHANGED_AT_ONCE].contains(&found.len()), "{} of {CHANGED_AT_ONCE}", found.len());
    write.await;
    assert_eq!(look(&indexes, CHANGED_AT_ONCE).await.0.len(), CHANGED_AT_ONCE);
}

#[tokio::test]
async fn a_search_waits_for_a_piece_of_what_a_space_forgets_and_finds_every_grain() {
    let folder = tempfile::tempdir().expect("a folder");
    let indexes = no_indexes(folder.path());
    let spaces = ["0123456789abcdef", "fedcba9876543210"].map(|id| SpaceId::parse(id).expect("a space"));
    let vectors = spaces.each_ref().map(vector_in);
    let numbers: Vec<i64> = (1..).take(8 * CHANGED_AT_ONCE).collect();
    let n_grains = numbers.len();
    let change = |number: &i64| GrainChange { number: *number, text: TextFate::New, vectors: vectors.to_vec() };

    // On a busy machine nobody may be let in between by chance.
    let mut has_looked_in_between = false;
    for _ in 0..20 {
        indexes.apply(numbers.iter().map(change).collect()).await;
        let mut removal = pin!(indexes.remove_from(&spaces[0], &numbers));
        while futures::poll!(removal.as_mut()).is_pending() {
            let (found, n_held) = look(&indexes, n_grains).await;
            assert_eq!(found.len(), n_grains, "{n_held} vectors are held");
            has_looked_in_between |= (n_grains + 1..2 * n_grains).contains(&n_held);
        }
        assert_eq!(indexes.served(), Some(vec![(spaces[0].clone(), 0), (spaces[1].clone(), n_grains as u64)]));
        if has_looked_in_between {
            return;
        }
    }
    panic!("the search waited for all of it");
}

#[tokio::test]
async fn a_search_waits_for_a_piece_of_a_removal_and_finds_all_of_the_grains_or_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let indexes = no_indexes(folder.path());
    // The second space holds every grain too, and serves none.
    let vectors = ["0123456789abcdef", "fedcba9876543210"].map(|id| vector_in(&SpaceId::parse(id).expect("a space")));
    let numbers: Vec<i64> = (1..).take(8 * CHANGED_AT_ONCE + 1).collect();
    let n_grains = numbers.len();
    let change = |number: &i64| GrainChange { number: *number, text: TextFate::New, vectors: vectors.to_vec() };
    indexes.apply(numbers.iter().map(change).collect()).await;
    let (kept, gone) = numbers.split_last().expect("some");

    let mut removal = pin!(indexes.remove(gone));
    let mut has_looked_in_between = false;
    while futures::poll!(removal.as_mut()).is_pending() {
        let (found, n_held) = look(&indexes, n_grains).await;
        assert!(found == [*kept] || (found.len(), n_held) == (n_grains, 2 * n_grains), "{} of {n_held}", found.len());
        has_looked_in_between |= (3..2 * n_grains).contains(&n_held);
    }
    assert!(has_looked_in_between, "the search waited for all of it");
    assert_eq!(look(&indexes, n_grains).await, (vec![*kept], 2));
}

#[tokio::test]
async fn who_glances_does_not_wait_behind_a_change_that_waits_for_a_long_look() {
    let folder = tempfile::tempdir().expect("a folder");
    let indexes = Arc::new(no_indexes(folder.path()));
    let space = SpaceId::parse("0123456789abcdef").expect("a space");
    indexes.apply(vec![GrainChange { number: 1, text: TextFate::New, vectors: vec![vector_in(&space)] }]).await;
    let (ended, end) = mpsc::channel::<()>();
    let (start, has_begun) = mpsc::channel();
    let looking = indexes.look(move |_| {
        start.send(()).expect("awaited");
        Ok(end.recv())
    });
    let mut looking = pin!(looking);
    assert!(futures::poll!(looking.as_mut()).is_pending());
    has_begun.recv().expect("the look begins");
    let order = [space.clone()];
    let mut change = pin!(indexes.reorder(&order));
    assert!(futures::poll!(change.as_mut()).is_pending(), "it does not wait on this thread");
    while indexes.all.try_read().is_some() {
        std::thread::yield_now();
    }

    let (answered, answer) = mpsc::channel();
    let glancing = Arc::clone(&indexes);
    let glances = std::thread::spawn(move || {
        glancing.measure();
        answered.send((glancing.serving(), glancing.n_moves(), glancing.has_broken())).expect("awaited");
    });
    let answer = answer.recv_timeout(Duration::from_secs(10));
    drop(ended);
    assert_eq!(answer, Ok((vec![space], 0, false)));
    glances.join().expect("no panic");
    change.await;
    assert!(looking.await.is_ok_and(|ended| ended.is_err()));
}
