//! `POST /spaces/adopt`: old vectors get their provenance by proof.

use axum::extract::State;
use axum::response::Response;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, Code};
use super::extract::{OptionalJson, space_in};
use super::grains::transfer::Ndjson;
use super::grains::{Kept, ndjson};
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::change::{AdoptError, AdoptRequest, Adoption, AdoptionCount, adopt};
use crate::telemetry::with_causes;

/// What is to be adopted. Everything may be left out.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptBody {
    /// The model that is to be proved: its name or an alias. When absent, the one that most of a sample agrees with.
    #[schema(example = json!(null))]
    model: Option<String>,
    /// A space to join to the model's, where texts agree at a cosine of 0.9999; vectors without a known space, where they
    /// agree at 0.999, when absent.
    #[schema(pattern = "^[0-9a-fA-F]{16}$", example = json!(null))]
    from: Option<String>,
}

/// A line of the answer: one of its fields.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum AdoptionLine {
    /// How far it is.
    Progress(AdoptionObject),
    /// That was all.
    End(AdoptionObject),
    /// It was cut short, in place of `end`. What was adopted stays so.
    Error(AdoptionProblem),
}

/// Why an adoption was cut short.
#[derive(Clone, Debug, Serialize)]
struct AdoptionProblem {
    problem: serde_json::Value,
}

/// How far an adoption is.
#[derive(Clone, Debug, Serialize)]
struct AdoptionObject {
    /// The model whose vectors they are.
    model: String,
    /// Its space.
    space: String,
    /// Vectors that were compared.
    compared: u64,
    /// Those that agree, and are in the space now.
    adopted: u64,
    /// Those that do not, and stay as they were; and those whose grain was changed or deleted meanwhile.
    unknown: u64,
    /// The ids of these at the end: the first thousand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown_ids: Vec<String>,
}

/// Proves which model made vectors of unknown origin: each is compared with what the model makes of its text. Where both
/// agree, the vector is in the model's space from then on.
///
/// The answer is NDJSON: lines of `{"progress": {"model", "space", "compared", "adopted", "unknown"}}`, and last
/// `{"end": {…}}` with the same counts. Its `unknown_ids` has the first thousand of those that do not agree; they stay as
/// they were. An adoption that was cut short ends with `{"error": {"problem": {…}}}`. What is adopted stays so: ask again to
/// go on. A space is not joined to another one (409) while a re-embedding needs it to be rolled back, or if its grains would
/// then be served from a third space.
#[utoipa::path(
    post, path = "/spaces/adopt", tag = "spaces", operation_id = "adopt_space", request_body = Option<AdoptBody>,
    responses(
        (status = 200, description = "Lines of progress, then the end", content_type = "application/x-ndjson",
         body = Ndjson),
        NativeErrors, NativeBodyErrors, UnknownModel, Conflict, NoRoom
    )
)]
pub async fn adopt_space(
    State(state): State<AppState>,
    Kept(grains): Kept,
    OptionalJson(body): OptionalJson<AdoptBody>,
) -> Result<Response, ApiError> {
    let model = body.model.as_deref().map(|word| state.models.resolve(Some(word))).transpose()?;
    let from = space_in("from", body.from.as_deref())?;
    let steps = adopt::adopt(&grains, &state.models, AdoptRequest { model, from }).await?;
    let lines = steps.flat_map(|step| {
        let lines = match step {
            Adoption::Progress(count) => vec![AdoptionLine::Progress(count.into())],
            Adoption::Done(count) => vec![AdoptionLine::End(count.into())],
            Adoption::Failed(count, error) => {
                tracing::error!("an adoption was cut short: {}", with_causes(&error));
                let problem = ApiError::from(error).problem();
                let cut_short = AdoptionLine::Error(AdoptionProblem { problem });
                vec![AdoptionLine::Progress(count.into()), cut_short]
            }
        };
        futures::stream::iter(lines)
    });
    Ok(ndjson::answer(lines.map(|line| ndjson::line(&line))))
}

impl From<AdoptionCount> for AdoptionObject {
    fn from(count: AdoptionCount) -> Self {
        let AdoptionCount { model, space, compared, adopted, unknown, unknown_ids } = count;
        Self { model, space, compared, adopted, unknown, unknown_ids }
    }
}

impl From<AdoptError> for ApiError {
    fn from(error: AdoptError) -> Self {
        let message = with_causes(&error);
        match error {
            AdoptError::Nothing
            | AdoptError::Empty(_)
            | AdoptError::Same(_)
            | AdoptError::NoModel { .. }
            | AdoptError::OtherSpace { .. } => Self::new(Code::Conflict, message),
            AdoptError::Model(error) => error.into(),
            AdoptError::Grains(error) => error.into(),
        }
    }
}
