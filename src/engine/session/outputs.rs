//! What a graph gives: which output is read, and its numbers.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ort::value::{DynValue, Shape, TensorElementType, ValueType};

use super::cause;
use crate::engine::error::Cause;

/// Names under which encoders give one vector per token, most usual first.
const TOKEN_OUTPUTS: [&str; 2] = ["last_hidden_state", "token_embeddings"];

/// The name under which encoders give one vector per text.
const TEXT_OUTPUT: &str = "sentence_embedding";

/// The name under which BERT's kin give what their pooler makes of the first token: none of the poolings that a model may
/// name.
const POOLER_OUTPUT: &str = "pooler_output";

/// What is known of the wanted output before the graph is seen.
#[derive(Clone, Copy, Debug)]
pub struct WantedOutput {
    /// Whether the model's pooling is known: without it a graph that pools by itself is preferred.
    pub pooling_is_known: bool,
    /// The model's hidden size, which an output taken by shape must have.
    pub hidden_size: Option<u32>,
}

/// What a graph's output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// `[texts][tokens][dimensions]`: still to be pooled.
    Tokens,
    /// `[texts][dimensions]`: pooled by the graph.
    Texts,
}

/// The output that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphOutput {
    /// Its name in the graph.
    pub name: String,
    /// What it holds.
    pub kind: OutputKind,
}

/// The output to read: by its usual name, else the one whose last dimension is the hidden size, of tokens first where their
/// pooling is known.
pub(super) fn choose_output(outputs: &[(&str, &ValueType)], wanted: WantedOutput) -> Result<GraphOutput, String> {
    let found = |usual: &str, kind| {
        outputs.iter().any(|(name, _)| *name == usual).then(|| GraphOutput { name: usual.to_owned(), kind })
    };
    let of_tokens = TOKEN_OUTPUTS.iter().find_map(|name| found(name, OutputKind::Tokens));
    let of_texts = found(TEXT_OUTPUT, OutputKind::Texts);
    let named = if wanted.pooling_is_known { of_tokens.or(of_texts) } else { of_texts.or(of_tokens) };
    if let Some(output) = named {
        return Ok(output);
    }
    let listed: Vec<String> = outputs.iter().map(|(name, _)| format!("`{name}`")).collect();
    let listed = listed.join(", ");
    let hidden_size = wanted.hidden_size.ok_or_else(|| {
        format!(
            "its outputs are {listed}, none of them `{}`, `{}` or `{TEXT_OUTPUT}`; to take one by its shape, set the \
             model's `dimensions` or put its config.json beside it",
            TOKEN_OUTPUTS[0], TOKEN_OUTPUTS[1]
        )
    })?;
    // Where the pooling is known, BERT's pooler is not it.
    let is_pooler = |name: &str| wanted.pooling_is_known && name == POOLER_OUTPUT;
    let others = || outputs.iter().filter(|(name, _)| !is_pooler(name));
    let of_shape = || others().filter_map(|(name, kind)| by_shape(name, kind, hidden_size));
    let of_tokens = of_shape().find(|output| wanted.pooling_is_known && output.kind == OutputKind::Tokens);
    of_tokens.or_else(|| of_shape().next()).ok_or_else(|| {
        if others().count() < outputs.len() {
            return format!(
                "its outputs are {listed}, and `{POOLER_OUTPUT}` is not what the model's pooling makes of its tokens: \
                 export it with `{}`",
                TOKEN_OUTPUTS[0]
            );
        }
        format!("its outputs are {listed}, and none has vectors of the hidden size {hidden_size}")
    })
}

fn by_shape(name: &str, kind: &ValueType, hidden_size: u32) -> Option<GraphOutput> {
    use TensorElementType::{Bfloat16, Float16, Float32};

    let ValueType::Tensor { ty: Float32 | Float16 | Bfloat16, shape, .. } = kind else { return None };
    let kind = match shape.len() {
        3 => OutputKind::Tokens,
        2 => OutputKind::Texts,
        _ => return None,
    };
    (shape.last() == Some(&i64::from(hidden_size))).then(|| GraphOutput { name: name.to_owned(), kind })
}

/// The shape of an output and its numbers. Those of half precision are widened.
pub(super) fn numbers_of(output: &DynValue) -> Result<(&Shape, Cow<'_, [f32]>), Cause> {
    match output.dtype() {
        ValueType::Tensor { ty: TensorElementType::Float16, .. } => {
            let (shape, halves) = output.try_extract_tensor::<f16>().map_err(cause)?;
            Ok((shape, Cow::Owned(halves.to_f32_vec())))
        }
        ValueType::Tensor { ty: TensorElementType::Bfloat16, .. } => {
            let (shape, halves) = output.try_extract_tensor::<bf16>().map_err(cause)?;
            Ok((shape, Cow::Owned(halves.to_f32_vec())))
        }
        _ => {
            let (shape, numbers) = output.try_extract_tensor::<f32>().map_err(cause)?;
            Ok((shape, Cow::Borrowed(numbers)))
        }
    }
}

#[cfg(test)]
mod tests {
    use ort::value::SymbolicDimensions;

    use super::*;

    fn tensor(ty: TensorElementType, shape: &[i64]) -> ValueType {
        let dimension_symbols = SymbolicDimensions::empty(shape.len());
        ValueType::Tensor { ty, shape: Shape::new(shape.iter().copied()), dimension_symbols }
    }

    #[test]
    fn an_output_is_chosen_by_its_name_then_by_its_shape() {
        let [tokens, texts] = [&[-1, -1, 32][..], &[-1, 32]].map(|shape| tensor(TensorElementType::Float32, shape));
        let (ids, wide) = (tensor(TensorElementType::Int64, &[-1, 32]), tensor(TensorElementType::Float32, &[-1, 64]));
        let chosen = |outputs: &[(&str, &ValueType)], pooling_is_known| {
            let wanted = WantedOutput { pooling_is_known, hidden_size: Some(32) };
            choose_output(outputs, wanted).map(|output| (output.name, output.kind))
        };
        let is = |name: &str, kind| Ok((name.to_owned(), kind));
        let usual = [("sentence_embedding", &texts), ("token_embeddings", &tokens), ("last_hidden_state", &tokens)];
        assert_eq!(chosen(&usual, true), is("last_hidden_state", OutputKind::Tokens));
        assert_eq!(chosen(&usual, false), is("sentence_embedding", OutputKind::Texts));
        let unnamed = [("ids", &ids), ("wide", &wide), ("of_texts", &texts), ("of_tokens", &tokens)];
        assert_eq!(chosen(&unnamed, true), is("of_tokens", OutputKind::Tokens));
        assert_eq!(chosen(&unnamed, false), is("of_texts", OutputKind::Texts));
        assert_eq!(chosen(&unnamed[..3], true), is("of_texts", OutputKind::Texts));
        let refusal = chosen(&unnamed[..2], true).expect_err("no vectors");
        assert!(refusal.contains("`ids`, `wide`, and none has vectors of the hidden size 32"), "{refusal}");
        let wanted = WantedOutput { pooling_is_known: true, hidden_size: None };
        let refusal = choose_output(&unnamed, wanted).expect_err("no size to go by");
        assert!(refusal.contains("set the model's `dimensions`"), "{refusal}");
    }

    #[test]
    fn what_a_pooler_makes_is_no_pooling_that_a_model_names() {
        let [tokens, texts] = [&[-1, -1, 32][..], &[-1, 32]].map(|shape| tensor(TensorElementType::Float32, shape));
        let outputs = [("pooler_output", &texts), ("of_tokens", &tokens), ("of_texts", &texts)];
        let wanted = |pooling_is_known| WantedOutput { pooling_is_known, hidden_size: Some(32) };
        assert_eq!(choose_output(&outputs, wanted(true)).expect("there is one").name, "of_tokens");
        assert_eq!(choose_output(&[outputs[0], outputs[2]], wanted(true)).expect("there is one").name, "of_texts");
        let refusal = choose_output(&outputs[..1], wanted(true)).expect_err("it is not the model's");
        assert!(refusal.contains("export it with `last_hidden_state`"), "{refusal}");
        assert_eq!(choose_output(&outputs, wanted(false)).expect("there is one").name, "pooler_output");
    }
}
