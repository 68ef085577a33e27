//! Reading requests: JSON bodies, models in paths, and spaces, each refused with a sentence that helps.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
pub use axum::extract::rejection::QueryRejection as QueryRejected;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::BytesMut;
use bytesize::ByteSize;
use serde::de::{DeserializeOwned, IgnoredAny};
use sha2::{Digest, Sha256};

use super::access::Holder;
use super::bodies::{SlowBody, cause};
use super::body_memory::{BodyShare, NoMemory};
use super::error::{ApiError, Code};
use super::state::AppState;
use crate::domain::{ModelName, SpaceId, hex_digits};
use crate::grains::Token;
use crate::grains::store::ReceiptKey;
use crate::json::parsed_bytes;

/// A JSON body. `null` means absent in every optional field. Unknown fields are ignored on the routes of TEI and OpenAI,
/// as their clients expect, and refused on the server's own, where one may be a condition under a wrong name.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        parse_object(&json_bytes(request, state).await?).map(Self)
    }
}

/// A JSON body that may be sent twice: with an `Idempotency-Key`, the second time is known for what it is.
pub struct Keyed<T> {
    /// The body.
    pub body: T,
    /// What tells a repeated request from a new one.
    pub token: Option<Token>,
}

impl<T: DeserializeOwned> FromRequest<AppState> for Keyed<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let key = idempotency_key(&request)?;
        let caller = request.extensions().get::<Holder>().map(|Holder(key)| key.name.to_string()).unwrap_or_default();
        let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let bytes = json_bytes(request, state).await?;
        let token = key.map(|key| {
            let hash = Sha256::new().chain_update(&target).chain_update([0]).chain_update(&bytes).finalize();
            // Without API keys all callers share one name.
            Token { key: ReceiptKey { caller: caller.clone(), key }, request: hex_digits(&hash) }
        });
        Ok(Self { body: parse_object(&bytes)?, token })
    }
}

fn idempotency_key(request: &Request) -> Result<Option<String>, ApiError> {
    const MAX_CHARS: usize = 255;
    let mut values = request.headers().get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let sentence = match value.to_str() {
        _ if values.next().is_some() => "`Idempotency-Key` is there more than once: send one key".to_owned(),
        Ok(key) if (1..=MAX_CHARS).contains(&key.len()) => return Ok(Some(key.to_owned())),
        _ => format!("`Idempotency-Key` has 1 to {MAX_CHARS} visible characters of ASCII"),
    };
    Err(ApiError::invalid("Idempotency-Key", sentence))
}

/// Refuses a compressed body: what is small on its way could become anything here.
///
/// # Errors
/// When the request names an encoding.
pub fn refuse_encoded(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_plain = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
        return Ok(());
    }
    Err(ApiError::new(Code::ContentType, "the body has a `content-encoding`: send it as it is, without one"))
}

async fn json_bytes(request: Request, state: &AppState) -> Result<Bytes, ApiError> {
    refuse_encoded(request.headers())?;
    require_json(request.headers())?;
    whole(request, state).await
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    if content_type.as_deref().is_some_and(is_json) {
        return Ok(());
    }
    let found = content_type.map_or("none".to_owned(), |found| format!("`{}`", shortened(&found)));
    Err(ApiError::new(Code::ContentType, format!("the content type is {found}; send `content-type: application/json`")))
}

/// The whole body, which counts among those in memory until the request is answered: its bytes, and what they become.
async fn whole(request: Request, state: &AppState) -> Result<Bytes, ApiError> {
    if asks_for_too_much(request.headers(), state.limits.max_body) {
        return Err(too_large(state));
    }
    let share = request.extensions().get::<BodyShare>().cloned();
    let share = share.unwrap_or_else(|| BodyShare::new(Arc::clone(&state.body_memory)));
    let request = request.map(|body| share.clone().counted(body));
    // One piece of memory: each of a thousand small ones would take more than it holds.
    let bytes = BytesMut::from_request(request, state).await.map_err(|error| body_error(&error, state))?;
    share.take(parsed_bytes(&bytes))?;
    Ok(bytes.freeze())
}

/// Whether a caller that waits for `100 Continue` before it sends the body announces more than is read. Any other has
/// begun to send, and would lose the answer with the connection if nothing were read.
fn asks_for_too_much(headers: &HeaderMap, max_body: ByteSize) -> bool {
    let n_bytes = text(headers, header::CONTENT_LENGTH).and_then(|value| value.parse::<u64>().ok());
    awaits_continue(headers) && n_bytes.is_some_and(|n_bytes| n_bytes > max_body.as_u64())
}

/// Whether the caller sends no body before it is told `100 Continue`, which it is when the body is first asked for. Once
/// an answer has begun nobody tells it any more.
pub fn awaits_continue(headers: &HeaderMap) -> bool {
    text(headers, header::EXPECT).is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A JSON body that may be left out: an empty one, or `null`, counts as `{}`.
pub struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<AppState> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        refuse_encoded(request.headers())?;
        let headers = request.headers().clone();
        let bytes = whole(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        require_json(&headers)?;
        Ok(Self(parse_object::<Option<T>>(&bytes)?.unwrap_or_default()))
    }
}

/// The caller's word for a model in the path: a name or an alias.
pub struct ModelWord(pub String);

impl FromRequestParts<AppState> for ModelWord {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let word = Path::<String>::from_request_parts(parts, state).await;
        word.map(|Path(word)| Self(word))
            .map_err(|_| ApiError::new(Code::ModelNotFound, "the model's name in the path is not UTF-8"))
    }
}

/// The model that the caller's key means where a request names none.
pub struct UsualModel(Option<ModelName>);

impl UsualModel {
    /// The model that the request names, or else the key's; `None` is the active one. A blank name is none on the routes of
    /// TEI and OpenAI: clients that were written for TEI send one.
    #[must_use]
    pub fn unless(&self, named: Option<String>) -> Option<String> {
        let named = named.filter(|name| !name.trim().is_empty());
        named.or_else(|| self.0.as_ref().map(ToString::to_string))
    }
}

impl<S: Sync> FromRequestParts<S> for UsualModel {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<Holder>().and_then(|Holder(key)| key.model.clone())))
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn body_error(error: &BytesRejection, state: &AppState) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return too_large(state);
    }
    if let Some(error) = cause::<NoMemory>(error) {
        return error.into();
    }
    cause::<SlowBody>(error)
        .map_or_else(|| ApiError::new(Code::MalformedJson, "the body could not be read to its end"), Into::into)
}

fn too_large(state: &AppState) -> ApiError {
    let limit = state.limits.max_body;
    let sentence = format!("the body is over {limit}; send fewer inputs a request, or raise `server.max_body`");
    ApiError::new(Code::BodyTooLarge, sentence)
}

/// What a body says. Every one is an object, and a list would be taken for its fields in their order.
fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let parsed = parse(bytes);
    let is_json = !matches!(&parsed, Err(error) if error.code() == Code::MalformedJson);
    if is_json && is_list(bytes) {
        return Err(ApiError::new(Code::InvalidRequest, "the body is a list: send an object"));
    }
    if is_json && parsed.is_err() && !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::new(Code::InvalidRequest, "the body is not an object: send one"));
    }
    parsed
}

/// Whether JSON is a list.
pub(super) fn is_list(json: &[u8]) -> bool {
    json.trim_ascii_start().starts_with(b"[")
}

/// What some programs put before a text in UTF-8, and JSON does not have.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        let sentence = "the body is not JSON: it begins with a byte order mark. Send it without one";
        return Err(ApiError::new(Code::MalformedJson, sentence));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        // The parser calls it broken syntax when a number is too large; but JSON has numbers of any size, which can only be
        // skipped. Whether the body is JSON is told by reading all of it.
        if error.is_syntax()
            && error.to_string().starts_with("number out of range")
            && serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
        {
            let sentence = "the number is not finite: the largest is 3.4e38 in a vector, and 1.8e308 elsewhere";
            return value_error(sentence, &path);
        }
        json_error(&error, &path)
    })?;
    deserializer.end().map_err(|error| json_error(&error, "."))?;
    Ok(parsed)
}

fn json_error(error: &serde_json::Error, path: &str) -> ApiError {
    // The place in the text helps with syntax; for fields their path does.
    if !error.is_data() {
        let sentence = format!("the body is not JSON: {error}");
        // What the parser says of half of a surrogate pair, and of nothing else.
        if !sentence.contains("hex escape") {
            return ApiError::new(Code::MalformedJson, sentence);
        }
        let place = if path.ends_with(['.', '?']) { "a string".to_owned() } else { format!("`{}`", shortened(path)) };
        let half = "holds half of a surrogate pair: a character was cut in two. Cut texts between characters";
        return ApiError::new(Code::MalformedJson, format!("{sentence}: {place} {half}"));
    }
    let sentence = error.to_string();
    let sentence = sentence.rsplit_once(" at line ").map_or(sentence.as_str(), |(sentence, _)| sentence);
    value_error(sentence, path)
}

/// What is wrong with a value of a body that is JSON.
pub(super) fn value_error(sentence: &str, path: &str) -> ApiError {
    if path == "." {
        return ApiError::new(Code::InvalidRequest, shortened(sentence));
    }
    let field = path.split(['.', '[']).next().unwrap_or_default();
    ApiError::invalid(shortened(field), format!("`{}`: {}", shortened(path), shortened(sentence)))
}

/// A caller's text in an error: its beginning.
pub(super) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    if text.chars().count() <= MAX_CHARS {
        text.to_owned()
    } else {
        text.chars().take(MAX_CHARS).chain(['…']).collect()
    }
}

/// Why a query was not read. Either a parameter stands in it twice or is unknown, or `param` has a value that it does not
/// take, and `sentence` says which it does: no other one can be wrong here, since the others are read as any text.
#[must_use]
pub fn query_error(rejected: &QueryRejected, param: &str, sentence: &str) -> ApiError {
    let text = rejected.body_text();
    let unknown = text.rsplit_once("unknown field `").and_then(|(_, rest)| rest.rsplit_once("`, expected "));
    if let Some((name, expected)) = unknown {
        let name = shortened(name);
        let sentence = format!("unknown parameter `{name}` in the query, expected {expected}");
        return ApiError::invalid(name, sentence);
    }
    let repeated = text.rsplit_once("duplicate field `").and_then(|(_, rest)| rest.strip_suffix('`'));
    match repeated {
        Some(name) => {
            let sentence = format!("`{name}` stands twice in the query: send it once");
            ApiError::invalid(name, sentence)
        }
        None => ApiError::invalid(param, sentence),
    }
}

/// The space a request expects its vectors in.
///
/// # Errors
/// When it is not a space id.
pub fn expected_space(text: Option<&str>) -> Result<Option<SpaceId>, ApiError> {
    space_in("expect_space", text)
}

/// The space that a field names.
///
/// # Errors
/// When it is not a space id.
pub fn space_in(field: &str, text: Option<&str>) -> Result<Option<SpaceId>, ApiError> {
    text.map(|text| required_space(field, text)).transpose()
}

/// The same for a field that is there.
///
/// # Errors
/// When it is not a space id.
pub fn required_space(field: &str, text: &str) -> Result<SpaceId, ApiError> {
    SpaceId::parse(text).map_err(|error| ApiError::invalid(field, format!("`{field}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::grains::search::SearchBody;
    use super::*;

    #[test]
    fn another_value_where_a_word_belongs_is_no_broken_json() {
        for (fields, code, said) in [
            (r#""mode": 1}"#, Code::InvalidRequest, "`mode`: invalid type: integer `1`, expected one of its words"),
            (
                r#""mode": {"dense": null}}"#,
                Code::InvalidRequest,
                "`mode`: invalid type: map, expected one of its words",
            ),
            (r#""mode": "sparse"}"#, Code::InvalidRequest, "`dense`"),
            (r#""limit": 1e999}"#, Code::InvalidRequest, "`limit`: the number is not finite"),
            (r#""limit": 1e999"#, Code::MalformedJson, "not JSON"),
            (r#""mode": "dense""#, Code::MalformedJson, "not JSON"),
            (r#""mode": }"#, Code::MalformedJson, "not JSON"),
            (r#""mode": "\ud800"}"#, Code::MalformedJson, "`mode` holds half of a surrogate pair"),
            (r#""\udc00": 1}"#, Code::MalformedJson, "a string holds half of a surrogate pair"),
            (r#""limit": 1} {"#, Code::MalformedJson, "not JSON"),
            (r#""filters": {}}"#, Code::InvalidRequest, "`filters`: unknown field `filters`, expected one of `query`"),
        ] {
            let body = format!(r#"{{"query": "a", {fields}"#);
            let error = parse::<SearchBody>(body.as_bytes()).expect_err("refused");
            assert_eq!(error.code(), code, "{body}: {}", error.message());
            assert!(error.message().contains(said), "{body}: {}", error.message());
        }
    }

    #[test]
    fn json_is_json_whatever_its_parameters() {
        assert!(
            is_json("application/json") && is_json("Application/JSON; charset=utf-8") && is_json("application/x+json")
        );
        assert!(!is_json("text/plain") && !is_json("") && !is_json("text/json+json"));
    }
}
