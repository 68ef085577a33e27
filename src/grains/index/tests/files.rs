//! What is loaded, and what is not.

use std::path::Path;

use super::{Random, brute_force, index_of, numbers, options};
use crate::domain::space::SpaceId;
use crate::grains::index::{IndexError, IndexOptions, NotLoaded, Serving, SpaceIndex};

const DIMENSIONS: usize = 24;

/// Saves an index of 60 grains, in one form or the other.
fn saved(folder: &Path, quantise_above: usize) -> IndexOptions {
    let options = options(folder, DIMENSIONS, quantise_above);
    index_of(&Random(7).clusters(60, 5, DIMENSIONS), options.clone()).save().expect("saved");
    options
}

fn why_not(options: IndexOptions) -> NotLoaded {
    SpaceIndex::load(options).expect_err("it must not be loaded")
}

#[test]
fn a_saved_index_comes_back_the_same() {
    for quantise_above in [10, 100] {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path(), DIMENSIONS, quantise_above);
        let vectors = Random(7).clusters(60, 5, DIMENSIONS);
        let mut index = index_of(&vectors, options.clone());
        index.set_serving(3, Serving::Withheld).expect("withheld");
        index.remove(9).expect("removed");
        index.save().expect("saved");
        let loaded = SpaceIndex::load(options).expect("loaded");
        assert_eq!((loaded.len(), loaded.n_served()), (59, 58));
        for vector in &vectors {
            assert_eq!(loaded.nearest(vector, 60).expect("searched"), index.nearest(vector, 60).expect("searched"));
        }
    }
}

#[test]
fn an_index_that_has_become_small_is_exact_when_it_is_loaded_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path(), DIMENSIONS, 30);
    let vectors = Random(7).clusters(60, 5, DIMENSIONS);
    let mut index = index_of(&vectors, options.clone());
    let mut removed = 1..;
    for n_left in [31, 30] {
        while index.len() > n_left {
            index.remove(removed.next().expect("no end")).expect("removed");
        }
        assert!(index.size().disk > 0, "it keeps its codes as long as it is not loaded again");
        index.save().expect("saved");
        index = SpaceIndex::load(options.clone()).expect("loaded");
        assert_eq!((index.len(), index.size().disk > 0), (n_left, n_left > 30));
        let left = || (1..).zip(&vectors).skip(60 - n_left);
        for vector in &vectors {
            let nearest = index.nearest(vector, 10).expect("searched");
            assert_eq!(numbers(&nearest), brute_force(vector, left(), 10));
        }
    }
    // Nothing was changed, and the files go on being good.
    index.save().expect("saved");
    index = SpaceIndex::load(options.clone()).expect("loaded");
    index.put(61, &vectors[0], Serving::Served).expect("put");
    assert!(index.size().disk > 0, "it goes over to codes again");
    index.save().expect("saved");
    assert_eq!(SpaceIndex::load(options).expect("loaded").len(), 31);
}

#[test]
fn on_a_full_disk_every_vector_is_found_and_nothing_is_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path(), DIMENSIONS, 10);
    let vectors = Random(7).clusters(60, 5, DIMENSIONS);
    let mut index = SpaceIndex::create(options.clone()).expect("created");
    let path = folder.path().join(format!("{}.vectors", options.identity.space));
    std::os::unix::fs::symlink("/dev/full", path).expect("linked");
    for (vector, number) in vectors.iter().zip(1..) {
        index.put(number, vector, Serving::Served).expect("it is committed, and must be found");
    }
    index.remove(9).expect("removed");
    for (vector, number) in vectors.iter().zip(1..).filter(|(_, number)| *number != 9) {
        assert_eq!(index.nearest(vector, 1).expect("searched")[0].number, number);
    }
    assert!(matches!(index.save(), Err(IndexError::DiskFull { .. })));
}

#[test]
fn what_a_full_disk_has_no_room_for_is_compared_until_there_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path(), DIMENSIONS, 100);
    let vectors = Random(7).clusters(250, 5, DIMENSIONS);
    let put = |index: &mut SpaceIndex, number: usize| {
        let vector = &vectors[number];
        index.put(i64::try_from(number).expect("small"), vector, Serving::Served)
    };
    let mut index = SpaceIndex::create(options.clone()).expect("created");
    let path = folder.path().join(format!("{}.vectors", options.identity.space));
    std::os::unix::fs::symlink("/dev/full", &path).expect("linked");
    for number in 0..150 {
        put(&mut index, number).expect("it is committed, and must be found");
    }
    assert_eq!(index.size().disk, 0);
    assert!(matches!(index.save(), Err(IndexError::DiskFull { .. })));

    fs_err::remove_file(&path).expect("removed");
    for number in 150..160 {
        put(&mut index, number).expect("there is room");
    }
    assert!(index.size().disk > 0, "it goes over to codes");
    for (vector, number) in vectors[..160].iter().zip(0..) {
        assert_eq!(index.nearest(vector, 1).expect("searched")[0].number, number);
    }
    index.save().expect("saved");

    // What waits for room does not grow for ever.
    let mut index = SpaceIndex::create(options).expect("created");
    std::os::unix::fs::symlink("/dev/full", &path).expect("linked");
    let n_put = (0..250).take_while(|number| put(&mut index, *number).is_ok()).count();
    assert!((151..250).contains(&n_put), "{n_put}");
}

#[test]
fn files_of_another_database_state_or_space_are_stale() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = saved(folder.path(), 10);
    let changes: [fn(&mut IndexOptions); 3] = [
        |o| o.identity.database = "another".to_owned(),
        |o| o.identity.epoch = "second".to_owned(),
        |o| o.dimensions = 16,
    ];
    for change in changes {
        let mut other = options.clone();
        change(&mut other);
        assert!(matches!(why_not(other), NotLoaded::Stale { .. }));
    }
    let mut other = options.clone();
    other.identity.space = SpaceId::parse("fedcba9876543210").expect("16 digits");
    assert!(matches!(why_not(other.clone()), NotLoaded::Absent));
    for ending in ["index", "vectors"] {
        let name = |space: &SpaceId| folder.path().join(format!("{space}.{ending}"));
        fs_err::copy(name(&options.identity.space), name(&other.identity.space)).expect("copied");
    }
    assert!(matches!(why_not(other), NotLoaded::Stale { .. }), "a renamed file is not trusted");
    SpaceIndex::load(options).expect("the right one is loaded all the same");
}

#[test]
fn one_changed_byte_anywhere_is_found() {
    for quantise_above in [10, 100] {
        let folder = tempfile::tempdir().expect("a folder");
        let options = saved(folder.path(), quantise_above);
        for ending in ["index", "vectors"] {
            let path = folder.path().join(format!("{}.{ending}", options.identity.space));
            let whole = fs_err::read(&path).expect("read");
            for at in (0..whole.len()).step_by(37).chain([0, 17, whole.len() - 1]) {
                let mut changed = whole.clone();
                changed[at] ^= 0x10;
                fs_err::write(&path, changed).expect("written");
                let reason = why_not(options.clone());
                assert!(matches!(reason, NotLoaded::Damaged { .. }), "byte {at} of {ending}: {reason}");
            }
            fs_err::write(&path, whole).expect("written");
        }
        SpaceIndex::load(options).expect("whole again");
    }
}

#[test]
fn a_file_that_is_cut_off_or_missing_is_found() {
    for quantise_above in [10, 100] {
        let folder = tempfile::tempdir().expect("a folder");
        let options = saved(folder.path(), quantise_above);
        for ending in ["index", "vectors"] {
            let path = folder.path().join(format!("{}.{ending}", options.identity.space));
            let whole = fs_err::read(&path).expect("read");
            for len in [0, 1, 3, 4, 5, 100, whole.len() / 2, whole.len() - 1] {
                fs_err::write(&path, &whole[..len]).expect("written");
                let reason = why_not(options.clone());
                assert!(matches!(reason, NotLoaded::Damaged { .. }), "{len} bytes of {ending}: {reason}");
            }
            fs_err::remove_file(&path).expect("removed");
            assert!(matches!(why_not(options.clone()), NotLoaded::Absent | NotLoaded::Damaged { .. }));
            fs_err::write(&path, whole).expect("written");
        }
        let index = SpaceIndex::create(options.clone()).expect("begun anew");
        assert!(index.is_empty());
        assert!(matches!(why_not(options), NotLoaded::Absent), "the old files are gone");
    }
}

#[test]
fn any_change_takes_the_files_away() {
    let changes: [fn(&mut SpaceIndex); 4] = [
        |index| index.put(99, &[0.2; DIMENSIONS], Serving::Served).expect("put"),
        |index| index.remove(4).expect("removed"),
        |index| index.set_serving(4, Serving::Withheld).expect("withheld"),
        |index| index.set_epoch("second".to_owned()).expect("renewed"),
    ];
    for quantise_above in [10, 100] {
        for change in changes {
            let folder = tempfile::tempdir().expect("a folder");
            let options = saved(folder.path(), quantise_above);
            let mut index = SpaceIndex::load(options.clone()).expect("loaded");
            change(&mut index);
            assert!(matches!(why_not(options.clone()), NotLoaded::Absent), "a killed process leaves nothing to trust");
            index.save().expect("saved");
            let mut renewed = options;
            renewed.identity = index.options.identity.clone();
            let loaded = SpaceIndex::load(renewed).expect("loaded");
            assert_eq!((loaded.len(), loaded.n_served()), (index.len(), index.n_served()));
        }
    }
}

#[test]
fn what_was_taken_out_leaves_nothing_behind() {
    for quantise_above in [10, 100] {
        let folder = tempfile::tempdir().expect("a folder");
        let n_files = || fs_err::read_dir(folder.path()).expect("a folder").count();
        let new = SpaceIndex::create(options(folder.path(), DIMENSIONS, quantise_above)).expect("created").size();
        let options = saved(folder.path(), quantise_above);
        let mut index = SpaceIndex::load(options.clone()).expect("loaded");
        let memory = index.size().memory;
        index.remove(1).expect("removed");
        assert_eq!(n_files(), usize::from(quantise_above == 10), "what is in memory is not in files");
        for number in 2..60 {
            index.remove(number).expect("removed");
        }
        assert_eq!(index.size().memory, memory, "room is kept for as many");
        index.remove(60).expect("removed");
        assert_eq!((index.size(), n_files()), (new, 0), "a killed process leaves no vectors");

        index.put(61, &[0.2; DIMENSIONS], Serving::Served).expect("put");
        index.save().expect("saved");
        assert_eq!(SpaceIndex::load(options).expect("loaded").len(), 1);
    }
}

#[test]
fn a_vector_that_something_else_changed_is_not_scored() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = saved(folder.path(), 10);
    let index = SpaceIndex::load(options.clone()).expect("loaded");
    let path = folder.path().join(format!("{}.vectors", options.identity.space));
    let mut bytes = fs_err::read(&path).expect("read");
    bytes[DIMENSIONS * 4 + 3] ^= 0x40;
    fs_err::write(&path, bytes).expect("written");
    let error = index.score(&[0.2; DIMENSIONS], &[2]).expect_err("damaged");
    assert!(error.to_string().contains("vector 1 is not the one"), "{error}");
    assert_eq!(index.score(&[0.2; DIMENSIONS], &[1, 3]).expect("intact").len(), 2);
}

#[test]
fn an_index_that_lacks_a_change_is_not_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = saved(folder.path(), 10);
    let mut index = SpaceIndex::load(options.clone()).expect("loaded");
    let path = folder.path().join(format!("{}.vectors", options.identity.space));
    fs_err::write(&path, []).expect("emptied");
    index.remove(1).expect_err("the last vector cannot be moved");
    assert!(matches!(index.save(), Err(IndexError::Incomplete { .. })));
    assert!(matches!(why_not(options), NotLoaded::Absent));
}
