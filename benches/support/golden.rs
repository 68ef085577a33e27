//! Whether a server makes the right vectors, before anything is measured.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use granary::domain::vector::cosine;
use serde::Deserialize;

use super::Failure;

/// Vectors that sentence-transformers made of the same texts with the same weights.
pub struct Golden {
    /// The texts, some of them longer than the model takes.
    pub texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
    vector: String,
}

impl Golden {
    /// Reads the tests' own answer key.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let (mut texts, mut vectors) = (Vec::new(), Vec::new());
        for line in fs_err::read_to_string(path)?.lines() {
            let Line { text, vector } = serde_json::from_str(line)?;
            let bytes = STANDARD.decode(vector)?;
            vectors.push(bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect());
            texts.push(text);
        }
        Ok(Self { texts, vectors })
    }

    /// The lowest cosine between a server's vectors and these.
    ///
    /// # Errors
    /// When there are not as many vectors as texts, or one has another length.
    pub fn lowest_cosine(&self, vectors: &[Vec<f32>]) -> Result<f64, Failure> {
        if vectors.len() != self.vectors.len() {
            return Err(format!("{} texts were answered by {} vectors", self.vectors.len(), vectors.len()).into());
        }
        let mut lowest = f64::INFINITY;
        for (right, vector) in self.vectors.iter().zip(vectors) {
            if vector.len() != right.len() {
                return Err(format!("a vector has {} dimensions, not {}", vector.len(), right.len()).into());
            }
            lowest = lowest.min(cosine(right, vector));
        }
        Ok(lowest)
    }
}
