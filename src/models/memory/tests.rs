//! What fits beside what, and what counts as the models'.

use std::sync::Arc;

use super::*;

fn candidate(model: &'static str, seconds_ago: u64) -> Candidate<&'static str> {
    Candidate {
        model,
        is_busy: false,
        is_active: false,
        holds_grains: false,
        last_used: Instant::now().checked_sub(Duration::from_secs(seconds_ago)).expect("the clock has run as long"),
    }
}

#[test]
fn the_idle_model_that_was_not_used_for_longest_goes_first() {
    let busy = Candidate { is_busy: true, ..candidate("busy", 9) };
    let active = Candidate { is_active: true, ..candidate("active", 8) };
    let needed = Candidate { holds_grains: true, ..candidate("needed", 7) };
    let mut all = vec![busy, active, needed, candidate("recent", 1), candidate("old", 5)];
    for expected in ["old", "recent", "active", "needed", "busy"] {
        assert_eq!(first_to_go(all.clone()), Some(expected));
        all.retain(|candidate| candidate.model != expected);
    }
    assert_eq!(first_to_go(all), None);
}

/// What another part of the process says that it takes.
fn other_of(memory: &Memory) -> Arc<AtomicU64> {
    let taken = Arc::new(AtomicU64::new(0));
    let asked = Arc::clone(&taken);
    memory.ask(move || asked.load(Ordering::Relaxed));
    taken
}

/// 300 MiB of a process that takes `empty_bytes` without models.
fn memory(budget_of: BudgetOf, empty_bytes: u64) -> Memory {
    Memory { empty_bytes, ..Memory::new(Some(300 << 20), budget_of) }
}

#[test]
#[cfg(target_os = "linux")]
fn what_grains_and_caches_take_is_none_of_the_models_and_out_of_a_share_of_the_machine() {
    for (budget_of, budget_bytes) in [(BudgetOf::Models, 300 << 20), (BudgetOf::Process, 100 << 20)] {
        let memory = memory(budget_of, 0);
        let [grains, cache] = [(); 2].map(|()| other_of(&memory));
        assert!(memory.used_bytes() > 0);
        grains.store(150 << 20, Ordering::Relaxed);
        cache.store(50 << 20, Ordering::Relaxed);
        assert_eq!(memory.budget_bytes(), Some(budget_bytes));
        grains.store(1 << 50, Ordering::Relaxed);
        assert_eq!(memory.used_bytes(), 0);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_requests_take_for_a_moment_drives_no_model_out_in_vain_and_refuses_none_for_good() {
    for budget_of in [BudgetOf::Models, BudgetOf::Process] {
        let memory = memory(budget_of, 0);
        let taken = Arc::new(AtomicU64::new(0));
        let asked = Arc::clone(&taken);
        memory.ask_of_passing(move || asked.load(Ordering::Relaxed));
        memory.residue_bytes.store(7, Ordering::Relaxed);
        assert_eq!(memory.left_bytes(Others::default()), 7);
        taken.store(1 << 50, Ordering::Relaxed);
        assert_eq!(memory.budget_bytes(), Some(300 << 20), "{budget_of:?}");
        let (used_bytes, left_bytes) = (memory.used_bytes(), memory.left_bytes(Others::default()));
        match budget_of {
            BudgetOf::Models => assert_eq!((used_bytes, left_bytes), (0, 0)),
            // The process must not outgrow the machine.
            BudgetOf::Process => assert!(used_bytes > 0 && left_bytes == 1 << 50, "{left_bytes}"),
        }
    }
}

#[test]
fn what_cannot_fit_is_refused_with_the_numbers() {
    let memory = memory(BudgetOf::Models, u64::MAX);
    let name = ModelName::parse("m").expect("a name");
    let large = Expected { weights_bytes: 90 << 20, bytes: 564 << 20, ..Expected::default() };
    let refused = memory.check(&name, large, Others::default()).expect_err("too large");
    assert!(refused.is_permanent() && refused.is_estimate);
    let sentence = refused.to_string();
    let ways_out =
        ["Raise the budget", "fewer `workers`", "`engine.query_lane = \"off\"`", "`engine.provider = \"cpu\"`"];
    for part in ["564.0 MiB by estimate", "300.0 MiB"].into_iter().chain(ways_out) {
        assert!(sentence.contains(part), "{sentence}");
    }
    memory.record(&name, large.weights_bytes, 250 << 20);
    assert_eq!(memory.check(&name, large, Others::default()), Ok(()), "what was measured counts");
}

#[test]
fn who_could_go_is_named_only_where_somebody_stays() {
    let memory = memory(BudgetOf::Models, u64::MAX);
    let refusal = DoesNotFit {
        needed_bytes: 200 << 20,
        is_estimate: false,
        used_bytes: 150 << 20,
        budget_bytes: memory.budget_bytes().expect("there is one"),
        others_stay: false,
        is_doubtful: false,
    };
    assert!(refusal.to_string().contains(". Raise the budget"), "{refusal}");
    let refusal = DoesNotFit { others_stay: true, ..refusal };
    assert!(refusal.to_string().contains(". Unload or unpin another model"), "{refusal}");
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_left_is_never_more_than_it_was_without_models_and_what_stays() {
    let mut memory = memory(BudgetOf::Models, 0);
    let others = Others { n_models: 2, grown_bytes: 1, bytes: 5 << 30, n_staying: 1, staying_bytes: 5 << 30 };
    assert!(memory.left_bytes(others) < memory.used_bytes() + (6 << 30), "nothing is known of it");
    memory.residue_bytes = AtomicU64::new(7);
    assert_eq!(memory.left_bytes(Others::default()), 7);
    assert_eq!(memory.left_bytes(others), 7 + (5 << 30));
    let unused = Others { bytes: 1 << 50, ..others };
    assert_eq!(memory.left_bytes(unused), 7 + (5 << 30), "what they will take is not theirs yet");
    let heavy = Others { grown_bytes: 1 << 50, ..others };
    assert_eq!(memory.left_bytes(heavy), 5 << 30, "what others take now was not there then");
    memory.note_residue();
    assert_eq!(memory.left_bytes(Others::default()), 7, "it was less before");
}

#[test]
fn what_loaded_models_will_take_is_not_there_for_another() {
    let memory = memory(BudgetOf::Models, u64::MAX);
    let name = ModelName::parse("m").expect("a name");
    let expected = Expected { bytes: 100 << 20, ..Expected::default() };
    let check = |bytes| memory.check(&name, expected, Others { n_models: 1, bytes, ..Others::default() });
    assert_eq!(check(200 << 20), Ok(()));
    let refusal = check(201 << 20).expect_err("it does not fit beside that");
    assert_eq!(refusal.used_bytes, 201 << 20);
}

#[test]
fn what_was_measured_is_of_one_models_files() {
    let memory = memory(BudgetOf::Models, u64::MAX);
    let name = ModelName::parse("m").expect("a name");
    memory.record(&name, 200 << 20, 250 << 20);
    let same = Expected { weights_bytes: 200 << 20, bytes: 100 << 20, ..Expected::default() };
    let others = Others { n_models: 1, bytes: 100 << 20, ..Others::default() };
    let check = |expected| memory.check(&name, expected, others);
    assert_eq!(check(same).expect_err("it took more").needed_bytes, 250 << 20);
    let smaller = Expected { weights_bytes: 1 << 20, bytes: 2 << 20, ..Expected::default() };
    assert_eq!(check(smaller), Ok(()), "its files are others now");
    memory.forget(&name);
    assert_eq!(check(same), Ok(()), "it is another model now");
}

#[test]
fn a_measurement_that_would_forbid_a_model_for_good_is_made_anew_where_it_is_expected_to_fit() {
    let memory = memory(BudgetOf::Models, u64::MAX);
    let name = ModelName::parse("m").expect("a name");
    for _ in 0..2 {
        memory.record(&name, 90 << 20, 400 << 20);
    }
    let minute_ago = Instant::now().checked_sub(MEASURED_AGAIN_AFTER).expect("the clock has run as long");
    memory.measured.lock().get_mut(&name).expect("it was measured").at = minute_ago;
    let check = |bytes, of_others| {
        let expected = Expected { weights_bytes: 90 << 20, bytes, ..Expected::default() };
        memory.check(&name, expected, Others { bytes: of_others, ..Others::default() })
    };
    assert_eq!(check(200 << 20, 100 << 20), Ok(()));
    // What would fit once another has gone drives it out for nothing, if it was measured right.
    for (bytes, of_others) in [(301 << 20, 0), (200 << 20, 101 << 20)] {
        let refusal = check(bytes, of_others).expect_err("it does not fit");
        assert_eq!((refusal.needed_bytes, refusal.is_estimate), (400 << 20, false));
        assert!(refusal.is_permanent());
    }
}

#[test]
fn a_measurement_that_is_too_much_for_the_first_time_counts_as_none() {
    let memory = memory(BudgetOf::Models, u64::MAX);
    let name = ModelName::parse("m").expect("a name");
    let expected = Expected { weights_bytes: 90 << 20, bytes: 200 << 20, ..Expected::default() };
    let refusal = || {
        let others = Others { n_models: 1, bytes: 101 << 20, ..Others::default() };
        memory.check(&name, expected, others).expect_err("it does not fit beside another")
    };
    let before = refusal();
    memory.record(&name, expected.weights_bytes, 400 << 20);
    assert!(memory.is_doubtful(&name));
    // By that room is made for it, as it was before.
    assert_eq!((refusal(), before.is_permanent()), (before.clone(), false));
    let over = DoesNotFit { needed_bytes: 400 << 20, is_estimate: false, ..before };
    assert!(over.is_permanent() && !DoesNotFit { is_doubtful: true, ..over }.is_permanent());
    memory.record(&name, expected.weights_bytes, 400 << 20);
    assert!(!memory.is_doubtful(&name) && refusal().is_permanent(), "it is the same again");
}

#[test]
fn a_model_that_takes_too_much_each_time_is_loaded_for_that_ever_more_seldom() {
    let memory = memory(BudgetOf::Models, u64::MAX);
    let name = ModelName::parse("m").expect("a name");
    let expected = Expected { weights_bytes: 90 << 20, bytes: 200 << 20, ..Expected::default() };
    let measure = |bytes| memory.record(&name, expected.weights_bytes, bytes);
    let may_try = || memory.check(&name, expected, Others::default()).is_ok();
    let wait = |minutes| {
        let mut measured = memory.measured.lock();
        let at = &mut measured.get_mut(&name).expect("it was measured").at;
        *at = at.checked_sub(Duration::from_mins(minutes)).expect("the clock has run as long");
    };
    measure(400 << 20);
    assert!(may_try(), "the process may have grown by something else");
    for minutes in [1, 2, 4] {
        measure(400 << 20);
        assert!(!may_try());
        wait(minutes);
        assert!(may_try(), "{minutes} minutes later");
    }
    measure(250 << 20);
    measure(400 << 20);
    assert!(may_try(), "it took less in between");
    measure(400 << 20);
    memory.record(&name, 1, 400 << 20);
    memory.record(&name, expected.weights_bytes, 400 << 20);
    assert!(may_try(), "it had other files in between");
}

#[test]
#[cfg(target_os = "linux")]
fn a_measurement_that_fits_the_budget_but_not_beside_what_stays_without_models_is_made_anew_too() {
    let budget_bytes = 1 << 50;
    let empty = Memory::new(Some(budget_bytes), BudgetOf::Models);
    let memory = Memory { empty_bytes: 0, residue_bytes: AtomicU64::new(1 << 20), ..empty };
    let name = ModelName::parse("m").expect("a name");
    let check = |expected_bytes, of_others| {
        let expected = Expected { weights_bytes: 90 << 20, bytes: expected_bytes, ..Expected::default() };
        memory.check(&name, expected, Others { bytes: of_others, ..Others::default() })
    };
    memory.record(&name, 90 << 20, budget_bytes - 1);
    assert_eq!(check(budget_bytes / 2, 0), Ok(()));
    for (expected_bytes, of_others) in [(budget_bytes, 0), (budget_bytes / 2, budget_bytes / 2)] {
        let refusal = check(expected_bytes, of_others).expect_err("it does not fit");
        assert_eq!((refusal.needed_bytes, refusal.is_estimate), (budget_bytes - 1, false));
    }
    memory.record(&name, 90 << 20, budget_bytes / 2);
    let refusal = check(1, budget_bytes / 2).expect_err("it fits once another has gone, and counts");
    assert_eq!(refusal.needed_bytes, budget_bytes / 2);
}

#[test]
#[cfg(target_os = "linux")]
fn what_grains_and_caches_take_while_a_model_loads_is_not_the_models() {
    // Beside the second one, nothing counts as used.
    for empty_bytes in [0, u64::MAX] {
        let memory = memory(BudgetOf::Models, empty_bytes);
        let [grains, cache] = [(); 2].map(|()| other_of(&memory));
        cache.store(8 << 20, Ordering::Relaxed);
        let before = memory.held();
        let of_grains = vec![1_u8; 64 << 20];
        grains.store(64 << 20, Ordering::Relaxed);
        let grown = memory.grown_bytes(before);
        assert!(grown < 16 << 20, "{grown} bytes besides {}", of_grains.len());
        let of_model = vec![1_u8; 64 << 20];
        let grown = memory.grown_bytes(before);
        assert!((48 << 20..96 << 20).contains(&grown), "{grown} bytes for {}", of_model.len());
        grains.store(1 << 50, Ordering::Relaxed);
        assert_eq!(memory.grown_bytes(before), 0);
    }
}

#[test]
fn what_a_deleted_model_took_is_not_shown_of_the_next_of_its_name() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let shows = |value: &str| {
        let text = recorder.handle().render();
        text.contains(&format!("granary_model_memory_bytes{{model=\"m\"}} {value}\n"))
    };
    metrics::with_local_recorder(&recorder, || {
        let memory = memory(BudgetOf::Models, u64::MAX);
        let name = ModelName::parse("m").expect("a name");
        memory.forget(&name);
        assert!(!shows("0"), "it was never loaded");
        memory.record(&name, 1, 77);
        assert!(shows("77"));
        memory.forget(&name);
        assert!(shows("0"));
    });
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn what_the_allocator_keeps_of_requests_drives_no_model_out() {
    let blocks: Vec<Box<[u8]>> = (0..100_000).map(|_| vec![1; 1_000].into()).collect();
    // Behind the others, so that these stay when they are freed.
    let last: Box<[u8]> = vec![1; 1_000].into();
    let memory = Memory::new(Some(32 << 20), BudgetOf::Models);
    let memory = Memory { empty_bytes: memory.empty_bytes.saturating_sub(100 << 20), ..memory };
    let expected = Expected { bytes: 8 << 20, ..Expected::default() };
    let check = || memory.check(&ModelName::parse("m").expect("a name"), expected, Others::default());
    assert!(memory.is_exceeded() && check().is_err(), "they are in use");
    drop(blocks);
    assert!(memory.used_bytes() > 64 << 20, "they are kept");
    assert!(memory.seems_exceeded() && memory.used_bytes() > 64 << 20, "a look leaves them there");
    assert_eq!((memory.is_exceeded(), check()), (false, Ok(())));
    drop(last);
}

#[test]
#[cfg(target_os = "linux")]
fn the_resident_set_grows_with_what_is_touched() {
    let before = resident_bytes();
    let touched = vec![1_u8; 64 << 20];
    assert!(resident_bytes() >= before + (48 << 20), "{} bytes", touched.len());
}
