//! What fuzzers call: everything that reads what comes from outside, as the server reads it. No part of the interface.
//!
//! It stands here because the readers of bodies are private to `api`, and every other one can be reached from it. Each
//! function takes any bytes and must not panic; `fuzz/` feeds them, and a test replays its corpus.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use bytesize::ByteSize;
use futures::executor::block_on;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use super::active::ActiveBody;
use super::embed::{EmbedBody, RootBody};
use super::error::ApiError;
use super::extract::{expected_space, parse};
use super::grains::batch::{CreateBody, drafts};
use super::grains::filter::FilterBody;
use super::grains::one::PatchBody;
use super::grains::search::SearchBody;
use super::grains::transfer;
use super::grains::wire::DraftBody;
use super::inputs::Inputs;
use super::openai::EmbeddingsBody;
use super::reembeddings::ReembeddingBody;
use super::registration::entry_in;
use super::similarity::SimilarityBody;
use super::state::Limits;
use super::tokens::{DecodeBody, TokenizeBody};
use crate::domain::{Content, Filter, GrainId, TruncationSide};
use crate::engine::{Input, OverLong, TextTokenizer};
use crate::grains::store::{
    Atomicity, Batch, Change, Expected, Facet, Makers, OpenOptions, PageRequest, ReadStore, SearchStore, Sort, SortKey,
    SqliteStore, Vectors, WriteStore,
};
use crate::grains::transfer::ImportEntry;
use crate::json::AnyObject;
use crate::models::{folder, modules};

/// The longest sentence of an error: what a caller sent is repeated in part, never as a whole.
const MAX_ERROR_CHARS: usize = 1_000;

/// Low limits, so that a fuzzer gets past them.
const LIMITS: Limits = Limits {
    max_body: ByteSize::mib(1),
    max_inputs: 8,
    max_text: ByteSize::b(256),
    max_concurrent_requests: 1,
    body_timeout: Duration::ZERO,
    auto_truncate: true,
};

/// A short limit, so that a fuzzer gets past it.
const MAX_LINE_BYTES: usize = 512;

/// Reads a body of JSON as each route would.
pub fn request_body(bytes: &[u8]) {
    #[derive(Deserialize)]
    struct Fields {
        inputs: Option<Inputs>,
        input: Option<Inputs>,
        expect_space: Option<String>,
    }

    if let Some(fields) = read::<Fields>(bytes) {
        for inputs in fields.inputs.into_iter().chain(fields.input) {
            check(inputs.checked("inputs", &LIMITS));
        }
        check(expected_space(fields.expect_space.as_deref()));
    }
    read::<EmbedBody>(bytes);
    read::<RootBody>(bytes);
    read::<EmbeddingsBody>(bytes);
    read::<SimilarityBody>(bytes);
    read::<TokenizeBody>(bytes);
    read::<DecodeBody>(bytes);
    read::<ActiveBody>(bytes);
    read(bytes).map(|AnyObject(body)| check(entry_in(body)));
    read::<ReembeddingBody>(bytes);
    read::<PatchBody>(bytes);
    read::<DraftBody>(bytes).map(|body| check(body.into_draft()));
    read::<CreateBody>(bytes).map(|body| check(drafts(body)));
    read::<SearchBody>(bytes).map(|body| check(body.into_request()));
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    check(parse(bytes))
}

/// # Panics
/// When an error says more than a sentence.
fn check<T>(read: Result<T, ApiError>) -> Option<T> {
    let error = match read {
        Ok(read) => return Some(read),
        Err(error) => error,
    };
    assert!(error.message().chars().count() <= MAX_ERROR_CHARS, "an error repeats what was sent: {}", error.message());
    None
}

/// Reads the lines of an import. The first byte says how long the pieces are that they arrive in.
pub fn import_lines(bytes: &[u8]) {
    let Some((first, lines)) = bytes.split_first() else { return };
    let pieces: Vec<Bytes> = lines.chunks(usize::from(*first).max(1)).map(Bytes::copy_from_slice).collect();
    for line in block_on(transfer::all_lines(pieces, MAX_LINE_BYTES)) {
        match line.entry {
            Ok(ImportEntry::Space(space)) => drop(space.declared()),
            Ok(ImportEntry::Grain(_) | ImportEntry::End(_)) => {}
            Err(refusal) => assert!(refusal.message.chars().count() <= MAX_ERROR_CHARS, "{}", refusal.message),
        }
    }
}

/// A small database in which filters are tried.
pub struct Filters {
    runtime: Runtime,
    store: SqliteStore,
    /// The numbers of its grains, ascending.
    numbers: Vec<i64>,
}

impl Filters {
    /// Makes the database in a folder.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (store, numbers) = runtime.block_on(async {
            let store = SqliteStore::open(OpenOptions::at(folder.join("granary.db"))).await.expect("a database");
            let changes = (0..8).map(|n| Change {
                id: GrainId::stored(format!("grain-{n}")),
                expected: Expected::Absent,
                content: content(n),
                created_at: None,
                vector: None,
                staged: None,
            });
            let changes = changes.collect();
            let makers = Makers::default();
            let batch = Batch { changes, atomicity: Atomicity::AllOrNothing, makers, receipt: None };
            store.write(batch, 1_700_000_000_000_000).await.expect("written");
            let numbers = store.numbers(Filter::default(), u32::MAX).await.expect("numbers");
            (store, numbers)
        });
        Self { runtime, store, numbers: sorted(numbers) }
    }

    /// Reads a filter and has the database apply it in every way it can, which must agree.
    ///
    /// # Panics
    /// When they do not, or the database does not take the statement that was made of the filter.
    pub fn apply(&self, bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Some(filter) = check(FilterBody::of_parameter(Some(text))) else { return };
        self.runtime.block_on(async {
            let store = &self.store;
            let found = sorted(taken(store.numbers(filter.clone(), u32::MAX).await));
            let passing = sorted(taken(store.passing(filter.clone(), self.numbers.clone()).await));
            assert_eq!(found, passing, "two plans for one filter");
            let counted = taken(store.count(filter.clone(), vec![Facet::Source, Facet::Tags, Facet::Space]).await);
            assert_eq!(counted.total, found.len() as u64, "what is counted is what is found");
            let sort = Sort { key: SortKey::Id, descending: false };
            let vectors = Vectors::Included;
            let request = PageRequest { filter: filter.clone(), sort, after: None, limit: 100, vectors };
            let page = taken(store.page(request).await);
            assert_eq!(page.grains.len(), found.len(), "what is listed is what is found");
            taken(store.with_words(text.to_owned(), filter, 10).await);
        });
    }
}

fn content(n: usize) -> Content {
    let attributes =
        serde_json::json!({"year": 2020 + n, "kind": ["a", "b"], "open": n.is_multiple_of(2), "name": n.to_string()});
    Content {
        text: format!("the text of grain {n}"),
        source: (!n.is_multiple_of(3)).then(|| format!("source-{}", n % 3)),
        tags: (0..n % 4).map(|tag| format!("tag-{tag}")).collect(),
        attributes: attributes.as_object().cloned().unwrap_or_default(),
    }
}

fn sorted(mut numbers: Vec<i64>) -> Vec<i64> {
    numbers.sort_unstable();
    numbers
}

fn taken<T, E: Debug>(answer: Result<T, E>) -> T {
    answer.unwrap_or_else(|error| panic!("the database refuses a filter: {error:?}"))
}

/// The files of a model that are read, as far as they are written by others.
const MODEL_FILES: [&str; 10] = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "config.json",
    "config_sentence_transformers.json",
    "model.onnx",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// What begins a file in the bytes of a model folder; its name and a line's end follow.
const FILE: &[u8] = b"\n=== ";

/// Writes a model folder and reads it as a load does before the runtime has its turn. The folder is emptied afterwards.
///
/// # Panics
/// When files cannot be written.
pub fn model_folder(folder: &Path, bytes: &[u8]) {
    let mut rest = bytes;
    let mut written = Vec::new();
    while let Some(start) = position(rest, FILE) {
        let part = &rest[start + FILE.len()..];
        let end = position(part, FILE).unwrap_or(part.len());
        rest = &part[end..];
        let Some(line) = part[..end].iter().position(|byte| *byte == b'\n') else { continue };
        let Some(name) = MODEL_FILES.iter().find(|name| name.as_bytes() == &part[..line]) else { continue };
        let path = folder.join(name);
        fs_err::create_dir_all(path.parent().unwrap_or(folder)).expect("a folder");
        fs_err::write(&path, &part[line + 1..end]).expect("written");
        written.push(path);
    }
    if let Ok(files) = folder::read_folder(folder, None, None) {
        let _ = files.graph_apart();
        let _ = modules::open(&files.modules);
        let max_tokens = files.settings.max_tokens.map_or(512, |tokens| tokens.get() as usize);
        let opened = TextTokenizer::open(&files.tokenizer, max_tokens);
        if let Ok(tokenizer) = opened.and_then(|tokenizer| tokenizer.with_extra(&files.extra_tokens)) {
            let input = Input::Text("Ein Text, a text, 世界".to_owned());
            let _ = tokenizer.tokens(0, &input, Some("query: "), OverLong::Cut(TruncationSide::Right));
        }
    }
    for path in written {
        // A name that stands twice was written over.
        let _ = fs_err::remove_file(path);
    }
}

fn position(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
