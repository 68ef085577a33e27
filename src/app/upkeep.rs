//! What runs beside the requests, for as long as the server does.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::api::answer_memory::AnswerMemory;
use crate::api::body_memory::BodyMemory;
use crate::api::connections::Tls;
use crate::auth::Keys;
use crate::clock::Clock;
use crate::engine::run_memory;
use crate::models::MultiModelManager;
use crate::models::lifecycle::Phase;
use crate::shutdown::{Shutdown, blocking};
use crate::telemetry;

/// How often histograms are folded: between two folds the recorder keeps every observation.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How often the file of keys is looked at.
const REFRESH_KEYS: Duration = Duration::from_secs(1);

/// How often the files of the certificate are looked at.
const REFRESH_TLS: Duration = Duration::from_secs(2);

/// How often the clock is looked at.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

/// How often memory is given back that no text, body or answer needs any more.
const GIVE_BACK: Duration = Duration::from_secs(30);

/// How often a failed load of the active model is looked at.
const RETRY_ACTIVE: Duration = Duration::from_secs(1);

/// Loads the active model in the background: the port opens at once, and the first request waits for the load. A
/// failed load is tried again when it has cooled down, since a server that is not ready gets no request that would.
pub(super) fn keep_active_loadable(shutdown: &Shutdown, models: MultiModelManager) {
    let soft = shutdown.soft().clone();
    let mut first = true;
    shutdown.every("preload", RETRY_ACTIVE, move || {
        let (models, soft, is_first) = (models.clone(), soft.clone(), std::mem::take(&mut first));
        async move {
            let active = models.active();
            let has_failed = models.status(&active).is_ok_and(|status| status.phase == Phase::Failed);
            if is_first || has_failed {
                // Requests get the reason of a failure, and the log has it already. The stop must not wait for a load because
                // of this task alone.
                let _ = soft.run_until_cancelled(models.lease(&active)).await;
            }
        }
    });
}

/// Takes over what `granary keys` changes.
pub(super) fn keep_keys(shutdown: &Shutdown, keys: Arc<Keys>) {
    look_again(shutdown, "keys", REFRESH_KEYS, move || keys.refresh());
}

/// Takes over a certificate that was renewed.
pub(super) fn keep_tls(shutdown: &Shutdown, tls: Arc<Tls>) {
    look_again(shutdown, "certificate", REFRESH_TLS, move || tls.refresh());
}

/// Gives back what long texts took. Who sends one may be about to send more.
pub(super) fn keep_run_memory(shutdown: &Shutdown) {
    look_again(shutdown, "memory of long texts", GIVE_BACK, run_memory::give_back_unused);
}

/// Gives back what large bodies and answers took.
pub(super) fn keep_request_memory(shutdown: &Shutdown, bodies: Arc<BodyMemory>, answers: Arc<AnswerMemory>) {
    shutdown.every("memory of requests", GIVE_BACK, move || {
        let (bodies, answers) = (Arc::clone(&bodies), Arc::clone(&answers));
        async move {
            bodies.give_back().await;
            answers.give_back().await;
        }
    });
}

/// Looks at something again and again, off the async threads.
fn look_again(shutdown: &Shutdown, what: &'static str, period: Duration, look: impl Fn() + Clone + Send + 'static) {
    shutdown.every(what, period, move || blocking(look.clone()));
}

/// Tells of a clock that was set.
pub(super) fn watch_clock(shutdown: &Shutdown, clock: Arc<Clock>) {
    look_again(shutdown, "clock", LOOK_AT_CLOCK, move || clock.look());
}

/// Keeps what metrics take small.
pub(super) fn keep_metrics(shutdown: &Shutdown, metrics: PrometheusHandle) {
    look_again(shutdown, "metrics", METRICS_UPKEEP, move || metrics.run_upkeep());
}

/// Tells of a process that stood still.
pub(super) fn watch_for_standstills(shutdown: &Shutdown) {
    let soft = shutdown.soft().clone();
    shutdown.spawn("standstills", async move { soft.run_until_cancelled(telemetry::tell_of_standstills()).await });
}
