//! What can go wrong between a text and its vector.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of a library, kept for its message and its chain.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How many tokens a text has, or several have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenCount {
    /// So many: all was read.
    Exactly(usize),
    /// More than so many: the rest was not read.
    MoreThan(usize),
}

impl fmt::Display for TokenCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(n_tokens) => write!(f, "{n_tokens}"),
            Self::MoreThan(n_tokens) => write!(f, "more than {n_tokens}"),
        }
    }
}

/// Why a model could not be opened or a text could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No ONNX Runtime library where one was looked for.
    #[error(
        "no ONNX Runtime library at `{}`: run `make setup`, or name one with `engine.runtime_library` or ORT_DYLIB_PATH",
        path.display()
    )]
    RuntimeMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The library is there and does not work.
    #[error(
        "the ONNX Runtime library `{}` cannot be used (`make setup` installs one, and `engine.runtime_library` or \
         ORT_DYLIB_PATH names another)",
        path.display()
    )]
    LoadRuntime {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        source: Cause,
    },
    /// The process has one already, and takes no second one.
    #[error(
        "the ONNX Runtime library `{}` cannot be used beside `{}`, which is in use: restart to change it",
        path.display(),
        in_use.display()
    )]
    AnotherRuntime {
        /// The library.
        path: PathBuf,
        /// The one that is loaded.
        in_use: PathBuf,
    },
    /// The library was built without the provider.
    #[error("the ONNX Runtime library `{}` has no `{provider}` provider", library.display())]
    ProviderMissing {
        /// The provider asked for.
        provider: &'static str,
        /// The library in use.
        library: PathBuf,
    },
    /// The runtime refuses the model file.
    #[error("`{}` cannot be opened as an ONNX model", path.display())]
    OpenSession {
        /// The `.onnx` file.
        path: PathBuf,
        /// What the runtime said.
        source: Cause,
    },
    /// No memory was left to open the model, or to try it.
    #[error(
        "no memory is left to open `{}`: load it again when the server has less to do, or give the server more memory",
        path.display()
    )]
    NoMemoryToOpen {
        /// The `.onnx` file.
        path: PathBuf,
        /// What the runtime said.
        source: Cause,
    },
    /// The graph is not a text encoder that can be fed or read.
    #[error("`{}` is not a text encoder Granary can run: {reason}", path.display())]
    UnsupportedGraph {
        /// The `.onnx` file.
        path: PathBuf,
        /// Which input or output is missing or strange, and the setting that helps.
        reason: String,
    },
    /// The tokenizer's file cannot be read.
    #[error("`{}` is not a tokenizer Granary can read", path.display())]
    LoadTokenizer {
        /// `tokenizer.json`.
        path: PathBuf,
        /// What the tokenizer library said.
        source: Cause,
    },
    /// The tokenizer makes token ids the model has no row for.
    #[error(
        "`{}` does not belong to this model: it has token ids up to {highest_id}, and the model {model_limit}",
        path.display()
    )]
    TokenizerMismatch {
        /// `tokenizer.json`.
        path: PathBuf,
        /// The tokenizer's greatest id.
        highest_id: u32,
        /// What the model said of it.
        model_limit: String,
    },
    /// The tokenizer failed on a text.
    #[error("`inputs[{index}]` cannot be tokenized")]
    Tokenize {
        /// The input's place in the request.
        index: usize,
        /// What the tokenizer library said.
        source: Cause,
    },
    /// A text is longer than the model takes and the request refuses to have it cut.
    #[error(
        "`inputs[{index}]` has {n_tokens} tokens; this model takes {max_tokens}. Send `truncate: true` or shorten it"
    )]
    InputTooLong {
        /// The input's place in the request.
        index: usize,
        /// Its tokens, special tokens included.
        n_tokens: TokenCount,
        /// The most the model takes.
        max_tokens: usize,
    },
    /// The texts have more tokens together than a request may have.
    #[error(
        "the texts have {n_tokens} tokens together; a request takes {max_request_tokens}. Send fewer at a time, or raise \
         `engine.max_request_tokens`"
    )]
    TooManyTokens {
        /// Their tokens, after the cut.
        n_tokens: TokenCount,
        /// The bound.
        max_request_tokens: usize,
    },
    /// A token id that is not the model's.
    #[error(
        "`inputs[{index}]` holds {}, but this model's vocabulary ends at {highest_id}: the ids come from another \
         tokenizer. Send text (LangChain: `check_embedding_ctx_length=False`)",
        in_words(*id)
    )]
    TokenOutOfVocabulary {
        /// The input's place in the request.
        index: usize,
        /// The id.
        id: u32,
        /// The tokenizer's greatest id.
        highest_id: u32,
    },
    /// A token id that is to be turned into text and is not the model's.
    #[error(
        "`ids[{index}]` holds {}, but this model's vocabulary ends at {highest_id}: the ids come from another \
         tokenizer. Send those that `/tokenize` gives with the same model",
        in_words(*id)
    )]
    NotDecodable {
        /// The list's place in the request.
        index: usize,
        /// The id.
        id: u32,
        /// The tokenizer's greatest id.
        highest_id: u32,
    },
    /// The model's queue is full.
    #[error(
        "the queue of this model holds {queued_tokens} tokens and takes {max_queue_tokens}, of background work \
         {max_background_tokens}: try again in {} s, or raise `engine.max_queue_tokens`",
        retry_after.as_secs_f64().ceil().max(1.0)
    )]
    Overloaded {
        /// Tokens waiting now.
        queued_tokens: usize,
        /// The bound.
        max_queue_tokens: usize,
        /// The bound for background work.
        max_background_tokens: usize,
        /// When half of what waits should be done, at the speed measured lately.
        retry_after: Duration,
    },
    /// The model is being unloaded.
    #[error("the model was unloaded while the request waited")]
    Closed,
    /// The runtime failed on a batch.
    #[error("the model failed on `inputs[{index}]`")]
    Inference {
        /// The input's place in the request.
        index: usize,
        /// What the runtime said.
        source: Cause,
    },
    /// No memory was left for a run.
    #[error(
        "no memory is left to run the model on `inputs[{index}]`: try again when the server has less to do, send a shorter \
         text or fewer at once, set a smaller `max_tokens` for the model, or give the server more memory"
    )]
    NoMemory {
        /// The input's place in the request.
        index: usize,
        /// What the runtime said.
        source: Cause,
    },
    /// The model gave something that is not a vector.
    #[error("the model's vector of `inputs[{index}]` holds {found}, which is no number to compare by")]
    NotANumber {
        /// The input's place in the request.
        index: usize,
        /// `NaN` or `inf`.
        found: f32,
    },
    /// A thread or an operating system resource could not be had.
    #[error("cannot start {what}")]
    Start {
        /// What was being started.
        what: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A token id in an error. The greatest stands for all that are greater: the edge makes it of them.
fn in_words(id: u32) -> String {
    match id {
        u32::MAX => format!("a token id of {id} or more"),
        id => format!("token id {id}"),
    }
}

/// Whether the runtime says that it found no memory. It has no code for that: these are the words of its own provider, CUDA's
/// and OpenVINO's.
fn is_want_of_memory(said: &str) -> bool {
    ["bad_alloc", "Failed to allocate", "out of memory"].iter().any(|words| said.contains(words))
}

/// How long to wait before a model is asked again that has no room now.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl EngineError {
    /// Of a run that failed, whose first input has that place in the request.
    #[must_use]
    pub fn of_run(index: usize, source: Cause) -> Self {
        if is_want_of_memory(&source.to_string()) {
            Self::NoMemory { index, source }
        } else {
            Self::Inference { index, source }
        }
    }

    /// Of the `.onnx` file that does not open, or fails when it is tried. `otherwise` says what that means where no memory is
    /// wanting.
    #[must_use]
    pub fn of_open(path: &Path, source: Cause, otherwise: impl FnOnce(Cause) -> Self) -> Self {
        if is_want_of_memory(&source.to_string()) {
            Self::NoMemoryToOpen { path: path.to_owned(), source }
        } else {
            otherwise(source)
        }
    }

    /// How long work in the background waits before it asks again: the queue was full, or the model is being unloaded.
    /// `None` when the error will not pass by itself.
    #[must_use]
    pub fn pause_before_retry(&self) -> Option<Duration> {
        match self {
            Self::Closed => Some(SHORTEST_PAUSE),
            Self::Overloaded { retry_after, .. } => Some((*retry_after).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)),
            _ => None,
        }
    }

    /// The place in the request of the input that is at fault; `None` when no single one is.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Tokenize { index, .. }
            | Self::InputTooLong { index, .. }
            | Self::TokenOutOfVocabulary { index, .. }
            | Self::NotDecodable { index, .. }
            | Self::Inference { index, .. }
            | Self::NoMemory { index, .. }
            | Self::NotANumber { index, .. } => Some(*index),
            _ => None,
        }
    }

    /// The same error with the input it names at another place, for a request of which the engine saw a part.
    #[must_use]
    pub fn with_index(mut self, place_of: impl FnOnce(usize) -> usize) -> Self {
        if let Self::Tokenize { index, .. }
        | Self::InputTooLong { index, .. }
        | Self::TokenOutOfVocabulary { index, .. }
        | Self::NotDecodable { index, .. }
        | Self::Inference { index, .. }
        | Self::NoMemory { index, .. }
        | Self::NotANumber { index, .. } = &mut self
        {
            *index = place_of(*index);
        }
        self
    }
}
