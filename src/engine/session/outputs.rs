//! What a graph gives: which output is read, and its numbers.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ort::value::{DynValue, Outlet, Shape, TensorElementType, ValueType};

use super::cause;
use crate::engine::error::Cause;

/// Names under which encoders give one vector per token, most usual first.
const TOKEN_OUTPUTS: [&str; 2] = ["last_hidden_state", "token_embeddings"];

/// The name under which encoders give one vector per text.
const TEXT_OUTPUT: &str = "sentence_embedding";

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
pub(super) fn choose_output(outputs: &[Outlet], wanted: WantedOutput) -> Result<GraphOutput, String> {
    let found = |name: &str, kind| {
        outputs.iter().any(|output| output.name() == name).then(|| GraphOutput { name: name.to_owned(), kind })
    };
    let of_tokens = TOKEN_OUTPUTS.iter().find_map(|name| found(name, OutputKind::Tokens));
    let of_texts = found(TEXT_OUTPUT, OutputKind::Texts);
    let named = if wanted.pooling_is_known { of_tokens.or(of_texts) } else { of_texts.or(of_tokens) };
    if let Some(output) = named {
        return Ok(output);
    }
    let listed: Vec<String> = outputs.iter().map(|o| format!("`{}`", o.name())).collect();
    let hidden_size = wanted.hidden_size.ok_or_else(|| {
        format!(
            "its outputs are {}, none of them `{}`, `{}` or `{TEXT_OUTPUT}`; to take one by its shape, set the \
             model's `dimensions` or put its config.json beside it",
            listed.join(", "),
            TOKEN_OUTPUTS[0],
            TOKEN_OUTPUTS[1]
        )
    })?;
    let of_shape = || outputs.iter().filter_map(|output| by_shape(output, hidden_size));
    let of_tokens = of_shape().find(|output| wanted.pooling_is_known && output.kind == OutputKind::Tokens);
    of_tokens.or_else(|| of_shape().next()).ok_or_else(|| {
        format!("its outputs are {}, and none has vectors of the hidden size {hidden_size}", listed.join(", "))
    })
}

fn by_shape(output: &Outlet, hidden_size: u32) -> Option<GraphOutput> {
    use TensorElementType::{Bfloat16, Float16, Float32};

    let ValueType::Tensor { ty: Float32 | Float16 | Bfloat16, shape, .. } = output.dtype() else { return None };
    let kind = match shape.len() {
        3 => OutputKind::Tokens,
        2 => OutputKind::Texts,
        _ => return None,
    };
    (shape.last() == Some(&i64::from(hidden_size))).then(|| GraphOutput { name: output.name().to_owned(), kind })
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
