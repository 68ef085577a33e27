//! Who gets a model, who loads it and who waits, in each of its states.

use std::time::Duration;

use super::*;
use crate::domain::{EncoderSettings, HubFile, HubId, HubRevision, HubSource, ModelName, ModelOrigin, ModelSize};

fn entry() -> Entry {
    entry_from(ModelSource::Folder("m".into()))
}

fn of_a_hub() -> ModelSource {
    ModelSource::Hub(HubSource {
        repository: HubId::parse("a/b").expect("a repository"),
        revision: HubRevision::default(),
        file: HubFile::default(),
    })
}

fn entry_from(source: ModelSource) -> Entry {
    Entry::new(ModelInfo {
        name: ModelName::parse("m").expect("a name"),
        origin: ModelOrigin::Configured,
        size: ModelSize::Small,
        aliases: Vec::new(),
        source,
        hub_repository: None,
        approximate_size_bytes: None,
        training: None,
        workers: None,
        pinned: false,
        provider: None,
        configured: EncoderSettings::default(),
        built_in: EncoderSettings::default(),
    })
}

impl Entry {
    /// Makes it one whose drain does not end, and is known not to.
    pub(in crate::models) fn get_stuck(&self) {
        let health = Arc::new(Health::new(Box::new(|| Some(1))));
        while !health.look_at_batch() {}
        health.note(Some(Ailment::stuck()));
        self.state.send_modify(|state| self.enter(state, State::Draining(health)));
    }
}

const COOLDOWN: Duration = Duration::from_secs(30);

fn failure(retry_at: Instant) -> Failure {
    Failure {
        reason: "no".into(),
        kind: FailureKind::Model,
        failed_at: retry_at.checked_sub(COOLDOWN).expect("the clock has run as long"),
        retry_at,
        permanent: true,
    }
}

#[test]
fn one_caller_loads_and_the_others_wait() {
    let entry = entry();
    let now = Instant::now();
    assert!(matches!(entry.lease_or_claim_load(Eagerness::Request, now, now), Next::Load));
    assert!(matches!(entry.lease_or_claim_load(Eagerness::ByHand, now, now), Next::Wait));
    assert!(matches!(entry.claim_drain(), NextUnload::Wait));
}

#[test]
fn a_failed_load_cools_down_for_requests_and_not_for_operators() {
    let entry = entry();
    let now = Instant::now();
    let retry_at = now + COOLDOWN;
    let fail = |eagerness, at| {
        assert!(matches!(entry.lease_or_claim_load(eagerness, at, at), Next::Load));
        entry.finish_load(Err(failure(retry_at))).expect("it was loading");
    };
    fail(Eagerness::Request, now);
    assert!(matches!(entry.lease_or_claim_load(Eagerness::Request, now, now), Next::GiveUp(_)));
    fail(Eagerness::ByHand, now);
    fail(Eagerness::Request, retry_at);
}

#[test]
fn a_disabled_model_is_the_operators_and_a_deleted_one_nobodys() {
    let entry = entry();
    let now = Instant::now();
    entry.set_disabled(true);
    assert!(matches!(entry.lease_or_claim_load(Eagerness::Request, now, now), Next::Disabled));
    entry.delete();
    assert!(matches!(entry.lease_or_claim_load(Eagerness::ByHand, now, now), Next::Deleted));
}

#[test]
fn a_pinned_model_stays_until_it_is_deleted() {
    let entry = entry();
    assert!(!entry.is_pinned());
    let pinned = Entry::new(ModelInfo { pinned: true, ..ModelInfo::clone(&entry.info) });
    assert!(pinned.is_pinned());
    pinned.delete();
    assert!(!pinned.is_pinned());
}

#[test]
fn the_metrics_of_a_name_are_of_the_model_that_has_it_now() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let shown = || {
        let text = recorder.handle().render();
        let ones = text.lines().filter(|line| line.starts_with("granary_model_") && line.ends_with(" 1"));
        ones.map(str::to_owned).collect::<Vec<_>>()
    };
    metrics::with_local_recorder(&recorder, || {
        let old = entry();
        let health = Arc::new(Health::new(Box::new(|| Some(1))));
        old.state.send_modify(|state| old.enter(state, State::Draining(Arc::clone(&health))));
        old.delete();
        assert_eq!(shown(), Vec::<String>::new(), "it is gone");

        let new = entry();
        let unloaded = ["granary_model_state{model=\"m\",state=\"unloaded\"} 1"];
        assert_eq!(shown(), unloaded);
        old.note_ailment(&health, Some(&Ailment::stuck()));
        assert_eq!(shown(), unloaded);
        let now = Instant::now();
        assert!(matches!(new.lease_or_claim_load(Eagerness::Request, now, now), Next::Load));
        old.finish_drain().expect("it was draining");
        assert_eq!(shown(), ["granary_model_state{model=\"m\",state=\"loading\"} 1"]);
    });
}

#[test]
fn who_waits_is_counted_until_it_leaves() {
    let entry = entry();
    let waiting = entry.wait();
    assert!(entry.is_waited_for());
    drop(waiting);
    assert!(!entry.is_waited_for());
}

#[test]
fn a_failure_is_known_while_the_model_is_tried_again() {
    let now = Instant::now();
    for source in [ModelSource::Folder("m".into()), of_a_hub()] {
        let entry = entry_from(source);
        let fails = || entry.status().failure.is_some();
        let claim = || assert!(matches!(entry.lease_or_claim_load(Eagerness::ByHand, now, now), Next::Load));
        claim();
        assert!(!fails(), "nothing is known before the first load has ended");
        entry.finish_load(Err(failure(now))).expect("it was loading");
        claim();
        assert!(fails());
        if entry.download_cancel().is_some() {
            assert_eq!(entry.finish_download(), Ok(true));
            assert!(fails());
        }
        assert_eq!(entry.status().phase, Phase::Loading);
        entry.finish_load(Err(failure(now))).expect("it was loading");
        assert!(fails());
        assert!(matches!(entry.claim_drain(), NextUnload::Done));
        claim();
        assert!(!fails(), "it was unloaded in between");
    }
}

#[test]
fn a_download_that_was_called_off_at_its_end_is_no_load() {
    let entry = entry_from(of_a_hub());
    let now = Instant::now();
    assert!(matches!(entry.lease_or_claim_load(Eagerness::Request, now, now), Next::Load));
    assert!(matches!(entry.claim_drain(), NextUnload::GiveUp));
    assert_eq!(entry.finish_download(), Ok(false));
    assert_eq!(entry.status().phase, Phase::Unloaded);
}

#[test]
fn a_drain_that_does_not_end_is_shown_and_nobody_waits_for_it() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let is_shown = |value: &str| {
        let text = recorder.handle().render();
        assert!(text.contains(&format!("granary_model_ailing{{model=\"m\"}} {value}")), "{text}");
    };
    metrics::with_local_recorder(&recorder, || {
        let entry = entry();
        let health = Arc::new(Health::new(Box::new(|| Some(1))));
        entry.state.send_modify(|state| entry.enter(state, State::Draining(Arc::clone(&health))));
        let now = Instant::now();
        let ask = || entry.lease_or_claim_load(Eagerness::Request, now, now);
        assert!(matches!(ask(), Next::Wait));
        assert!(entry.check_unload().is_ok());
        is_shown("0");

        let changes = entry.watch();
        assert_eq!(entry.note_ailment(&health, Some(&Ailment::stuck())), None);
        assert!(changes.0.has_changed().expect("the entry is there"), "who waits learns of it");
        let changes = entry.watch();
        assert_eq!(entry.note_ailment(&health, Some(&Ailment::stuck())), Some(Ailment::stuck()));
        assert!(!changes.0.has_changed().expect("the entry is there"), "it is known");
        assert_eq!(entry.status().ailment, Some(Ailment::stuck()));
        let Next::GiveUp(failure) = ask() else { panic!("a request waits for what does not end") };
        assert!(failure.reason.contains("start the server anew"), "{}", failure.reason);
        assert!(matches!(entry.check_unload(), Err(ModelError::Stuck { .. })));
        is_shown("1");

        // It has ended after all, and what is seen of it late is of nothing any more.
        entry.finish_drain().expect("it was draining");
        is_shown("0");
        entry.note_ailment(&health, Some(&Ailment::stuck()));
        is_shown("0");
        assert_eq!(entry.status().ailment, None);
        assert!(matches!(ask(), Next::Load));
    });
}

#[tokio::test]
async fn who_waits_for_a_drain_learns_that_it_does_not_end() {
    let entry = entry();
    let health = Arc::new(Health::new(Box::new(|| Some(1))));
    entry.state.send_modify(|state| entry.enter(state, State::Draining(Arc::clone(&health))));
    let found = async {
        tokio::time::timeout(Duration::from_secs(10), entry.found_stuck()).await.expect("who waits is woken");
    };
    // Polled after the wait has begun.
    let look = async {
        entry.note_ailment(&health, Some(&Ailment::stuck()));
    };
    tokio::join!(biased; found, look);
}

#[test]
fn unloading_forgets_a_failure_and_is_idempotent() {
    let entry = entry();
    let now = Instant::now();
    assert!(matches!(entry.lease_or_claim_load(Eagerness::Request, now, now), Next::Load));
    entry.finish_load(Err(failure(now + COOLDOWN))).expect("it was loading");
    for _ in 0..2 {
        assert!(matches!(entry.claim_drain(), NextUnload::Done));
        assert_eq!(entry.status().phase, Phase::Unloaded);
    }
    assert_eq!(entry.finish_drain(), Err(IllegalMove { from: Phase::Unloaded, to: Phase::Unloaded }));
}
