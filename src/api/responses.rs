//! The answers that routes share, for the OpenAPI document: the errors of each family, and vectors.

use utoipa::IntoResponses;

use super::embed::RootAnswer;
use super::error::{OpenAiError, ProblemBody, TeiError};
use super::openai::EmbeddingList;

/// The answer of a route that embeds, with the headers that say what made the vectors. Unlike that of a route's own answer,
/// the schema of a body is not gathered: one with a name stands in the head of the document.
#[rustfmt::skip]
macro_rules! embedded {
    ($(#[$description:meta])* $name:ident($($body:tt)+)) => {
        $(#[$description])*
        #[derive(IntoResponses)]
        #[response(status = 200, headers(
            ("x-model" = String, description = "The model that made the vectors"),
            ("x-space" = String, description = "The space the vectors are in"),
            ("x-dimensions" = u64, description = "The length of each vector"),
            ("x-truncated" = String, description = "How many inputs were cut, then which"),
        ))]
        #[allow(dead_code, reason = "utoipa reads the field")]
        pub struct $name($($body)+);
    };
}

embedded! {
    /// One vector per input
    Vectors(Vec<Vec<f32>>)
}

embedded! {
    /// One cosine similarity per sentence
    Similarities(Vec<f32>)
}

embedded! {
    /// One vector per input, or one similarity per sentence
    VectorsOrSimilarities(RootAnswer)
}

embedded! {
    /// One vector per input
    ListOfVectors(EmbeddingList)
}

/// What any of our own routes can answer besides its success.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "utoipa reads the variants")]
pub enum NativeErrors {
    /// The server needs a key, and none was sent or it is not known.
    #[response(status = 401, content_type = "application/problem+json", headers(
        ("www-authenticate" = String, description = "`Bearer`"),
    ))]
    Unauthorized(ProblemBody),
    /// The key does not have the scope; or, without keys, a page of another origin sent the request.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemBody),
    /// The path has other methods.
    #[response(status = 405, content_type = "application/problem+json")]
    MethodNotAllowed(ProblemBody),
    /// The `Host` header names another server.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(ProblemBody),
    /// The server is answering as many requests as it may, or the key's rate is used up.
    #[response(status = 429, content_type = "application/problem+json", headers(
        ("retry-after" = u64, description = "Seconds until the next request is taken"),
    ))]
    RateExceeded(ProblemBody),
    /// A bug.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemBody),
    /// The request took too long, the database does not answer, or a model is not to be had.
    #[response(status = 503, content_type = "application/problem+json", headers(
        ("retry-after" = u64, description = "Seconds until trying again makes sense"),
        ("x-should-retry" = String, description = "`false` where OpenAI's clients are not to try again"),
    ))]
    Unavailable(ProblemBody),
}

/// A model named in the path does not exist.
#[derive(IntoResponses)]
#[response(status = 404, description = "No model has this name", content_type = "application/problem+json")]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct UnknownModel(ProblemBody);

/// What is asked contradicts what there is.
#[derive(IntoResponses)]
#[response(status = 409, description = "It contradicts what there is", content_type = "application/problem+json")]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct Conflict(ProblemBody);

/// A model does not fit beside those that cannot be unloaded, or what is to be kept does not fit on the disk.
#[derive(IntoResponses)]
#[response(
    status = 507,
    description = "There is no room: in memory for the model, or on the disk",
    content_type = "application/problem+json",
    headers(
        ("retry-after" = u64, description = "Seconds until trying again makes sense"),
        ("x-should-retry" = String, description = "`false` where OpenAI's clients are not to try again"),
    )
)]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct NoRoom(ProblemBody);

/// What a body can get wrong on our own routes.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "utoipa reads the variants")]
pub enum NativeBodyErrors {
    /// The body is not JSON.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(ProblemBody),
    /// The body stopped coming.
    #[response(status = 408, content_type = "application/problem+json")]
    Slow(ProblemBody),
    /// The body is over the limit.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemBody),
    /// The body is not declared as JSON.
    #[response(status = 415, content_type = "application/problem+json")]
    ContentType(ProblemBody),
    /// A field is missing, of the wrong type, or out of its range.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(ProblemBody),
}

/// The errors of a family without a media type of their own, in the body that it has for them.
#[rustfmt::skip]
macro_rules! family_errors {
    ($name:ident, $body:ident) => {
        /// What a route of this family without a body can answer besides its success.
        #[derive(IntoResponses)]
        #[allow(dead_code, reason = "utoipa reads the variants")]
        pub enum $name {
            /// The server needs a key, and none was sent or it is not known.
            #[response(status = 401, headers(
                ("www-authenticate" = String, description = "`Bearer`"),
            ))]
            Unauthorized($body),
            /// The key does not have the scope; or, without keys, a page of another origin sent the request.
            #[response(status = 403)]
            Forbidden($body),
            /// No model has this name or alias.
            #[response(status = 404)]
            UnknownModel($body),
            /// The path has other methods.
            #[response(status = 405)]
            MethodNotAllowed($body),
            /// The `Host` header names another server.
            #[response(status = 421)]
            Misdirected($body),
            /// The server is answering as many requests as it may, or the key's rate is used up.
            #[response(status = 429, headers(
                ("retry-after" = u64, description = "Seconds until the next request is taken"),
            ))]
            RateExceeded($body),
            /// A bug.
            #[response(status = 500)]
            Internal($body),
            /// The model is loading, disabled or cannot be loaded, or the request took too long.
            #[response(status = 503, headers(
                ("retry-after" = u64, description = "Seconds until trying again makes sense"),
                ("x-should-retry" = String, description = "`false` where OpenAI's clients are not to try again"),
            ))]
            Unavailable($body),
        }
    };
}

family_errors!(TeiErrors, TeiError);
family_errors!(OpenAiErrors, OpenAiError);

/// What a body can get wrong on TEI's routes, the want of room for the model that takes it, and what they answer in place of
/// a 503 for what does not pass by itself: clients ask again after one at once.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "utoipa reads the variants")]
pub enum TeiBodyErrors {
    /// The body is not JSON, an input is empty, or token ids are not this model's.
    #[response(status = 400)]
    Malformed(TeiError),
    /// The vectors would be in another space than `expect_space`.
    #[response(status = 412)]
    SpaceMismatch(TeiError),
    /// The body stopped coming.
    #[response(status = 408)]
    Slow(TeiError),
    /// The body is over the limit.
    #[response(status = 413)]
    TooLarge(TeiError),
    /// The body is not declared as JSON.
    #[response(status = 415)]
    ContentType(TeiError),
    /// A field is missing or wrong, there are too many inputs, or one is too long and may not be cut.
    #[response(status = 422)]
    Invalid(TeiError),
    /// The model's queue is full, the server is answering as many requests as it may, or the key's rate is used up.
    #[response(status = 429, headers(("retry-after" = u64, description = "Seconds until there should be room")))]
    Overloaded(TeiError),
    /// The model is disabled or cannot be loaded, or the database does not answer.
    #[response(status = 424, headers(
        ("retry-after" = u64, description = "Seconds until trying again makes sense"),
        ("x-should-retry" = String, description = "`false` where OpenAI's clients are not to try again"),
    ))]
    NoModel(TeiError),
    /// The model is still loading or being unloaded, or the server is stopping.
    #[response(status = 503, headers(("retry-after" = u64, description = "Seconds until trying again makes sense")))]
    Loading(TeiError),
    /// The request took too long.
    #[response(status = 504, headers(("retry-after" = u64, description = "Seconds until trying again makes sense")))]
    Timeout(TeiError),
    /// There is no room in memory for the model.
    #[response(status = 507, headers(
        ("retry-after" = u64, description = "Seconds until trying again makes sense"),
        ("x-should-retry" = String, description = "`false` where OpenAI's clients are not to try again"),
    ))]
    NoRoom(TeiError),
}

/// A route of TEI's without a body that loads a model has no room for it.
#[derive(IntoResponses)]
#[response(
    status = 507,
    description = "There is no room in memory for the model.",
    headers(
        ("retry-after" = u64, description = "Seconds until trying again makes sense"),
        ("x-should-retry" = String, description = "`false` where OpenAI's clients are not to try again"),
    )
)]
#[allow(dead_code, reason = "utoipa reads the field")]
pub struct TeiNoRoom(TeiError);

/// What a body can get wrong on OpenAI's routes, and the want of room for the model that takes it.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "utoipa reads the variants")]
pub enum OpenAiBodyErrors {
    /// Any fault of the request: the `code` says which.
    #[response(status = 400)]
    Invalid(OpenAiError),
    /// The vectors would be in another space than `expect_space`.
    #[response(status = 412)]
    SpaceMismatch(OpenAiError),
    /// The body stopped coming.
    #[response(status = 408)]
    Slow(OpenAiError),
    /// The body is over the limit.
    #[response(status = 413)]
    TooLarge(OpenAiError),
    /// The body is not declared as JSON.
    #[response(status = 415)]
    ContentType(OpenAiError),
    /// The model's queue is full, the server is answering as many requests as it may, or the key's rate is used up.
    #[response(status = 429, headers(("retry-after" = u64, description = "Seconds until there should be room")))]
    Overloaded(OpenAiError),
    /// There is no room in memory for the model.
    #[response(status = 507, headers(
        ("retry-after" = u64, description = "Seconds until trying again makes sense"),
        ("x-should-retry" = String, description = "`false` where OpenAI's clients are not to try again"),
    ))]
    NoRoom(OpenAiError),
}
