//! What a graph takes: texts and, where it is a decoder's, the places of their tokens and what came before the first one.
//!
//! A decoder that was exported to write on takes the keys and the values of the tokens that it has read already, for each of
//! its layers. A text that is embedded has none before it: such an input is fed a tensor whose length is 0.

use std::ffi::{CString, c_char};

use ort::AsPointer;
use ort::memory::Allocator;
use ort::value::{DynTensor, TensorElementType, TensorRef, ValueType};

use super::cause;
use crate::engine::error::Cause;
use crate::engine::padded::PaddedBatch;

/// What an input is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    Ids,
    Mask,
    TokenTypes,
    Positions,
    /// The place of its tensor in [`GraphInputs::pasts`].
    Past(usize),
}

/// Keys or values of earlier tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Past {
    element: TensorElementType,
    /// Its sizes behind the number of texts. That of the earlier tokens is 0.
    sizes: [usize; 3],
}

/// The inputs of a graph that can be fed.
#[derive(Debug)]
pub(super) struct GraphInputs {
    names: Vec<CString>,
    feeds: Vec<Feed>,
    /// Each kind once: the layers of most decoders are alike.
    pasts: Vec<Past>,
}

impl GraphInputs {
    /// Checks that the graph can be fed.
    pub(super) fn of<'a>(listed: impl IntoIterator<Item = (&'a str, &'a ValueType)>) -> Result<Self, String> {
        let mut inputs = Self { names: Vec::new(), feeds: Vec::new(), pasts: Vec::new() };
        for (name, kind) in listed {
            let feed = inputs.feed_of(name, kind)?;
            inputs.feeds.push(feed);
            inputs.names.push(CString::new(name).map_err(|error| error.to_string())?);
        }
        for (name, feed) in [("input_ids", Feed::Ids), ("attention_mask", Feed::Mask)] {
            if !inputs.feeds.contains(&feed) {
                return Err(format!("it takes no input `{name}`"));
            }
        }
        Ok(inputs)
    }

    /// Whether the graph is told where in its text each token stands.
    pub(super) fn take_positions(&self) -> bool {
        self.feeds.contains(&Feed::Positions)
    }

    fn feed_of(&mut self, name: &str, kind: &ValueType) -> Result<Feed, String> {
        let feed = match name {
            "input_ids" => Feed::Ids,
            "attention_mask" => Feed::Mask,
            "token_type_ids" => Feed::TokenTypes,
            "position_ids" => Feed::Positions,
            _ if is_past(name) => {
                let past = Past::of(name, kind)?;
                let known = self.pasts.iter().position(|other| *other == past);
                return Ok(Feed::Past(known.unwrap_or_else(|| {
                    self.pasts.push(past);
                    self.pasts.len() - 1
                })));
            }
            _ => {
                return Err(format!(
                    "it takes an input `{name}`, and Granary feeds `input_ids`, `attention_mask`, `token_type_ids`, \
                     `position_ids`, and `past_key_values.N.key` and `past_key_values.N.value` of no earlier tokens"
                ));
            }
        };
        match kind {
            // Some models have several numbers for the place of each token, and some graphs one row for all texts.
            ValueType::Tensor { shape, .. } if feed == Feed::Positions && (shape.len() != 2 || shape[0] > 0) => {
                Err(format!("its input `{name}` is {kind}, and Granary feeds one number for each token of a text"))
            }
            ValueType::Tensor { ty: TensorElementType::Int64, .. } => Ok(feed),
            _ => Err(format!("its input `{name}` is {kind}, not a tensor of int64")),
        }
    }

    /// Feeds a batch to `run`, which gets a value behind each name.
    pub(super) fn feed<T>(
        &self,
        batch: &PaddedBatch,
        allocator: &Allocator,
        run: impl FnOnce(&[*const c_char], &[*const ort::sys::OrtValue]) -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let ids = of_tokens(batch, &batch.ids)?;
        let mask = of_tokens(batch, &batch.mask)?;
        let token_types = of_tokens(batch, &batch.token_types)?;
        let positions = of_tokens(batch, &batch.positions)?;
        let pasts = self.pasts.iter().map(|past| past.of_nothing(batch.n_texts, allocator));
        let pasts = pasts.collect::<Result<Vec<_>, _>>()?;
        let names: Vec<_> = self.names.iter().map(|name| name.as_ptr()).collect();
        let values: Vec<_> = self
            .feeds
            .iter()
            .map(|feed| match feed {
                Feed::Ids => ids.ptr(),
                Feed::Mask => mask.ptr(),
                Feed::TokenTypes => token_types.ptr(),
                Feed::Positions => positions.ptr(),
                Feed::Past(place) => pasts[*place].ptr(),
            })
            .collect();
        run(&names, &values)
    }
}

/// `[n_texts][width]` numbers as they lie.
fn of_tokens<'a>(batch: &PaddedBatch, numbers: &'a [i64]) -> Result<TensorRef<'a, i64>, Cause> {
    TensorRef::from_array_view(([batch.n_texts, batch.width], numbers)).map_err(cause)
}

/// Whether the name is `past_key_values.N.key` or `past_key_values.N.value`.
fn is_past(name: &str) -> bool {
    let layer = name.strip_prefix("past_key_values.").and_then(|rest| {
        let (layer, part) = rest.split_once('.')?;
        matches!(part, "key" | "value").then_some(layer)
    });
    layer.is_some_and(|layer| !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Past {
    /// Of the four sizes the first is the number of texts, and one of the others, which the graph leaves open, that of the
    /// earlier tokens.
    fn of(name: &str, kind: &ValueType) -> Result<Self, String> {
        use TensorElementType::{Bfloat16, Float16, Float32};

        let refused = || {
            format!(
                "its input `{name}` is {kind}: Granary feeds no earlier tokens where it is a tensor of f32, f16 or bf16 with four \
                 sizes, of which the last three say all but the number of tokens"
            )
        };
        let ValueType::Tensor { ty: element @ (Float32 | Float16 | Bfloat16), shape, .. } = kind else {
            return Err(refused());
        };
        let &[_, first, second, third] = &**shape else { return Err(refused()) };
        // What is open is -1.
        let sizes = [first, second, third].map(|size| usize::try_from(size).unwrap_or(0));
        if sizes.iter().filter(|size| **size == 0).count() != 1 {
            return Err(refused());
        }
        Ok(Self { element: *element, sizes })
    }

    fn of_nothing(&self, n_texts: usize, allocator: &Allocator) -> Result<DynTensor, Cause> {
        let [first, second, third] = self.sizes;
        DynTensor::new(allocator, self.element, [n_texts, first, second, third]).map_err(cause)
    }
}

#[cfg(test)]
mod tests {
    use ort::value::{Shape, SymbolicDimensions};

    use super::*;

    fn tensor(ty: TensorElementType, shape: &[i64]) -> ValueType {
        let dimension_symbols = SymbolicDimensions::empty(shape.len());
        ValueType::Tensor { ty, shape: Shape::new(shape.iter().copied()), dimension_symbols }
    }

    /// What each token has one number of.
    fn of_each_token() -> ValueType {
        tensor(TensorElementType::Int64, &[-1, -1])
    }

    /// The inputs of a graph that takes texts and this.
    fn with(name: &str, ty: TensorElementType, shape: &[i64]) -> Result<GraphInputs, String> {
        let (own, other) = (of_each_token(), tensor(ty, shape));
        GraphInputs::of([("input_ids", &own), ("attention_mask", &own), (name, &other)])
    }

    #[test]
    fn what_came_before_is_fed_where_all_but_its_length_is_said() {
        use TensorElementType::{Bfloat16, Float16, Float32, Float64, Int64};

        for (element, shape, sizes) in [
            (Float32, [-1, 8, -1, 128], [8, 0, 128]),
            (Float16, [-1, -1, 8, 128], [0, 8, 128]),
            (Bfloat16, [-1, 8, 128, -1], [8, 128, 0]),
            (Float32, [1, 8, 0, 128], [8, 0, 128]),
        ] {
            let inputs = with("past_key_values.0.key", element, &shape).expect("it can be fed");
            assert_eq!(inputs.pasts, [Past { element, sizes }]);
            assert_eq!(inputs.feeds, [Feed::Ids, Feed::Mask, Feed::Past(0)]);
        }
        for (element, shape) in [
            (Int64, [-1, 8, -1, 128].as_slice()),
            (Float64, &[-1, 8, -1, 128]),
            (Float32, &[-1, -1, -1, 128]),
            (Float32, &[-1, 8, 16, 128]),
            (Float32, &[-1, -1, 256]),
            (Float32, &[]),
        ] {
            let refusal = with("past_key_values.11.value", element, shape).expect_err("nobody knows its sizes");
            assert!(
                refusal.contains("`past_key_values.11.value`") && refusal.contains("no earlier tokens"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn alike_layers_share_what_they_are_fed() {
        let [long, short] = [16, 8].map(|size| tensor(TensorElementType::Float32, &[-1, 2, -1, size]));
        let own = of_each_token();
        let inputs = GraphInputs::of([
            ("past_key_values.0.key", &long),
            ("past_key_values.0.value", &short),
            ("position_ids", &own),
            ("attention_mask", &own),
            ("input_ids", &own),
            ("past_key_values.1.key", &long),
        ]);
        let inputs = inputs.expect("it can be fed");
        let feeds = [Feed::Past(0), Feed::Past(1), Feed::Positions, Feed::Mask, Feed::Ids, Feed::Past(0)];
        assert_eq!((inputs.feeds.as_slice(), inputs.take_positions()), (feeds.as_slice(), true));
    }

    #[test]
    fn what_cannot_be_fed_is_refused_by_name() {
        for (name, shape) in [
            ("task_id", [].as_slice()),
            ("past_key_values.0.decoder.key", &[-1, 8, -1, 128]),
            ("past_key_values..key", &[-1, 8, -1, 128]),
            ("inputs_embeds", &[-1, -1, 32]),
        ] {
            let refusal = with(name, TensorElementType::Float32, shape).expect_err("it is unknown");
            assert!(refusal.contains(&format!("`{name}`")) && refusal.contains("`position_ids`"), "{refusal}");
        }
        for shape in [[3, -1, -1].as_slice(), &[1, -1]] {
            let refusal =
                with("position_ids", TensorElementType::Int64, shape).expect_err("three for each, or one row");
            assert!(
                refusal.contains("`position_ids` is") && refusal.contains("one number for each token"),
                "{refusal}"
            );
        }
        let refusal = with("position_ids", TensorElementType::Float32, &[-1, -1]).expect_err("no whole numbers");
        assert!(refusal.contains("not a tensor of int64"), "{refusal}");
    }
}
