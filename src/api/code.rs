//! What kinds of error there are, and which routes share a way to write them.

use axum::http::{Method, StatusCode};

use crate::telemetry::failure;

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

/// TEI's routes for models of other kinds, at the same places. They are no routes here; who asks is told so as by TEI.
const TEI_ROUTES_OF_OTHER_KINDS: [&str; 4] = ["rerank", "predict", "embed_sparse", "embed_all"];

impl Family {
    /// The family of a request.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Self {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments.as_slice() {
            // With two segments for a model, the slash in its name should have been `%2F`: its client reads these words.
            ["v1", ..]
            | ["embeddings"]
            | ["models", _, "v1" | "embeddings", ..]
            | ["models", _, _, "v1" | "embeddings", ..] => Self::OpenAi,
            // The root of the server and of a model, and what SageMaker asks for in its place.
            ["" | "ping" | "invocations"] | ["models", _, ""] => Self::Tei,
            [route] | ["models", _, route] | ["models", _, _, route] if TEI_ROUTES.contains(route) => Self::Tei,
            _ if is_of_another_kind(path) => Self::Tei,
            // The URL that InferenceClient posts to when it is given a model's page.
            ["models", _] if method == Method::POST => Self::Tei,
            _ => Self::Native,
        }
    }
}

/// Whether TEI has something at a path that needs a model of another kind than those that are served here.
#[must_use]
pub fn is_of_another_kind(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let of_route = |route: &&str| TEI_ROUTES_OF_OTHER_KINDS.contains(route);
    matches!(segments.as_slice(), [route] | ["models", _, route] | ["models", _, _, route] if of_route(route))
}

/// An enum of codes, and the list that none of them can be missing from.
macro_rules! codes {
    ($(#[$of_all:meta])* pub enum $name:ident { $($(#[$of_one:meta])* $code:ident,)* }) => {
        $(#[$of_all])*
        pub enum $name {
            $($(#[$of_one])* $code,)*
        }

        #[cfg(test)]
        const ALL: &[$name] = &[$($name::$code),*];
    };
}

codes! {
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
        /// More tokens than a request may have.
        TooManyTokens,
        /// A text is longer than the model takes and may not be cut.
        InputTooLong,
        /// Token ids where text is needed, or ids of another vocabulary.
        TokenIds,
        /// A vector length that the model does not offer.
        Dimensions,
        /// No key, or none that is known.
        Unauthorized,
        /// The key does not allow it, or the page that sent the request has no business here.
        Forbidden,
        /// What is asked contradicts what there is.
        Conflict,
        /// No such model.
        ModelNotFound,
        /// No such grain.
        GrainNotFound,
        /// No such path.
        NotFound,
        /// The `Host` is not this server's.
        Misdirected,
        /// The path has other methods.
        MethodNotAllowed,
        /// The vectors would be in another space than the expected one.
        SpaceMismatch,
        /// The grain is in another version than the caller has seen.
        VersionMismatch,
        /// The body is over the limit.
        BodyTooLarge,
        /// The body stopped coming.
        SlowBody,
        /// The body is not declared as JSON.
        ContentType,
        /// No model here can do it.
        Unsupported,
        /// The queue is full, there are too many requests at once, or the rate of the key is used up.
        Overloaded,
        /// The model is still loading or being unloaded, or the server is stopping.
        ModelLoading,
        /// The operator has disabled the model.
        ModelDisabled,
        /// The model cannot be loaded.
        ModelFailed,
        /// The model does not fit beside the others.
        MemoryBudget,
        /// There is no room on the disk.
        DiskFull,
        /// The database does not answer.
        StoreUnavailable,
        /// The request took longer than the server allows.
        Timeout,
        /// A bug.
        Internal,
    }
}

/// What clients are told by of an error.
struct Row {
    word: &'static str,
    status: StatusCode,
    tei: &'static str,
    label: &'static str,
}

impl Row {
    const fn new(word: &'static str, status: StatusCode, tei: &'static str, label: &'static str) -> Self {
        Self { word, status, tei, label }
    }
}

impl Code {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().word
    }

    /// The HTTP status, as the family's clients expect it; of TEI's, see [`Self::of_tei`].
    #[must_use]
    pub fn status(self, family: Family) -> StatusCode {
        match (self.row().status, family) {
            // OpenAI's clients know no 422.
            (StatusCode::UNPROCESSABLE_ENTITY, Family::OpenAi) => StatusCode::BAD_REQUEST,
            (status, _) => status,
        }
    }

    /// The HTTP status and the `error_type` on TEI's routes, in answer to this method.
    #[must_use]
    pub fn of_tei(self, method: &Method) -> (StatusCode, &'static str) {
        let Row { status, tei, .. } = self.row();
        if *method != Method::POST || status != StatusCode::SERVICE_UNAVAILABLE || self == Self::ModelLoading {
            return (status, tei);
        }
        // Hugging Face's client for JavaScript sends again what was answered 503, at once and without end. TEI says 503
        // to those alone who ask how it is; here a load, an unload and a stop are 503 as well: they pass by themselves.
        let status = if self == Self::Timeout { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::FAILED_DEPENDENCY };
        (status, "Backend")
    }

    /// The label `err` of TEI's counter of failures.
    #[must_use]
    pub fn failure_label(self) -> &'static str {
        self.row().label
    }

    const fn row(self) -> Row {
        use StatusCode as Status;
        use failure::{BATCH_SIZE, INFERENCE, OVERLOADED, TOKENIZATION, VALIDATION};

        match self {
            Self::MalformedJson => Row::new("malformed_json", Status::BAD_REQUEST, "Validation", VALIDATION),
            Self::EmptyInput => Row::new("empty_input", Status::BAD_REQUEST, "Empty", VALIDATION),
            Self::InvalidRequest => Row::new("invalid_request", Status::UNPROCESSABLE_ENTITY, "Validation", VALIDATION),
            Self::TooManyInputs => Row::new("too_many_inputs", Status::UNPROCESSABLE_ENTITY, "Validation", BATCH_SIZE),
            Self::TooManyTokens => Row::new("too_many_tokens", Status::UNPROCESSABLE_ENTITY, "Validation", BATCH_SIZE),
            Self::InputTooLong => Row::new("input_too_long", Status::UNPROCESSABLE_ENTITY, "Validation", TOKENIZATION),
            Self::TokenIds => Row::new("token_ids", Status::BAD_REQUEST, "Tokenizer", TOKENIZATION),
            Self::Dimensions => Row::new("dimensions", Status::UNPROCESSABLE_ENTITY, "Validation", VALIDATION),
            Self::Unauthorized => Row::new("unauthorized", Status::UNAUTHORIZED, "Unauthorized", VALIDATION),
            Self::Forbidden => Row::new("forbidden", Status::FORBIDDEN, "Forbidden", VALIDATION),
            Self::Conflict => Row::new("conflict", Status::CONFLICT, "Validation", VALIDATION),
            Self::ModelNotFound => Row::new("model_not_found", Status::NOT_FOUND, "NotFound", VALIDATION),
            Self::GrainNotFound => Row::new("grain_not_found", Status::NOT_FOUND, "NotFound", VALIDATION),
            Self::NotFound => Row::new("not_found", Status::NOT_FOUND, "NotFound", VALIDATION),
            Self::Misdirected => Row::new("misdirected", Status::MISDIRECTED_REQUEST, "Forbidden", VALIDATION),
            Self::MethodNotAllowed => {
                Row::new("method_not_allowed", Status::METHOD_NOT_ALLOWED, "Validation", VALIDATION)
            }
            Self::SpaceMismatch => Row::new("space_mismatch", Status::PRECONDITION_FAILED, "Validation", VALIDATION),
            Self::VersionMismatch => {
                Row::new("version_mismatch", Status::PRECONDITION_FAILED, "Validation", VALIDATION)
            }
            Self::BodyTooLarge => Row::new("body_too_large", Status::PAYLOAD_TOO_LARGE, "Validation", VALIDATION),
            Self::SlowBody => Row::new("slow_body", Status::REQUEST_TIMEOUT, "Validation", VALIDATION),
            Self::ContentType => Row::new("content_type", Status::UNSUPPORTED_MEDIA_TYPE, "Validation", VALIDATION),
            Self::Unsupported => Row::new("unsupported", Status::FAILED_DEPENDENCY, "Backend", VALIDATION),
            Self::Overloaded => Row::new("overloaded", Status::TOO_MANY_REQUESTS, "Overloaded", OVERLOADED),
            Self::ModelLoading => Row::new("model_loading", Status::SERVICE_UNAVAILABLE, "Unhealthy", INFERENCE),
            Self::ModelDisabled => Row::new("model_disabled", Status::SERVICE_UNAVAILABLE, "Unhealthy", INFERENCE),
            Self::ModelFailed => Row::new("model_failed", Status::SERVICE_UNAVAILABLE, "Unhealthy", INFERENCE),
            Self::MemoryBudget => Row::new("memory_budget", Status::INSUFFICIENT_STORAGE, "Backend", INFERENCE),
            Self::DiskFull => Row::new("disk_full", Status::INSUFFICIENT_STORAGE, "Backend", INFERENCE),
            Self::StoreUnavailable => {
                Row::new("store_unavailable", Status::SERVICE_UNAVAILABLE, "Unhealthy", INFERENCE)
            }
            Self::Timeout => Row::new("timeout", Status::SERVICE_UNAVAILABLE, "Unhealthy", INFERENCE),
            Self::Internal => Row::new("internal", Status::INTERNAL_SERVER_ERROR, "Backend", INFERENCE),
        }
    }

    /// OpenAI's `type`.
    #[must_use]
    pub fn openai_type(self) -> &'static str {
        match self.status(Family::OpenAi) {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
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
        for path in ["/ping", "/invocations", "/models/m", "/models/m/", "/rerank", "/models/m/embed_sparse"] {
            assert_eq!(family(Method::POST, path), Family::Tei, "{path}");
        }
        for path in ["/models", "/models/m", "/models/m/load", "/models/active", "/health/ready", "/nope", "/a/b/embed"]
        {
            assert_eq!(family(Method::GET, path), Family::Native, "{path}");
        }
        for path in
            ["/v1/nope", "/embeddings", "/models/m/embeddings", "/models/m/v1/embeddings", "/models/m/v1/models"]
        {
            assert_eq!(family(Method::GET, path), Family::OpenAi, "{path}");
        }
    }

    /// The rows of docs/errors.md, one for each of their words: the status, the word and the `error_type`.
    fn documented() -> Vec<(u16, &'static str, &'static str)> {
        let (_, section) = include_str!("../../docs/errors.md").split_once("\n## All errors\n").expect("the section");
        let (table, _) = section.split_once("\n## ").expect("the next section");
        let mut documented = Vec::new();
        for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [status, words, _, _, kind] = cells[..] else { panic!("not five cells: {row}") };
            let status = status.parse().unwrap_or_else(|_| panic!("no status: {row}"));
            let words = words.split('`').skip(1).step_by(2);
            documented.extend(words.map(|word| (status, word, kind.trim_matches('`'))));
        }
        documented
    }

    #[test]
    fn the_table_of_errors_has_each_code_once_with_its_status_and_its_error_type() {
        let mut expected = Vec::new();
        for &code in ALL {
            let of_tei = |method| {
                let (status, kind) = code.of_tei(&method);
                (status.as_u16(), code.as_str(), kind)
            };
            let (asked, posted) = (of_tei(Method::GET), of_tei(Method::POST));
            // None of TEI's routes answers these.
            let is_native = matches!(code, Code::Conflict | Code::GrainNotFound | Code::VersionMismatch);
            expected.push(if is_native { (asked.0, asked.1, "–") } else { asked });
            if posted != asked {
                expected.push(posted);
            }
        }
        let mut documented = documented();
        assert!(documented.is_sorted_by_key(|(status, ..)| *status), "in the order of the status: {documented:?}");
        expected.sort_unstable();
        documented.sort_unstable();
        assert_eq!(documented, expected);
    }

    #[test]
    fn openais_routes_answer_400_wherever_others_answer_422() {
        for &code in ALL {
            let (own, openais) = (code.status(Family::Native).as_u16(), code.status(Family::OpenAi).as_u16());
            assert_eq!(openais, if own == 422 { 400 } else { own }, "{code:?}");
        }
    }

    #[test]
    fn of_what_is_posted_in_teis_language_only_model_loading_is_503() {
        for (code, status, kind) in [
            (Code::ModelLoading, 503, "Unhealthy"),
            (Code::ModelDisabled, 424, "Backend"),
            (Code::ModelFailed, 424, "Backend"),
            (Code::StoreUnavailable, 424, "Backend"),
            (Code::Timeout, 504, "Backend"),
            (Code::Overloaded, 429, "Overloaded"),
        ] {
            let (found, named) = code.of_tei(&Method::POST);
            assert_eq!((found.as_u16(), named), (status, kind), "{code:?}");
            let asked = code.of_tei(&Method::GET);
            assert_eq!(asked, (code.status(Family::Tei), code.row().tei), "{code:?}: how the server is");
        }
    }

    #[test]
    fn openais_clients_are_told_the_type_they_know() {
        for (code, name) in [
            (Code::Unauthorized, "authentication_error"),
            (Code::ModelNotFound, "not_found_error"),
            (Code::Overloaded, "rate_limit_error"),
            (Code::ModelLoading, "server_error"),
            (Code::Internal, "server_error"),
            (Code::Forbidden, "invalid_request_error"),
            (Code::Dimensions, "invalid_request_error"),
        ] {
            assert_eq!(code.openai_type(), name, "{code:?}");
        }
    }
}
