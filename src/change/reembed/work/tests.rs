//! Which job has its turn, and what a panic or a stuck inference does to the others.

use super::*;
use crate::domain::Filter;
use crate::models::ModelError;
use crate::models::lifecycle::FailureKind;

fn job(id: &str, state: ReembeddingState, cut_over_us: Option<i64>) -> (ReembeddingId, Job) {
    let record = Reembedding {
        id: ReembeddingId::of(id),
        model: ModelName::parse("tiny").expect("a name"),
        space: SpaceId::parse("0123456789abcdef").expect("an id"),
        selection: Filter::default(),
        throttle: 1.0,
        state,
        reason: None,
        done: 0,
        total: 0,
        previous_model: None,
        previous_order: None,
        old_vectors: OldVectors::Kept,
        created_us: 0,
        changed_us: 0,
        cut_over_us,
    };
    (record.id.clone(), Job::new(record, 0))
}

#[test]
fn a_job_that_was_put_off_holds_up_none_but_ways_back_that_must_follow_it() {
    let (running, back) = (ReembeddingState::Running, ReembeddingState::RollingBack);
    let mut jobs = BTreeMap::from([
        job("1", running, None),
        job("2", back, Some(1)),
        job("3", back, Some(2)),
        job("4", running, None),
    ]);
    let next = |jobs: &BTreeMap<ReembeddingId, Job>| next_of(jobs).map(|job| job.record.id.to_string());
    let put_off = |jobs: &mut BTreeMap<ReembeddingId, Job>, id: &str| {
        let job = jobs.get_mut(&ReembeddingId::of(id)).expect("it is there");
        job.due_at = Some(Instant::now() + UPKEEP);
    };
    for (id, after) in [("1", Some("3")), ("3", Some("4")), ("4", None)] {
        assert!(next(&jobs).is_some_and(|next| next == id));
        put_off(&mut jobs, id);
        assert_eq!(next(&jobs).as_deref(), after, "after {id}");
    }
    jobs.remove(&ReembeddingId::of("3"));
    assert_eq!(next(&jobs).as_deref(), Some("2"), "it is the last one on its way back now");
}

#[test]
fn the_pace_of_a_job_is_measured_anew_after_a_pause() {
    let (_, mut job) = job("1", ReembeddingState::Running, None);
    for n_done in [10, 20] {
        std::thread::sleep(Duration::from_millis(5));
        job.rate.note(n_done);
    }
    job.take_over(Reembedding { total: 100, ..job.record.clone() });
    assert!(job.rate.per_second().is_some(), "it was counted, and goes on");
    for state in [ReembeddingState::Paused, ReembeddingState::Queued, ReembeddingState::Running] {
        job.take_over(Reembedding { state, ..job.record.clone() });
    }
    job.rate.note(30);
    assert_eq!((job.rate.per_second(), job.record.total), (None, 100));
}

#[test]
fn an_inference_that_does_not_end_is_told_from_a_conflict() {
    let stuck = || ModelError::Stuck { name: ModelName::parse("tiny").expect("a name"), what: "does not embed" };
    assert!(is_stuck(&stuck().into()) && is_stuck(&GrainError::Model(stuck()).into()));
    assert!(!is_stuck(&ModelError::Conflict("it is active".to_owned()).into()));
}

#[test]
fn what_may_pass_does_not_end_a_way_back() {
    let name = || ModelName::parse("tiny").expect("a name");
    let failed = |permanent| {
        let (reason, retry_after, kind) = (String::new(), Duration::from_hours(1), FailureKind::Model);
        ReembedError::from(ModelError::Failed { name: name(), reason, retry_after, permanent, kind })
    };
    let busy = || ReembedError::from(ModelError::GrainWrites { name: name(), reason: String::new(), permanent: false });
    let [(_, back), (_, forth)] =
        [ReembeddingState::RollingBack, ReembeddingState::Running].map(|state| job("1", state, None));
    for (job, error, n_errors, leaves) in [
        (&back, failed(false), 0, true),
        (&back, failed(true), 0, false),
        (&forth, failed(false), TRIES, false),
        (&back, busy(), 0, false),
        (&back, busy(), TRIES, true),
        (&back, ReembedError::Panicked, TRIES, false),
    ] {
        assert_eq!(leaves_way_back(&job.record, &error, n_errors), leaves, "{error} after {n_errors}");
    }
    assert_eq!(cooldown(&failed(false)), Duration::from_hours(1), "no load sooner than a request's");
}

#[test]
fn errors_in_a_row_are_counted_for_each_job_anew() {
    let [(_, first), (_, second)] = ["1", "2"].map(|id| job(id, ReembeddingState::Running, None));
    let mut errors = Errors::default();
    *errors.of(&first.record) = TRIES;
    assert_eq!(*errors.of(&first.record), TRIES, "it goes on waiting");
    let purging = Reembedding { old_vectors: OldVectors::Purging, ..second.record.clone() };
    errors.of(&purging);
    assert_eq!(*errors.of(&first.record), TRIES, "a purge came in between");
    assert_eq!(*errors.of(&second.record), 0);
    assert_eq!(*errors.of(&first.record), 0);
}

#[tokio::test]
async fn a_panic_ends_the_work_that_it_came_from_and_no_other() {
    fn cut_off() -> Result<(), Stopped> {
        panic!("on purpose")
    }
    let done = or_panicked(async { cut_off() }).await;
    assert!(matches!(done, Err(Stopped::Error(ReembedError::Panicked))));
    assert!(may_pass(&ReembedError::Panicked), "it is tried again");
    assert!(matches!(or_panicked(async { Err(Stopped::ByHand) }).await, Err(Stopped::ByHand)));
}

#[tokio::test]
async fn what_a_panic_has_left_recorded_is_taken_over() {
    fn cut_off() -> Result<(), GrainError> {
        panic!("on purpose")
    }
    let mut is_read = false;
    let changed = or_taken_over(async { cut_off() }, async { is_read = true }).await;
    assert!(matches!(changed, Err(ReembedError::Panicked)) && is_read);

    let mut is_read = false;
    let changed = or_taken_over(async { Ok(7) }, async { is_read = true }).await;
    assert!(matches!(changed, Ok(7)) && !is_read, "nothing was cut off");
}
