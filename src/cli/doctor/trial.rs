//! The models that a start loads, loaded as it would load them: that a file is cut or belongs to another model shows only
//! then, and so does what a model really takes.

use std::sync::Arc;
use std::time::Duration;

use super::checks::{Check, Verdict};
use crate::app::{self, AppError};
use crate::config::Config;
use crate::domain::ModelName;
use crate::engine;
use crate::models::hardware;
use crate::models::{Ledger, ModelError, ModelStatus, MultiModelManager, VolatileLedger};
use crate::shutdown::Shutdown;
use crate::telemetry::with_causes;

/// How long what still runs in the background is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Loads models whose files are here, one after the other; each embeds some texts then. Nothing is written: what a database
/// would remember of them is forgotten.
///
/// # Errors
/// [`AppError`], where no model could be loaded with this configuration.
pub(super) async fn load(
    config: &Config,
    active: Option<&ModelName>,
    names: &[ModelName],
) -> Result<Vec<Check>, AppError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut config = config.clone();
    // They are loaded below, each with a check of its own.
    for entry in &mut config.ai.additional_models {
        entry.auto_load = false;
    }
    let cores = hardware::cores(config.engine.cores);
    engine::allow_turns(cores);
    let (catalog, shutdown) = (app::catalog(&config)?, Shutdown::new());
    let ledger: Arc<dyn Ledger> = Arc::new(VolatileLedger::default());
    if let Some(active) = active {
        ledger.record_active_model(active).await?;
    }
    let models = app::models(&config, cores, catalog, &ledger, &shutdown).await?;
    let mut checks = Vec::with_capacity(names.len());
    // A start leaves those out that the configuration does not let it load.
    for name in names.iter().filter(|name| models.status(name).is_ok()) {
        checks.push(check(name, &loaded(&models, name).await));
    }
    shutdown.begin();
    shutdown.drain(PATIENCE).await;
    models.unload_all().await;
    Ok(checks)
}

/// Loads a model, however long that takes, as a start does.
async fn loaded(models: &MultiModelManager, name: &ModelName) -> Result<ModelStatus, ModelError> {
    loop {
        match models.load_model(name).await {
            Err(ModelError::Loading { .. }) => {}
            ended => return ended,
        }
    }
}

fn check(name: &ModelName, loaded: &Result<ModelStatus, ModelError>) -> Check {
    const SUBJECT: &str = "loading";
    match loaded {
        Ok(status) => {
            let how = status.loaded.as_ref().map_or_else(String::new, |facts| {
                let (provider, seconds) = (facts.provider.provider, facts.load_time.as_secs_f64());
                format!(" in {seconds:.1} s on `{provider}`, in {}", facts.precision)
            });
            Check::new(SUBJECT, Verdict::Ok, format!("`{name}` was loaded{how}, and embeds"))
        }
        // Says itself what to do.
        Err(error) => Check::new(SUBJECT, Verdict::Problem, with_causes(error)),
    }
}
