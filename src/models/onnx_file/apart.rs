//! The graph of an `.onnx` file without its weights, which stay where they are in that file.
//!
//! Weights within the graph become copies of the runtime's own, one for each session, for as long as the model is loaded.
//! Those that the graph names by file and place are mapped: sessions share the pages, and what is laid out anew for
//! products, or never looked up, takes no memory.

use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::{Walk, field as fields, malformed, scan_reader};
use crate::engine::GraphApart;

/// Smaller weights stay in the graph. They are little together, and among them are all whose numbers decide shapes, which the
/// runtime must know when it opens the graph.
const MIN_WEIGHT_BYTES: u64 = 128 << 10;

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: u64 = 1;

/// A weight within the graph that may stay in the file.
struct Weight {
    /// The whole field, tag and length included.
    field: Range<u64>,
    /// Its tensor's content.
    tensor: Range<u64>,
    /// The tensor's field of numbers, tag and length included.
    raw_data: Range<u64>,
    /// The numbers.
    numbers: Range<u64>,
}

/// The graph of the file at `path`, for as long as nobody changes that file. `None` when it holds few weights that could
/// stay there.
///
/// # Errors
/// As [`super::scan`].
pub fn graph_apart(path: &Path) -> io::Result<Option<GraphApart>> {
    // Weights must lie in the folder that the graph is said to be in, once links are followed.
    let weights = fs_err::canonicalize(path)?;
    // The runtime takes names in UTF-8.
    let (Some(_), Some(name)) = (weights.to_str(), weights.file_name().and_then(|name| name.to_str())) else {
        return Ok(None);
    };
    let file = fs_err::File::open(&weights)?;
    let n_bytes = file.metadata()?.len();
    let Some(graph) = graph_of(BufReader::new(file), n_bytes, name)? else { return Ok(None) };
    let unfit_for_bf16 = scan_reader(Cursor::new(&graph), graph.len() as u64)?.unfit_for_bf16;
    Ok(Some(GraphApart { graph, unfit_for_bf16, weights }))
}

/// The same for the file called `name` that `reader` reads.
fn graph_of(reader: impl Read + Seek, n_bytes: u64, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut walk = Walk::new(reader);
    let mut graphs = Vec::new();
    let mut weights = Vec::new();
    walk.message(n_bytes, |walk, number, end| {
        if number != fields::MODEL_GRAPH {
            return walk.skip_to(end);
        }
        graphs.push((walk.field_start..end, walk.position..end));
        walk.message(end, |walk, number, end| {
            if number != fields::GRAPH_INITIALIZER {
                return walk.skip_to(end);
            }
            weights.extend(weight(walk, end)?);
            Ok(())
        })
    })?;
    let left_bytes: u64 = weights.iter().map(|weight| weight.numbers.end - weight.numbers.start).sum();
    let [(graph_field, graph)] = graphs.as_slice() else {
        return Ok(None);
    };
    // What is read into memory is the smaller part.
    if left_bytes <= n_bytes / 2 {
        return Ok(None);
    }
    let reader = &mut walk.reader;
    let mut within = Vec::new();
    let mut copied = graph.start;
    for weight in &weights {
        copy(reader, copied..weight.field.start, &mut within)?;
        let mut tensor = Vec::new();
        copy(reader, weight.tensor.start..weight.raw_data.start, &mut tensor)?;
        copy(reader, weight.raw_data.end..weight.tensor.end, &mut tensor)?;
        tensor.extend(location(name, &weight.numbers));
        within.extend(field(fields::GRAPH_INITIALIZER, &tensor));
        copied = weight.field.end;
    }
    copy(reader, copied..graph.end, &mut within)?;
    let mut model = Vec::new();
    copy(reader, 0..graph_field.start, &mut model)?;
    model.extend(field(fields::MODEL_GRAPH, &within));
    copy(reader, graph_field.end..n_bytes, &mut model)?;
    Ok(Some(model))
}

/// Reads an initializer up to `end`. `None` when its numbers are few, or kept in another way.
fn weight<R: Read + Seek>(walk: &mut Walk<R>, end: u64) -> io::Result<Option<Weight>> {
    let (field, tensor) = (walk.field_start..end, walk.position..end);
    let mut found = Vec::new();
    walk.message(end, |walk, number, end| {
        if number == fields::TENSOR_RAW_DATA {
            found.push((walk.field_start..end, walk.position..end));
        }
        walk.skip_to(end)
    })?;
    Ok(match found.as_slice() {
        [(raw_data, numbers)] if numbers.end - numbers.start >= MIN_WEIGHT_BYTES => {
            Some(Weight { field, tensor, raw_data: raw_data.clone(), numbers: numbers.clone() })
        }
        _ => None,
    })
}

/// The fields of a tensor that say where its numbers are.
fn location(name: &str, numbers: &Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_varint(&mut bytes, fields::TENSOR_DATA_LOCATION << 3);
    push_varint(&mut bytes, EXTERNAL);
    let (offset, length) = (numbers.start.to_string(), (numbers.end - numbers.start).to_string());
    for (key, value) in [("location", name), ("offset", &offset), ("length", &length)] {
        let entry = [field(fields::ENTRY_KEY, key.as_bytes()), field(fields::ENTRY_VALUE, value.as_bytes())].concat();
        bytes.extend(field(fields::TENSOR_EXTERNAL_DATA, &entry));
    }
    bytes
}

/// A length-delimited field.
pub(super) fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_varint(&mut bytes, number << 3 | 2);
    push_varint(&mut bytes, content.len() as u64);
    bytes.extend_from_slice(content);
    bytes
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

/// Appends a part of the file.
fn copy(reader: &mut (impl Read + Seek), part: Range<u64>, to: &mut Vec<u8>) -> io::Result<()> {
    reader.seek(SeekFrom::Start(part.start))?;
    let n_bytes = part.end - part.start;
    let read = reader.take(n_bytes).read_to_end(to)?;
    if read as u64 == n_bytes { Ok(()) } else { Err(malformed("it was made shorter while it was read")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An initializer: a data type, a name, numbers, and a remark behind them.
    fn initializer(name: &str, numbers: &[u8]) -> Vec<u8> {
        let tensor = [vec![0x10, 1], field(8, name.as_bytes()), field(9, numbers), field(12, b"behind")].concat();
        field(fields::GRAPH_INITIALIZER, &tensor)
    }

    fn model(graph: &[Vec<u8>]) -> Vec<u8> {
        [vec![0x08, 10], field(fields::MODEL_GRAPH, &graph.concat()), field(8, b"opset")].concat()
    }

    fn apart(model: &[u8]) -> Option<Vec<u8>> {
        graph_of(Cursor::new(model), model.len() as u64, "weights.onnx").expect("well formed")
    }

    #[test]
    fn large_weights_stay_where_they_are_and_everything_else_is_as_it_was() {
        let (first, second) = (vec![7; 128 << 10], vec![9; 200_000]);
        let (node, small) = (field(fields::GRAPH_NODE, b""), initializer("bias", &[3; 1000]));
        let whole = model(&[
            node.clone(),
            initializer("first", &first),
            small.clone(),
            initializer("second", &second),
            field(2, b"name"),
        ]);
        let place = |numbers: &[u8]| {
            let start = whole.windows(numbers.len()).position(|part| part == numbers).expect("there") as u64;
            start..start + numbers.len() as u64
        };
        let left = |name: &str, numbers: &[u8]| {
            let described = [vec![0x10, 1], field(8, name.as_bytes()), field(12, b"behind")].concat();
            field(fields::GRAPH_INITIALIZER, &[described, location("weights.onnx", &place(numbers))].concat())
        };
        let expected = model(&[node, left("first", &first), small, left("second", &second), field(2, b"name")]);

        let graph = apart(&whole).expect("there are large weights");
        assert_eq!(graph, expected);
        let facts = scan_reader(Cursor::new(&graph), graph.len() as u64).expect("well formed");
        assert_eq!(facts.external_data.into_iter().collect::<Vec<_>>(), ["weights.onnx"]);
    }

    #[test]
    fn a_graph_that_is_mostly_something_else_is_left_as_it_is() {
        let other = field(2, &vec![0; 200_000]);
        assert_eq!(apart(&model(&[initializer("small", &[1; 1000])])), None);
        assert_eq!(apart(&model(&[initializer("large", &vec![1; 128 << 10]), other])), None);
        let graph = field(fields::MODEL_GRAPH, &initializer("large", &vec![1; 128 << 10]));
        assert!(apart(&graph).is_some());
        assert_eq!(apart(&graph.repeat(2)), None, "which of two graphs would it be?");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = graph_of(Cursor::new(&bytes), bytes.len() as u64, "weights.onnx");
        }
    }
}
