//! What is tried of a graph when it is opened: whether its vectors are as long as its files say, and whether padding and
//! rounding leave them what they are.

use super::encoder::EncoderSpec;
use super::head::Head;
use super::padded::{PaddedBatch, Positions};
use super::session::{EncoderSession, GraphOutput, Runtime, SessionOptions, WantedOutput};
use super::tokenize::{Input, OverLong, TextTokenizer, Tokens};
use crate::domain::vector::cosine;
use crate::domain::{Provider, TruncationSide};

/// The width to which a short text is padded when it is tried whether its vector stays what it is alone.
const TRIAL_WIDTH: usize = 16;

/// The least cosine between the two. Rounding moves them far less, to bf16 too.
const LEAST_COSINE: f64 = 0.99;

/// The least cosine of a vector in bf16 with the same in fp32: what canaries must have, so that a machine without bf16 takes
/// the space for the same.
const LEAST_ROUNDED_COSINE: f64 = 0.999;

/// What is embedded to see what rounding does.
const TRIAL_TEXT: &str = "The granary stood at the edge of the village, and every autumn the grain of forty fields was \
    carried up its wooden stairs, weighed, written down and stored.";

/// Checks that the graph's vectors are as long as the model's files and its first Dense module have them.
pub(super) fn check_size(
    output: &GraphOutput,
    dimensions: usize,
    hidden_size: Option<u32>,
    taken: Option<u32>,
) -> Result<(), String> {
    let has = format!("its output `{}` has vectors of {dimensions} numbers", output.name);
    match (hidden_size, taken) {
        (Some(hidden_size), _) if dimensions != hidden_size as usize => {
            Err(format!("{has}, and its hidden size is {hidden_size}: those are not embeddings"))
        }
        (_, Some(taken)) if dimensions != taken as usize => {
            Err(format!("{has}, and its first Dense module takes {taken}"))
        }
        _ => Ok(()),
    }
}

/// Checks that a graph which is told where tokens stand is told the numbers that its model was trained with.
pub(super) fn check_positions(session: &EncoderSession, positions: Option<&Positions>) -> Result<(), String> {
    if !session.takes_positions() {
        return Ok(());
    }
    match positions {
        Some(Positions::FromZero) => Ok(()),
        Some(Positions::BehindPadding(model_type)) => Err(format!(
            "it takes an input `position_ids`, which Granary counts from 0, and models of the type `{model_type}` count from \
             behind the number of padding: export it without that input"
        )),
        None => Err(
            "it takes an input `position_ids`, and it is not known from which number its model counts: use a model \
             folder whose config.json has a `model_type` that counts from 0"
                .to_owned(),
        ),
    }
}

/// Checks that a short text has the same vector alone and beside a longer one. Where it cannot be tried, that is not said.
pub(super) fn check_padding(session: &EncoderSession, head: &Head, tokenizer: &TextTokenizer) -> Result<(), String> {
    let text = Input::Text("a".to_owned());
    let Ok(Tokens { ids, .. }) = tokenizer.tokens(0, &text, None, OverLong::Cut(TruncationSide::Right)) else {
        return Ok(());
    };
    let width = TRIAL_WIDTH.min(tokenizer.max_tokens());
    if ids.len() >= width {
        return Ok(());
    }
    let longer: Vec<u32> = ids.iter().copied().cycle().take(width).collect();
    let first_of = |texts: &[&[u32]], width: usize| {
        let mut batch = PaddedBatch::default();
        batch.fill(texts.iter().copied(), width);
        session.run(&batch, |output| head.first(&output, width, ids.len())).ok()?.ok()
    };
    let (alone, padded) =
        (first_of(&[ids.as_slice()], ids.len()), first_of(&[ids.as_slice(), longer.as_slice()], width));
    match (alone, padded) {
        (Some(alone), Some(padded)) if alone != padded && cosine(&alone, &padded) < LEAST_COSINE => Err(format!(
            "its output `{}` depends on padding, so that a text's vector would depend on its neighbours in a batch: \
             export it with a mask over attention, and with one vector per token or with a mask over its pooling",
            session.output().name
        )),
        _ => Ok(()),
    }
}

/// Checks that a text has nearly the same vector in bf16 as in fp32, in a graph that is opened once more for that. Where it
/// cannot be tried, that is not said.
pub(super) fn check_rounding(
    runtime: &Runtime,
    session: &EncoderSession,
    head: &Head,
    tokenizer: &TextTokenizer,
    (spec, options, wanted): (&EncoderSpec, SessionOptions, WantedOutput),
) -> Result<(), String> {
    let EncoderSpec { graph, runs_alone, .. } = spec;
    let tokens = |text: &str| {
        let input = Input::Text(text.to_owned());
        tokenizer.tokens(0, &input, None, OverLong::Cut(TruncationSide::Right)).map(|tokens| tokens.ids)
    };
    let (Ok(long), Ok(short)) = (tokens(TRIAL_TEXT), tokens("a")) else { return Ok(()) };
    let exactly = SessionOptions { provider: Provider::Cpu, bf16: false, streams: 1, is_tried_once: true, ..options };
    let exact = match EncoderSession::open(runtime, graph, exactly, wanted) {
        Ok(exact) => exact,
        Err(error) => {
            tracing::debug!(%error, "what bf16 makes of the graph's vectors cannot be compared");
            return Ok(());
        }
    };
    let first_of = |session: &EncoderSession, first: &[u32], second: &[u32]| {
        let second = Some(second).filter(|_| !runs_alone);
        let (mut batch, width) = (PaddedBatch::default(), first.len().max(second.map_or(0, <[u32]>::len)));
        batch.fill([first].into_iter().chain(second), width);
        session.run(&batch, |output| head.first(&output, width, first.len())).ok()?.ok()
    };
    for (first, second) in [(&long, &short), (&short, &long)] {
        let Some(exact) = first_of(&exact, first, second) else { continue };
        // What is no number has no cosine.
        let rounded = first_of(session, first, second).unwrap_or_default();
        let cosine = if rounded == exact { 1.0 } else { cosine(&rounded, &exact) };
        if cosine < LEAST_ROUNDED_COSINE {
            return Err(format!(
                "its vectors in bf16 are not those in fp32 (cosine {cosine:.4}): it does not bear being rounded so"
            ));
        }
    }
    Ok(())
}
