//! `POST /models` and `DELETE /models/{name}`: models that come and go while the server runs.

use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{Json, ModelWord, QueryRejected, query_error, value_error};
use super::fields::IS_LIST;
use super::models::Model;
use super::responses::{Conflict, NativeBodyErrors, NativeErrors, NoRoom, UnknownModel};
use super::state::AppState;
use crate::config::AdditionalModel;
use crate::json::AnyObject;
use crate::models::NeededGrains;

/// The body of `POST /models`: an entry as `[[ai.additional_models]]` of the configuration has it.
#[derive(Clone, Debug, ToSchema)]
#[allow(dead_code, reason = "utoipa reads the fields; the entry itself is read as the configuration's type")]
#[serde(deny_unknown_fields)]
pub struct RegistrationBody {
    /// 1 to 64 letters, digits, `.`, `_` and `-`.
    #[schema(example = "my-model")]
    name: String,
    /// A model folder or an `.onnx` file, relative to the models directory.
    #[schema(example = "my-model")]
    path: Option<String>,
    /// Or a repository on a hub, downloaded before the first load.
    #[schema(example = json!(null))]
    repository: Option<String>,
    /// A branch, tag or commit of the repository; `main` when absent.
    #[schema(example = json!(null))]
    revision: Option<String>,
    /// The ONNX file in the repository; `onnx/model.onnx` when absent.
    #[schema(example = json!(null))]
    file: Option<String>,
    /// The tokenizer of an `.onnx` file, relative to the models directory.
    #[schema(example = json!(null))]
    tokenizer: Option<String>,
    /// `small`, `medium` or `large`: the class of machine it is meant for.
    #[schema(example = "small")]
    size: Option<String>,
    /// Whether it stays loaded, however little it is used.
    #[schema(example = false)]
    pinned: Option<bool>,
    /// Batches of it that run at once.
    #[schema(example = json!(null), minimum = 1)]
    workers: Option<u64>,
    /// `cpu`, `openvino`, `cuda` or `auto`: what executes it; `engine.provider` when absent.
    #[schema(example = json!(null))]
    provider: Option<String>,
    /// The length of its vectors, to be checked against the model.
    #[schema(example = json!(null), minimum = 1)]
    dimensions: Option<u32>,
    /// Shorter lengths it was trained to be cut to.
    #[schema(example = json!(null))]
    matryoshka_dims: Option<Vec<u32>>,
    /// The most tokens a text keeps.
    #[schema(example = json!(null), minimum = 1)]
    max_tokens: Option<u32>,
    /// `mean`, `mean_sqrt_len`, `cls`, `last_token` or `max`; the model's files say it when absent.
    #[schema(example = json!(null))]
    pooling: Option<String>,
    /// Whether its own vectors are scaled to length 1; the model's files say it when absent.
    #[schema(example = json!(null))]
    normalize: Option<bool>,
    /// Texts put before queries and documents: `query` and `document`.
    #[schema(example = json!(null))]
    prompts: Option<BTreeMap<String, String>>,
    /// Other names that requests may use.
    #[schema(example = json!([]))]
    aliases: Option<Vec<String>>,
}

/// Registers a model: a folder or a file inside the models directory, or a repository on a hub. Later runs know it too. It is loaded by the first
/// request that names it.
#[utoipa::path(
    post, path = "/models", tag = "models", operation_id = "register_model", request_body = RegistrationBody,
    responses(
        (status = 201, description = "The model", body = Model, headers(
            ("location" = String, description = "Where the model is"),
        )),
        NativeErrors, NativeBodyErrors, Conflict, NoRoom
    )
)]
pub async fn register(
    State(state): State<AppState>,
    Json(AnyObject(body)): Json<AnyObject>,
) -> Result<Response, ApiError> {
    let status = state.models.register(entry_in(body)?).await?;
    let location = format!("/models/{}", status.info.name);
    let model = Model::of(&status, &state.models.active());
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], axum::Json(model)).into_response())
}

/// The entry that a body describes.
pub(super) fn entry_in(body: serde_json::Map<String, serde_json::Value>) -> Result<AdditionalModel, ApiError> {
    // The only object in it, for which the configuration's type would take a list.
    if body.get("prompts").is_some_and(serde_json::Value::is_array) {
        return Err(value_error(IS_LIST, "prompts"));
    }
    // `null` means absent in every optional field.
    let given = body.into_iter().filter(|(_, value)| !value.is_null()).collect();
    serde_path_to_error::deserialize(serde_json::Value::Object(given))
        .map_err(|error| value_error(&error.inner().to_string(), &error.path().to_string()))
}

/// The query of `DELETE /models/{name}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteQuery {
    force: Option<bool>,
}

/// Deletes a registered model from the catalog, in this run and later ones. Its files stay.
#[utoipa::path(
    delete, path = "/models/{name}", tag = "models", operation_id = "delete_model",
    params(
        ("name" = String, Path, description = "A model's name or alias"),
        ("force" = Option<bool>, Query, description = "Delete it even if grains need it"),
    ),
    responses(
        (status = 204, description = "It is no longer known"),
        (status = 422, description = "`force` is neither true nor false", content_type = "application/problem+json",
         body = super::error::ProblemBody),
        NativeErrors, UnknownModel, Conflict, NoRoom
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    ModelWord(word): ModelWord,
    query: Result<Query<DeleteQuery>, QueryRejected>,
) -> Result<StatusCode, ApiError> {
    let Query(query) = query.map_err(|error| query_error(&error, "force", "`force` is `true` or `false`"))?;
    let grains = if query.force.unwrap_or_default() { NeededGrains::Strand } else { NeededGrains::Protect };
    let name = state.models.resolve(Some(&word))?;
    state.models.delete(&name, grains).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_field_that_is_wrong_is_named() {
        for (body, beginning) in [
            (json!({"name": "m", "pooling": "sum"}), "`pooling`: "),
            (json!({"name": "m", "dimensions": 0}), "`dimensions`: "),
            (json!({"name": "m", "matryoshka_dims": [8, 0]}), "`matryoshka_dims[1]`: "),
            (json!({"name": "m", "prompts": ["a", "b"]}), "`prompts`: it is a list"),
            (json!({"path": "m"}), "missing field `name`"),
            (json!({"name": "m", "poolings": "cls"}), "`poolings`: unknown field `poolings`, expected one of `name`"),
        ] {
            let Value::Object(body) = body else { unreachable!("each is an object") };
            let error = entry_in(body).expect_err("refused");
            assert!(error.message().starts_with(beginning), "{}", error.message());
        }
    }
}
