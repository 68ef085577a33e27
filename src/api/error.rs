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

pub use super::code::{Code, Family};
use super::measured;
use crate::engine::EngineError;
use crate::grains::store::StoreError;
use crate::grains::{Refusal, RefusalKind};
use crate::models::lifecycle::FailureKind;
use crate::models::{LedgerError, ModelError};
use crate::telemetry::with_causes;

/// Tells OpenAI's clients whether to try again, whatever the status says.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

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

    /// The error of a request that has something else in a field than it takes.
    #[must_use]
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message).with_param(param)
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

    /// Tells OpenAI's clients not to try again: they would at once, or sleep through the time that others are told.
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

    /// The sentence the caller reads.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error of one part of the request: `grains[3]`, say.
    #[must_use]
    pub fn within(mut self, part: &str) -> Self {
        self.message = format!("`{part}`: {}", self.message);
        self.param = Some(self.param.map_or_else(|| part.to_owned(), |param| format!("{part}.{param}")));
        self
    }

    /// Whether it is about the inputs: its sentence begins with them, and nothing of the caller's stands before.
    #[must_use]
    pub fn is_of_inputs(&self) -> bool {
        self.param.as_deref().is_some_and(|param| param.starts_with("inputs"))
    }

    /// The same error in other words: those of a route that calls its fields otherwise.
    #[must_use]
    pub fn reworded(mut self, words: impl FnOnce(&str) -> String) -> Self {
        self.message = words(&self.message);
        self
    }

    /// The status on our own routes.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.code.status(Family::Native)
    }

    /// The problem document, as a part of an answer about several things.
    #[must_use]
    pub fn problem(&self) -> serde_json::Value {
        serde_json::to_value(self.as_problem()).unwrap_or_default()
    }

    fn as_problem(&self) -> ProblemBody {
        let status = self.status();
        ProblemBody {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: self.message.clone(),
            code: self.code.as_str(),
        }
    }

    /// A bug: the caller learns that it is ours, and the log has the rest.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            Code::Internal,
            "Granary met a bug on this request; its log has the details under this request's `x-request-id`",
        )
    }

    /// The database's error. What makes room on its disk is not the time.
    pub(super) fn of_database(refusal: &Refusal) -> Self {
        let error = Self::of_refusal(refusal);
        if refusal.kind == RefusalKind::DiskFull { error } else { error.with_retry_after(Duration::from_secs(5)) }
    }

    fn into_rendered(self, family: Family, method: &Method) -> Response {
        let status = self.code.status(family);
        let mut response = match family {
            Family::Native => json(status, "application/problem+json", serde_json::to_vec(&self.as_problem())),
            Family::Tei => {
                let (status, kind) = self.code.of_tei(method);
                let body = TeiError { error: self.message.clone(), error_type: kind.to_owned() };
                json(status, "application/json", serde_json::to_vec(&body))
            }
            Family::OpenAi => {
                // The services say `inputs`, as TEI does; OpenAI's field is `input`.
                let message = if self.is_of_inputs() {
                    self.message.replacen("`inputs", "`input", 1)
                } else {
                    self.message.clone()
                };
                let body = OpenAiError {
                    error: OpenAiErrorBody {
                        message,
                        kind: self.code.openai_type().to_owned(),
                        param: self.param.as_deref().map(|param| match param.strip_prefix("inputs") {
                            Some(place) => format!("input{place}"),
                            None => param.to_owned(),
                        }),
                        code: self.code.as_str(),
                    },
                };
                json(status, "application/json", serde_json::to_vec(&body))
            }
        };
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            // Rounded up: the header counts whole seconds.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
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
    let method = request.method().clone();
    let family = Family::of(&method, request.uri().path());
    let (mut response, is_open) = measured::noting(next.run(request)).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    if is_open {
        measured::count_failure(error.code);
    }
    let code = error.code;
    let mut rendered = error.into_rendered(family, &method);
    rendered.extensions_mut().insert(code); // for the log: some clients show nothing of an error
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
            ModelError::Loading { .. } | ModelError::Draining { .. } | ModelError::Stopping { .. } => {
                Self::new(Code::ModelLoading, message).with_retry_after(Duration::from_secs(5))
            }
            ModelError::Failed { permanent, retry_after, kind, .. } => {
                let error = Self::new(code_of(kind), message);
                if permanent { error.never_retry() } else { error.with_retry_after(retry_after) }
            }
            ModelError::Disabled { .. } => {
                Self::new(Code::ModelDisabled, message).with_retry_after(Duration::from_mins(1)).never_retry()
            }
            ModelError::GrainWrites { .. } | ModelError::Stuck { .. } | ModelError::Conflict(_) => {
                Self::new(Code::Conflict, message)
            }
            ModelError::Invalid(_) => Self::new(Code::InvalidRequest, message),
            ModelError::SpaceMismatch { field, .. } => Self::new(Code::SpaceMismatch, message).with_param(field),
            ModelError::Dimensions(_) => Self::new(Code::Dimensions, message).with_param("dimensions"),
            ModelError::UnknownPrompt { .. } => Self::invalid("prompt_name", message),
            ModelError::PromptBeforeIds { field } => Self::invalid(field, message),
            ModelError::Engine(error) => error.into(),
            ModelError::Ledger(error) => error.into(),
        }
    }
}

/// The code of a failed load.
fn code_of(kind: FailureKind) -> Code {
    match kind {
        FailureKind::Model => Code::ModelFailed,
        FailureKind::Memory => Code::MemoryBudget,
        FailureKind::Disk => Code::DiskFull,
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = with_causes(&error);
        match error {
            EngineError::InputTooLong { index, .. } => {
                Self::new(Code::InputTooLong, message).with_param(format!("inputs[{index}]"))
            }
            EngineError::TooManyTokens { .. } => Self::new(Code::TooManyTokens, message),
            EngineError::TokenOutOfVocabulary { index, .. } => {
                Self::new(Code::TokenIds, message).with_param(format!("inputs[{index}]"))
            }
            EngineError::NotDecodable { .. } => Self::new(Code::TokenIds, message).with_param("ids"),
            EngineError::Tokenize { .. } => Self::invalid("inputs", message),
            EngineError::Overloaded { retry_after, .. } => {
                Self::new(Code::Overloaded, message).with_retry_after(retry_after)
            }
            EngineError::NoMemory { .. } => {
                tracing::warn!("{message}");
                Self::new(Code::MemoryBudget, message).with_param("inputs")
            }
            // The model makes it of this text each time.
            EngineError::NotANumber { index, .. } => {
                tracing::error!("{message}");
                Self::new(Code::ModelFailed, message).with_param(format!("inputs[{index}]")).never_retry()
            }
            EngineError::Closed => Self::new(Code::ModelLoading, message).with_retry_after(Duration::from_secs(1)),
            _ => {
                tracing::error!("{message}");
                Self::internal()
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::of_database(&Refusal::of_store(&error))
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        Self::of_database(&Refusal::of_ledger(&error))
    }
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Always `about:blank`: the `code` says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    /// The status.
    status: u16,
    /// What was wrong, the limit, and the way out.
    detail: String,
    /// A stable word to match on.
    code: &'static str,
}

/// An error in the words of text-embeddings-inference.
#[derive(Serialize, ToSchema)]
pub struct TeiError {
    /// What was wrong, the limit, and the way out.
    error: String,
    /// `Empty`, `Validation`, `Tokenizer`, `NotFound`, `Unauthorized`, `Forbidden`, `Overloaded`, `Unhealthy` or `Backend`.
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
    /// `invalid_request_error`, `authentication_error`, `not_found_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    kind: String,
    /// The field at fault.
    #[schema(required)]
    param: Option<String>,
    /// A stable word to match on.
    code: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ModelName;
    use crate::grains::GrainError;

    #[test]
    fn who_waited_for_a_model_in_vain_is_told_when_to_try_again() {
        let name = || ModelName::parse("tiny").expect("a name");
        let (waited, retry_after) = (Duration::from_secs(30), Duration::from_millis(12_300));
        let failed = |permanent| {
            let (reason, kind) = (String::new(), FailureKind::Model);
            ModelError::Failed { name: name(), reason, retry_after, permanent, kind }
        };
        for (error, code, seconds) in [
            (ModelError::Loading { name: name(), waited }, Code::ModelLoading, Some("5")),
            (ModelError::Draining { name: name(), waited }, Code::ModelLoading, Some("5")),
            (ModelError::Stopping { name: name() }, Code::ModelLoading, Some("5")),
            (ModelError::Engine(EngineError::Closed), Code::ModelLoading, Some("1")),
            (failed(false), Code::ModelFailed, Some("13")),
            (failed(true), Code::ModelFailed, None),
        ] {
            let error = ApiError::from(error);
            assert_eq!(error.code(), code, "{error:?}");
            let response = error.clone().into_rendered(Family::Native, &Method::POST);
            let header = response.headers().get(header::RETRY_AFTER);
            assert_eq!(header.map(|value| value.to_str().expect("ASCII")), seconds, "{error:?}");
        }
    }

    #[test]
    fn a_database_that_is_busy_is_not_away() {
        let busy = || StoreError::Overloaded { path: "data/granary.db".into(), doing: "search for words" };
        let ledger = LedgerError { action: "read", source: busy().into() };
        let halfway = GrainError::Halfway { deleted: 5_000, found: 7_000, source: busy() };
        for error in [ApiError::from(busy()), ApiError::from(ledger), ApiError::from(halfway)] {
            assert_eq!((error.code(), error.retry_after), (Code::Overloaded, Some(Duration::from_secs(5))));
            assert!(!error.message().contains("granary.db"), "{}", error.message());
        }
    }
}
