//! The default model's vectors are those of sentence-transformers: `tests/golden` holds its answers.

use base64::Engine as _;
use granary::domain::TruncationSide;
use granary::engine::{EngineError, Input, OverLong, TextTokenizer, TokenCount};
use serde::Deserialize;
use serde_json::json;

use crate::helpers::{Answer, Chance, MINILM, TestApp, cosine, data_dir, norm, repository, vectors_of};

/// A line of the golden file.
#[derive(Deserialize)]
struct Golden {
    text: String,
    tokens: usize,
    truncated: bool,
    vector: String,
}

impl Golden {
    fn all() -> Vec<Self> {
        let file = repository().join("tests/golden/all-MiniLM-L6-v2.ndjson");
        let lines = fs_err::read_to_string(file).expect("golden vectors");
        let golden: Vec<Self> = lines.lines().map(|line| serde_json::from_str(line).expect("a golden line")).collect();
        assert!(golden.len() >= 64, "only {} texts", golden.len());
        golden
    }

    fn vector(&self) -> Vec<f32> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.vector).expect("base64");
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

#[tokio::test]
async fn cpu_makes_the_vectors_of_sentence_transformers() {
    check("cpu", 0.99999).await;
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn openvino_makes_the_vectors_of_sentence_transformers() {
    check("openvino", 0.9999).await;
}

/// The default model's, for models that take so many tokens.
fn tokenizer(max_tokens: usize) -> TextTokenizer {
    let path = data_dir().join("models/all-MiniLM-L6-v2/tokenizer.json");
    TextTokenizer::open(&path, max_tokens).expect("the default model's")
}

/// Texts of some length: golden ones behind each other, and what a tokenizer makes few tokens of, or many.
fn long_texts() -> Vec<String> {
    let texts: Vec<String> = Golden::all().into_iter().map(|line| line.text).collect();
    let mut chance = Chance::seeded(11);
    let mut long = vec![
        " ".repeat(40_000) + &texts.join(" "),
        "x".repeat(40_000),
        "x".repeat(15_000) + " " + &"word ".repeat(10_000),
        "word ".repeat(10_000) + &"x".repeat(15_000),
        "!?".repeat(20_000) + &"x".repeat(40_000) + &"?!".repeat(20_000),
        "!?".repeat(20_000),
        "日本語".repeat(8_000),
        format!("{} ", "z".repeat(150)).repeat(300),
    ];
    for _ in 0..20 {
        let mut text = String::new();
        while text.len() < 20_000 {
            text += chance.pick(&texts).as_str();
            text += *chance.pick(&[" ", "\n", "", ", "]);
        }
        long.push(text);
    }
    long
}

fn all_ids(tokenizer: &TextTokenizer, text: &str) -> Vec<u32> {
    tokenizer.details(0, text, true).expect("tokens").into_iter().map(|token| token.id).collect()
}

/// What follows the beginning of a long text is not read, unless the beginning has too few tokens; nor is what stands
/// before its end.
#[test]
fn a_long_text_is_cut_as_if_all_of_it_were_read() {
    let texts = long_texts();
    for max_tokens in [256, 16] {
        let tokenizer = tokenizer(max_tokens);
        let both_sides = |text| [(text, TruncationSide::Right), (text, TruncationSide::Left)];
        for (text, side) in texts.iter().flat_map(both_sides) {
            let cut = tokenizer.tokens(0, &Input::Text(text.clone()), None, OverLong::Cut(side)).expect("tokens");
            let all = all_ids(&tokenizer, text);
            let expected = match side {
                _ if all.len() <= max_tokens => all.clone(),
                TruncationSide::Right => [&all[..max_tokens - 1], &all[all.len() - 1..]].concat(),
                TruncationSide::Left => [&all[..1], &all[all.len() - (max_tokens - 1)..]].concat(),
            };
            let is_cut = all.len() > max_tokens;
            assert_eq!((cut.ids, cut.truncated), (expected, is_cut), "{side:?}, {max_tokens}: {text:.60}");
        }
    }
}

/// A part of a text is enough to refuse it. What is said of its tokens is true, and exact where all of it was read.
#[test]
fn a_long_text_is_refused_if_it_would_be_when_all_of_it_were_read() {
    let (tokenizer, mut n_in_part) = (tokenizer(256), 0);
    for text in long_texts() {
        let n_all = all_ids(&tokenizer, &text).len();
        match tokenizer.tokens(0, &Input::Text(text.clone()), None, OverLong::Refuse) {
            Ok(tokens) => assert_eq!(tokens.ids.len(), n_all, "{text:.60}"),
            Err(EngineError::InputTooLong { n_tokens: TokenCount::Exactly(found), .. }) => {
                assert_eq!(found, n_all, "{text:.60}");
            }
            Err(EngineError::InputTooLong { n_tokens: TokenCount::MoreThan(found), .. }) => {
                assert!((256..n_all).contains(&found), "more than {found}, and all are {n_all}: {text:.60}");
                n_in_part += 1;
            }
            Err(error) => panic!("{error}: {text:.60}"),
        }
        assert!(!tokenizer.has_by_far_more_than(n_all, 0, &text).expect("read"), "{text:.60}");
    }
    assert!(n_in_part > 10, "only {n_in_part}");
    assert!(tokenizer.has_by_far_more_than(1_000, 0, &"!".repeat(1 << 20)).expect("read"));
}

async fn check(provider: &str, least_cosine: f64) {
    let app = TestApp::start_with(&format!("[engine]\nprovider = \"{provider}\"\n")).await;
    let golden = Golden::all();

    let mut alone = Vec::new();
    for line in &golden {
        let answer = embed(&app, &[line]).await;
        assert_eq!(answer.header("x-compute-tokens"), line.tokens.to_string(), "{:?}", line.text);
        assert_eq!(answer.header("x-truncated"), if line.truncated { "1; 0" } else { "0" }, "{:?}", line.text);
        alone.extend(vectors_of(&answer.ok()));
    }
    compare("one by one", &golden.iter().collect::<Vec<_>>(), &alone, least_cosine);

    let in_order: Vec<&Golden> = golden.iter().collect();
    compare("one batch", &in_order, &vectors_of(&embed(&app, &in_order).await.ok()), least_cosine);

    // 37 has no factor in common with any count below 37 × 37 that it does not divide: every text once, neighbours apart.
    assert!(!golden.len().is_multiple_of(37));
    let shuffled: Vec<&Golden> = (0..golden.len()).map(|index| &golden[index * 37 % golden.len()]).collect();
    compare("shuffled", &shuffled, &vectors_of(&embed(&app, &shuffled).await.ok()), least_cosine);

    let model = app.get(&format!("/models/{MINILM}")).await.ok();
    assert_eq!(model["provider"]["name"], provider);
    app.stop().await;
}

async fn embed(app: &TestApp, lines: &[&Golden]) -> Answer {
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    app.post("/embed", json!({"inputs": texts})).await
}

fn compare(how: &str, lines: &[&Golden], vectors: &[Vec<f32>], least_cosine: f64) {
    assert_eq!(lines.len(), vectors.len(), "{how}");
    for (line, vector) in lines.iter().zip(vectors) {
        let cosine = cosine(vector, &line.vector());
        assert!(cosine >= least_cosine, "{how}: cosine {cosine} for {:?}", line.text);
        assert!((norm(vector) - 1.0).abs() < 1e-5, "{how}: norm {} for {:?}", norm(vector), line.text);
    }
}
