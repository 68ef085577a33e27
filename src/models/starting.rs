//! Which model is active when the process starts.

use super::catalog::Catalog;
use super::hardware::{Ranked, Selector};
use super::ledger::{Ledger, LedgerError};
use crate::config::ModelChoice;
use crate::domain::ModelName;
use crate::shutdown::blocking;

/// The model of the last run if it is still known, else the configured one, else the one that suits the machine best.
/// What takes the place of another is recorded, and so is what the machine decides: another one at the next start would
/// change the space of the vectors, and grains are written only with the model that is recorded.
pub(super) async fn starting_model(
    catalog: &Catalog,
    first: ModelChoice,
    selector: Selector,
    ledger: &dyn Ledger,
) -> Result<ModelName, LedgerError> {
    match (ledger.active_model().await?, first) {
        (Some(stored), ModelChoice::Named(first)) if !catalog.has(&stored) => {
            tracing::warn!(
                %stored, active = %first,
                "the model that was active before is not known any more; `ai.model_name` is active instead, and stays \
                 so"
            );
            ledger.record_active_model(&first).await?;
            Ok(first)
        }
        (Some(stored), ModelChoice::Named(first)) => {
            if stored != first {
                tracing::info!(
                    active = %stored, configured = %first,
                    "the model that was active before stays active; `ai.model_name` counts at the first start only"
                );
            }
            Ok(stored)
        }
        (Some(stored), ModelChoice::Auto) if catalog.has(&stored) => {
            tracing::info!(active = %stored, "the model that was active before stays active; `auto` chooses once");
            Ok(stored)
        }
        (None, ModelChoice::Named(first)) => Ok(first),
        (stored, ModelChoice::Auto) => {
            if let Some(stored) = stored {
                tracing::warn!(%stored, "the model that was active before is not known any more; another is chosen");
            }
            let chosen = choose(catalog, selector, ledger.disabled_models().await?).await;
            ledger.record_active_model(&chosen).await?;
            Ok(chosen)
        }
    }
}

async fn choose(catalog: &Catalog, selector: Selector, disabled: Vec<ModelName>) -> ModelName {
    let models = catalog.clone();
    let selection = blocking(move || selector.survey(models.iter(), &disabled)).await;
    // Where all are disabled, one of them is active: it stays disabled.
    let best = selection.best().or(selection.ranked.first()).expect("the catalog has built-in models");
    announce(best);
    best.model.clone()
}

/// Logs a choice and its reasons.
pub(super) fn announce(chosen: &Ranked) {
    let reasons = chosen.reasons.join("; ");
    if chosen.available && chosen.fits {
        tracing::info!(model = %chosen.model, %reasons, "`auto` chose a model by the machine");
    } else {
        tracing::warn!(model = %chosen.model, %reasons, "`auto` found no model that suits the machine, and chose this one");
    }
}
