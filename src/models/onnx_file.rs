//! What must be known of an `.onnx` file before the runtime opens it: which other files hold its weights, and whether
//! it quantises activations per batch.
//!
//! Walks the protobuf structure (field numbers from `onnx/onnx.proto`, IR version 10) and skips all weights, so that a
//! file of gigabytes takes a few reads. It does not validate the model: that is the runtime's work.

mod apart;

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

pub use apart::graph_apart;

use crate::engine::is_unfit_for_bf16;

/// Nested graphs (`If`, `Loop`) deeper than this are refused.
const MAX_DEPTH: usize = 32;

/// The most bytes of numbers that are looked at: weights have more.
const MAX_NUMBERS_BYTES: u64 = 1024;

/// The longest operator name or external location that is read; others are refused.
const MAX_STRING_BYTES: u64 = 4096;

/// Operators that quantise activations with a scale taken over the whole batch, so that a text's vector depends on its
/// neighbours.
const DYNAMIC_QUANTISATION: [&str; 2] = ["DynamicQuantizeLinear", "DynamicQuantizeMatMul"];

/// `TensorProto.DataType.FLOAT`.
const FLOAT: u64 = 1;

mod field {
    pub const MODEL_GRAPH: u64 = 7;
    pub const MODEL_FUNCTION: u64 = 25;
    pub const FUNCTION_NODE: u64 = 7;
    pub const FUNCTION_ATTRIBUTE: u64 = 11;
    pub const GRAPH_NODE: u64 = 1;
    pub const GRAPH_INITIALIZER: u64 = 5;
    pub const GRAPH_SPARSE_INITIALIZER: u64 = 15;
    pub const NODE_OP_TYPE: u64 = 4;
    pub const NODE_ATTRIBUTE: u64 = 5;
    pub const ATTRIBUTE_TENSOR: u64 = 5;
    pub const ATTRIBUTE_GRAPH: u64 = 6;
    pub const ATTRIBUTE_FLOATS: u64 = 7;
    pub const ATTRIBUTE_TENSORS: u64 = 10;
    pub const ATTRIBUTE_GRAPHS: u64 = 11;
    pub const ATTRIBUTE_SPARSE_TENSOR: u64 = 22;
    pub const ATTRIBUTE_SPARSE_TENSORS: u64 = 23;
    pub const SPARSE_VALUES: u64 = 1;
    pub const SPARSE_INDICES: u64 = 2;
    pub const TENSOR_DATA_TYPE: u64 = 2;
    pub const TENSOR_FLOAT_DATA: u64 = 4;
    pub const TENSOR_RAW_DATA: u64 = 9;
    pub const TENSOR_EXTERNAL_DATA: u64 = 13;
    pub const TENSOR_DATA_LOCATION: u64 = 14;
    pub const ENTRY_KEY: u64 = 1;
    pub const ENTRY_VALUE: u64 = 2;
}

/// What the walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnnxFacts {
    /// Files with weights, as the graph names them, but without `./`: relative to the `.onnx` file's folder.
    pub external_data: BTreeSet<String>,
    /// Whether a text's vector depends on what else is in its batch.
    pub quantizes_per_batch: bool,
    /// Where numbers of fp32 stand that are unfit for bf16, but for those of weights.
    pub unfit_for_bf16: Vec<u64>,
}

/// Reads the facts of the file at `path`.
///
/// # Errors
/// `InvalidData` with a sentence when the file is not a whole protobuf message, else the error of reading it.
pub fn scan(path: &Path) -> io::Result<OnnxFacts> {
    let file = fs_err::File::open(path)?;
    let n_bytes = file.metadata()?.len();
    scan_reader(BufReader::new(file), n_bytes)
}

fn scan_reader(reader: impl Read + Seek, n_bytes: u64) -> io::Result<OnnxFacts> {
    let mut walk = Walk::new(reader);
    let mut has_graph = false;
    walk.message(n_bytes, |walk, number, end| match number {
        field::MODEL_GRAPH => {
            has_graph = true;
            walk.graph(end, 0)
        }
        field::MODEL_FUNCTION => walk.function(end),
        _ => walk.skip_to(end),
    })?;
    if has_graph { Ok(walk.facts) } else { Err(malformed("it holds no graph")) }
}

struct Walk<R> {
    reader: R,
    position: u64,
    /// Where the field begins that was met last.
    field_start: u64,
    /// The number and the value of the varint field that was met last.
    last_varint: (u64, u64),
    facts: OnnxFacts,
}

impl<R: Read + Seek> Walk<R> {
    fn new(reader: R) -> Self {
        Self { reader, position: 0, field_start: 0, last_varint: (0, 0), facts: OnnxFacts::default() }
    }

    /// Calls `each` with the number and the end of every length-delimited field up to `end`; other fields are skipped.
    /// `each` must leave the position at the field's end.
    fn message(&mut self, end: u64, mut each: impl FnMut(&mut Self, u64, u64) -> io::Result<()>) -> io::Result<()> {
        while self.position < end {
            self.field_start = self.position;
            let tag = self.varint()?;
            match tag & 7 {
                0 => self.last_varint = (tag >> 3, self.varint()?),
                1 => self.skip_to(self.position + 8)?,
                // All of them in ONNX are numbers of fp32.
                5 => self.numbers(self.position + 4)?,
                2 => {
                    let n_bytes = self.varint()?;
                    let field_end = self.position.checked_add(n_bytes).filter(|field_end| *field_end <= end);
                    let field_end =
                        field_end.ok_or_else(|| malformed("a field is longer than the file: is it cut?"))?;
                    each(self, tag >> 3, field_end)?;
                }
                _ => return Err(malformed("it is not an ONNX file")),
            }
        }
        if self.position == end { Ok(()) } else { Err(malformed("a field overruns its message")) }
    }

    fn graph(&mut self, end: u64, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(malformed("its graphs are nested too deep"));
        }
        self.message(end, |walk, number, end| match number {
            field::GRAPH_NODE => walk.node(end, depth),
            field::GRAPH_INITIALIZER => walk.tensor(end),
            field::GRAPH_SPARSE_INITIALIZER => walk.sparse_tensor(end),
            _ => walk.skip_to(end),
        })
    }

    /// A function of the model's own, which nodes of the graph call as an operator.
    fn function(&mut self, end: u64) -> io::Result<()> {
        self.message(end, |walk, number, end| match number {
            field::FUNCTION_NODE => walk.node(end, 0),
            field::FUNCTION_ATTRIBUTE => walk.attribute(end, 0),
            _ => walk.skip_to(end),
        })
    }

    fn node(&mut self, end: u64, depth: usize) -> io::Result<()> {
        self.message(end, |walk, number, end| match number {
            field::NODE_OP_TYPE => {
                let operator = walk.string(end)?;
                walk.facts.quantizes_per_batch |= DYNAMIC_QUANTISATION.contains(&operator.as_str());
                Ok(())
            }
            field::NODE_ATTRIBUTE => walk.attribute(end, depth),
            _ => walk.skip_to(end),
        })
    }

    fn attribute(&mut self, end: u64, depth: usize) -> io::Result<()> {
        self.message(end, |walk, number, end| match number {
            field::ATTRIBUTE_TENSOR | field::ATTRIBUTE_TENSORS => walk.tensor(end),
            field::ATTRIBUTE_GRAPH | field::ATTRIBUTE_GRAPHS => walk.graph(end, depth + 1),
            field::ATTRIBUTE_SPARSE_TENSOR | field::ATTRIBUTE_SPARSE_TENSORS => walk.sparse_tensor(end),
            field::ATTRIBUTE_FLOATS => walk.numbers(end),
            _ => walk.skip_to(end),
        })
    }

    fn sparse_tensor(&mut self, end: u64) -> io::Result<()> {
        self.message(end, |walk, number, end| match number {
            field::SPARSE_VALUES | field::SPARSE_INDICES => walk.tensor(end),
            _ => walk.skip_to(end),
        })
    }

    fn tensor(&mut self, end: u64) -> io::Result<()> {
        self.message(end, |walk, number, end| {
            // The type stands before the numbers.
            let is_float = walk.last_varint == (field::TENSOR_DATA_TYPE, FLOAT);
            if number == field::TENSOR_FLOAT_DATA || number == field::TENSOR_RAW_DATA && is_float {
                return walk.numbers(end);
            }
            if number != field::TENSOR_EXTERNAL_DATA {
                return walk.skip_to(end);
            }
            let (mut key, mut value) = (String::new(), String::new());
            walk.message(end, |walk, number, end| match number {
                field::ENTRY_KEY => walk.string(end).map(|text| key = text),
                field::ENTRY_VALUE => walk.string(end).map(|text| value = text),
                _ => walk.skip_to(end),
            })?;
            if key == "location" {
                // Some exporters begin it with the folder that it is relative to.
                walk.facts.external_data.insert(value.trim_start_matches("./").to_owned());
            }
            Ok(())
        })
    }

    /// Numbers of fp32, if they are few.
    fn numbers(&mut self, end: u64) -> io::Result<()> {
        if end - self.position > MAX_NUMBERS_BYTES {
            return self.skip_to(end);
        }
        while end - self.position >= 4 {
            let mut bytes = [0; 4];
            self.reader.read_exact(&mut bytes).map_err(|_| malformed("it ends in the middle of a number"))?;
            if is_unfit_for_bf16(f32::from_le_bytes(bytes)) {
                self.facts.unfit_for_bf16.push(self.position);
            }
            self.position += 4;
        }
        self.skip_to(end)
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).map_err(|_| malformed("it ends in the middle of a field"))?;
            self.position += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("it is not an ONNX file"))
    }

    fn string(&mut self, end: u64) -> io::Result<String> {
        let n_bytes = end - self.position;
        if n_bytes > MAX_STRING_BYTES {
            return Err(malformed("a name in it is too long"));
        }
        let mut bytes = vec![0; usize::try_from(n_bytes).unwrap_or_default()];
        self.reader.read_exact(&mut bytes).map_err(|_| malformed("it ends in the middle of a name"))?;
        self.position = end;
        String::from_utf8(bytes).map_err(|_| malformed("a name in it is not UTF-8"))
    }

    fn skip_to(&mut self, end: u64) -> io::Result<()> {
        let forward = i64::try_from(end - self.position).map_err(|_| malformed("a field is too long"))?;
        // `seek_relative` would keep the buffer, but only `BufReader` has it: weights are larger than its buffer anyway.
        self.reader.seek(SeekFrom::Current(forward))?;
        self.position = end;
        Ok(())
    }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::apart::field;
    use super::*;

    fn tensor_at(location: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            field(field::TENSOR_EXTERNAL_DATA, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
        };
        // A name (field 8) and a data type (field 2, a varint) stand around the entries, as they do in real files.
        [vec![0x10, 1], field(8, b"weight"), entry("location", location), entry("offset", "0")].concat()
    }

    fn scanned(bytes: &[u8]) -> io::Result<OnnxFacts> {
        scan_reader(Cursor::new(bytes), bytes.len() as u64)
    }

    fn model() -> Vec<u8> {
        let constant = field(field::NODE_ATTRIBUTE, &field(field::ATTRIBUTE_TENSOR, &tensor_at("constants.bin")));
        let node = [field(field::NODE_OP_TYPE, b"DynamicQuantizeLinear"), constant].concat();
        let graph =
            [field(field::GRAPH_NODE, &node), field(field::GRAPH_INITIALIZER, &tensor_at("model.onnx_data"))].concat();
        [vec![0x08, 10], field(field::MODEL_GRAPH, &graph)].concat()
    }

    #[test]
    fn external_files_and_quantisation_are_found_wherever_they_stand() {
        let facts = scanned(&model()).expect("well formed");
        assert_eq!(facts.external_data, BTreeSet::from(["constants.bin".into(), "model.onnx_data".into()]));
        assert!(facts.quantizes_per_batch);
    }

    #[test]
    fn a_location_is_the_same_with_its_own_folder_before_it() {
        let located = |location: &str| field(field::GRAPH_INITIALIZER, &tensor_at(location));
        for (location, found) in [("./weights.bin", "weights.bin"), ("././a/b.bin", "a/b.bin"), ("./../b", "../b")] {
            let graph = [located(location), located(found)].concat();
            let facts = scanned(&field(field::MODEL_GRAPH, &graph)).expect("well formed");
            assert_eq!(facts.external_data, BTreeSet::from([found.to_owned()]), "{location}");
        }
    }

    #[test]
    fn numbers_that_are_unfit_for_bf16_are_found_wherever_exporters_write_them() {
        let least = f32::MIN.to_le_bytes();
        let numbers = [f32::MIN, 1.0, -65_504.0].map(f32::to_le_bytes).concat();
        let typed = |data_type: u8, number: u64, bytes: &[u8]| [vec![0x10, data_type], field(number, bytes)].concat();
        let node_with = |attribute: &[u8]| field(field::GRAPH_NODE, &field(field::NODE_ATTRIBUTE, attribute));
        let initializer = |tensor: &[u8]| field(field::GRAPH_INITIALIZER, tensor);
        let single = |number: u8| [vec![number << 3 | 5], least.to_vec()].concat();
        for (graph, n_found) in [
            (initializer(&typed(1, field::TENSOR_RAW_DATA, &numbers)), 1),
            (initializer(&typed(1, field::TENSOR_FLOAT_DATA, &numbers)), 1),
            (initializer(&[vec![0x10, 1], single(4), single(4)].concat()), 2),
            (node_with(&field(field::ATTRIBUTE_TENSOR, &typed(1, field::TENSOR_RAW_DATA, &least))), 1),
            (node_with(&single(2)), 1),
            (node_with(&field(field::ATTRIBUTE_FLOATS, &numbers)), 1),
            // Whole numbers of four bytes, and weights.
            (initializer(&typed(6, field::TENSOR_RAW_DATA, &numbers)), 0),
            (initializer(&typed(1, field::TENSOR_RAW_DATA, &least.repeat(300))), 0),
        ] {
            let model = field(field::MODEL_GRAPH, &graph);
            let found = scanned(&model).expect("well formed").unfit_for_bf16;
            assert_eq!(found.len(), n_found, "{graph:?}");
            for place in found {
                let place = usize::try_from(place).expect("a place in it");
                assert_eq!(model[place..place + 4], least, "{graph:?}");
            }
        }
    }

    #[test]
    fn functions_and_sparse_tensors_are_walked_too() {
        let graph = |content: &[u8]| field(field::MODEL_GRAPH, content);
        let function =
            |number, content: &[u8]| [graph(b""), field(field::MODEL_FUNCTION, &field(number, content))].concat();
        let operator = field(field::NODE_OP_TYPE, b"DynamicQuantizeLinear");
        assert!(scanned(&function(field::FUNCTION_NODE, &operator)).expect("well formed").quantizes_per_batch);

        let tensor = tensor_at("apart.bin");
        let node_with = |number, content: &[u8]| field(field::NODE_ATTRIBUTE, &field(number, content));
        let values = field(field::SPARSE_VALUES, &tensor);
        for model in [
            graph(&field(field::GRAPH_SPARSE_INITIALIZER, &values)),
            graph(&field(field::GRAPH_SPARSE_INITIALIZER, &field(field::SPARSE_INDICES, &tensor))),
            graph(&field(field::GRAPH_NODE, &node_with(field::ATTRIBUTE_SPARSE_TENSOR, &values))),
            graph(&field(field::GRAPH_NODE, &node_with(field::ATTRIBUTE_SPARSE_TENSORS, &values))),
            function(field::FUNCTION_NODE, &node_with(field::ATTRIBUTE_TENSOR, &tensor)),
            function(field::FUNCTION_ATTRIBUTE, &field(field::ATTRIBUTE_TENSOR, &tensor)),
        ] {
            let facts = scanned(&model).expect("well formed");
            assert_eq!(facts.external_data, BTreeSet::from(["apart.bin".to_owned()]), "{model:?}");
        }
    }

    #[test]
    fn a_cut_file_is_refused_wherever_it_is_cut() {
        let whole = model();
        for n_bytes in 0..whole.len() {
            assert!(scanned(&whole[..n_bytes]).is_err(), "cut after {n_bytes} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = scanned(&bytes);
        }
    }
}
