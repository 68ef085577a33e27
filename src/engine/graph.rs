//! Where a model's graph and its weights are.

use std::path::PathBuf;

/// Where a graph and its weights are.
#[derive(Clone, Debug)]
pub struct GraphFiles {
    /// The `.onnx` file.
    pub onnx: PathBuf,
    /// Weights outside it.
    pub external_data: Vec<PathBuf>,
    /// The same graph without its weights, where these are within that file and nobody changes it.
    pub apart: Option<GraphApart>,
}

/// A graph whose weights lie in a file.
#[derive(Clone, Debug)]
pub struct GraphApart {
    /// What an `.onnx` file holds, with the places of weights in place of them.
    pub graph: Vec<u8>,
    /// The file that they are in, no link.
    pub weights: PathBuf,
}
