//! Errors at the edge: one type inside, three ways to write it.
//!
//! A handler returns an [`ApiError`]; it travels in the response's extensions, and [`render`] writes it in the words of
//! the route's [`Family`]. Panics, unknown paths and refused methods take the same way, so no error is plain text.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::EngineError;
use crate::models::error::with_causes;
use crate::models::{LedgerError, ModelError};
use crate::telemetry;

/// Tells OpenAI's clients whether to try again, whatever the status says.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The routes that share a way to write errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RFC 9457 problem documents: our own routes, operations, unknown paths.
    Native,
    /// text-embeddings-inference's `{"error", "error_type"}`.
    Tei,
    /// OpenAI's `{"error": {…}}`.
    OpenAi,
}

/// The routes that speak TEI's language, at the root and below `/models/{name}`.
const TEI_ROUTES: [&str; 6] = ["embed", "similarity", "tokenize", "decode", "info", "health"];

impl Family {
    /// The family of a request.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Self {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments.as_slice() {
            ["v1", ..] => Self::OpenAi,
            [""] => Self::Tei,
            [route] | ["models", _, route] if TEI_ROUTES.contains(route) => Self::Tei,
            // The URL that InferenceClient posts to when it is given a model's page.
            ["models", _] if method == Method::POST => Self::Tei,
            _ => Self::Native,
        }
    }
}

/// What kind of error it is. The name is stable: clients match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The body is not JSON.
    MalformedJson,
    /// There is nothing to embed.
    EmptyInput,
    /// A field is missing, of the wrong type, or out of its range.
    InvalidRequest,
    /// More inputs than a request may have.
    TooManyInputs,
    /// A text is longer than the model takes and may not be cut.
    InputTooLong,
    /// Token ids where text is needed, or ids of another vocabulary.
    TokenIds,
    /// A vector length that the model does not offer.
    Dimensions,
    /// The page that sent the request has no business here.
    Forbidden,
    /// No such model.
    ModelNotFound,
    /// No such path.
    NotFound,
    /// The `Host` is not this server's.
    Misdirected,
    /// The path has other methods.
    MethodNotAllowed,
    /// The vectors would be in another space than the expected one.
    SpaceMismatch,
    /// The body is over the limit.
    BodyTooLarge,
    /// The body is not declared as JSON.
    ContentType,
    /// The queue is full.
    Overloaded,
    /// The model is still loading.
    ModelLoading,
    /// The model cannot be loaded.
    ModelFailed,
    /// The database does not answer.
    StoreUnavailable,
    /// The request took longer than the server allows.
    Timeout,
    /// A bug.
    Internal,
}

impl Code {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::EmptyInput => "empty_input",
            Self::InvalidRequest => "invalid_request",
            Self::TooManyInputs => "too_many_inputs",
            Self::InputTooLong => "input_too_long",
            Self::TokenIds => "token_ids",
            Self::Dimensions => "dimensions",
            Self::Forbidden => "forbidden",
            Self::ModelNotFound => "model_not_found",
            Self::NotFound => "not_found",
            Self::Misdirected => "misdirected",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::SpaceMismatch => "space_mismatch",
            Self::BodyTooLarge => "body_too_large",
            Self::ContentType => "content_type",
            Self::Overloaded => "overloaded",
            Self::ModelLoading => "model_loading",
            Self::ModelFailed => "model_failed",
            Self::StoreUnavailable => "store_unavailable",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }

    fn status(self, family: Family) -> StatusCode {
        match self {
            Self::MalformedJson | Self::EmptyInput | Self::TokenIds => StatusCode::BAD_REQUEST,
            // OpenAI's clients know no 422.
            Self::InvalidRequest | Self::TooManyInputs | Self::InputTooLong | Self::Dimensions => match family {
                Family::OpenAi => StatusCode::BAD_REQUEST,
                Family::Native | Family::Tei => StatusCode::UNPROCESSABLE_ENTITY,
            },
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::ModelNotFound | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::SpaceMismatch => StatusCode::PRECONDITION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::ModelLoading | Self::ModelFailed | Self::StoreUnavailable | Self::Timeout => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn tei_type(self) -> &'static str {
        match self {
            Self::EmptyInput => "Empty",
            Self::TokenIds => "Tokenizer",
            Self::Forbidden | Self::Misdirected => "Forbidden",
            Self::ModelNotFound | Self::NotFound => "NotFound",
            Self::Overloaded => "Overloaded",
            Self::ModelLoading | Self::ModelFailed | Self::StoreUnavailable | Self::Timeout => "Unhealthy",
            Self::Internal => "Backend",
            Self::MalformedJson
            | Self::InvalidRequest
            | Self::TooManyInputs
            | Self::InputTooLong
            | Self::Dimensions
            | Self::MethodNotAllowed
            | Self::SpaceMismatch
            | Self::BodyTooLarge
            | Self::ContentType => "Validation",
        }
    }

    fn openai_type(self) -> &'static str {
        match self.status(Family::OpenAi) {
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// An error on its way to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    code: Code,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
    never_retry: bool,
}

impl ApiError {
    /// An error with the sentence the caller reads.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, retry_after: None, never_retry: false }
    }

    /// Names the request's field that is at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Says that trying again never makes sense.
    #[must_use]
    pub fn never_retry(mut self) -> Self {
        self.never_retry = true;
        self
    }

    /// What kind of error it is.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// A bug: the caller learns that it is ours, and the log has the rest.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            Code::Internal,
            "Granary met a bug on this request; its log has the details under this request's `x-request-id`",
        )
    }

    fn into_rendered(self, family: Family) -> Response {
        let status = self.code.status(family);
        let mut response = match family {
            Family::Native => {
                let body = serde_json::to_vec(&Problem {
                    kind: "about:blank",
                    title: status.canonical_reason().unwrap_or("Error"),
                    status: status.as_u16(),
                    detail: &self.message,
                    code: self.code.as_str(),
                });
                json(status, "application/problem+json", body)
            }
            Family::Tei => {
                let body = TeiError { error: self.message.clone(), error_type: self.code.tei_type().to_owned() };
                json(status, "application/json", serde_json::to_vec(&body))
            }
            Family::OpenAi => {
                let body = OpenAiError {
                    error: OpenAiErrorBody {
                        message: self.message.clone(),
                        kind: self.code.openai_type().to_owned(),
                        param: self.param.clone(),
                        code: Some(self.code.as_str().to_owned()),
                    },
                };
                json(status, "application/json", serde_json::to_vec(&body))
            }
        };
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
        }
        if self.never_retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

fn json(status: StatusCode, content_type: &'static str, body: serde_json::Result<Vec<u8>>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body.unwrap_or_default()).into_response()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status(Family::Native).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the error of a response in the words of the route's family. Stands outside everything that can fail.
pub async fn render(request: Request, next: Next) -> Response {
    let family = Family::of(request.method(), request.uri().path());
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    if family == Family::Tei {
        metrics::counter!(telemetry::TE_REQUEST_FAILURE, "err" => error.code.tei_type().to_ascii_lowercase())
            .increment(1);
    }
    let mut rendered = error.into_rendered(family);
    // A refused method says which would do.
    if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
        rendered.headers_mut().insert(header::ALLOW, allow);
    }
    rendered
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        let message = with_causes(&error);
        match error {
            ModelError::NotFound { .. } => Self::new(Code::ModelNotFound, message).with_param("model"),
            ModelError::Loading { .. } => {
                Self::new(Code::ModelLoading, message).with_retry_after(Duration::from_secs(5))
            }
            ModelError::Failed { permanent: true, .. } => Self::new(Code::ModelFailed, message).never_retry(),
            ModelError::Failed { retry_after, .. } => {
                Self::new(Code::ModelFailed, message).with_retry_after(retry_after)
            }
            ModelError::SpaceMismatch { .. } => Self::new(Code::SpaceMismatch, message).with_param("expect_space"),
            ModelError::Dimensions(_) => Self::new(Code::Dimensions, message).with_param("dimensions"),
            ModelError::UnknownPrompt { .. } => Self::new(Code::InvalidRequest, message).with_param("prompt_name"),
            ModelError::Engine(error) => error.into(),
            ModelError::Ledger(error) => error.into(),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = with_causes(&error);
        match error {
            EngineError::InputTooLong { .. } => Self::new(Code::InputTooLong, message).with_param("inputs"),
            EngineError::TokenOutOfVocabulary { .. } => Self::new(Code::TokenIds, message).with_param("inputs"),
            EngineError::Tokenize { .. } => Self::new(Code::InvalidRequest, message).with_param("inputs"),
            EngineError::Overloaded { retry_after, .. } => {
                Self::new(Code::Overloaded, message).with_retry_after(retry_after)
            }
            EngineError::Closed => Self::new(Code::ModelLoading, message).with_retry_after(Duration::from_secs(1)),
            _ => {
                tracing::error!("{message}");
                Self::internal()
            }
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        tracing::error!("{}", with_causes(&error));
        Self::new(Code::StoreUnavailable, format!("{error}: the database does not answer, see the log"))
            .with_retry_after(Duration::from_secs(5))
    }
}

/// An RFC 9457 problem document, as it is written.
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Always `about:blank`: the `code` says what kind of problem it is.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: String,
    /// The status.
    status: u16,
    /// What was wrong, the limit, and the way out.
    detail: String,
    /// A stable word to match on.
    code: String,
}

/// An error in the words of text-embeddings-inference.
#[derive(Serialize, ToSchema)]
pub struct TeiError {
    /// What was wrong, the limit, and the way out.
    error: String,
    /// `Empty`, `Validation`, `Tokenizer`, `NotFound`, `Forbidden`, `Overloaded`, `Unhealthy` or `Backend`.
    error_type: String,
}

/// An error in the words of OpenAI.
#[derive(Serialize, ToSchema)]
pub struct OpenAiError {
    error: OpenAiErrorBody,
}

/// The inside of an OpenAI error.
#[derive(Serialize, ToSchema)]
pub struct OpenAiErrorBody {
    /// What was wrong, the limit, and the way out.
    message: String,
    /// `invalid_request_error`, `not_found_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    kind: String,
    /// The field at fault.
    param: Option<String>,
    /// A stable word to match on.
    code: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_has_its_family() {
        let family = |method, path| Family::of(&method, path);
        for path in ["/", "/embed", "/similarity", "/info", "/health", "/models/m/embed", "/models/m/info"] {
            assert_eq!(family(Method::POST, path), Family::Tei, "{path}");
        }
        assert_eq!(family(Method::POST, "/models/m"), Family::Tei);
        for path in ["/models", "/models/m", "/models/m/load", "/models/active", "/health/ready", "/nope", "/a/b/embed"]
        {
            assert_eq!(family(Method::GET, path), Family::Native, "{path}");
        }
        assert_eq!(family(Method::GET, "/v1/nope"), Family::OpenAi);
    }
}
