//! What a run takes: texts laid out in rows of one width.

/// From which number a model counts the tokens of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positions {
    /// From 0, as they are numbered in a batch.
    FromZero,
    /// From behind the number that padding has, as models of this type do.
    BehindPadding(String),
}

/// Texts of one run, padded to one width behind their ends. Token type ids are all zero, as for single texts everywhere, and
/// tokens are numbered from 0 in each text.
#[derive(Debug, Default)]
pub struct PaddedBatch {
    /// `[n_texts][width]` token ids, 0 behind each text's end.
    pub ids: Vec<i64>,
    /// `[n_texts][width]`: 1 for a token, 0 for padding.
    pub mask: Vec<i64>,
    /// Texts in the batch.
    pub n_texts: usize,
    /// Tokens in each row.
    pub width: usize,
    pub(super) token_types: Vec<i64>,
    /// `[n_texts][width]`.
    pub(super) positions: Vec<i64>,
}

impl PaddedBatch {
    /// Lays texts out at `width`, which is at least the longest one's length. Buffers are reused.
    pub fn fill<'a>(&mut self, texts: impl Iterator<Item = &'a [u32]>, width: usize) {
        self.ids.clear();
        self.mask.clear();
        self.positions.clear();
        self.n_texts = 0;
        self.width = width;
        for text in texts {
            self.n_texts += 1;
            self.ids.extend(text.iter().map(|id| i64::from(*id)));
            self.ids.resize(self.n_texts * width, 0);
            self.mask.resize((self.n_texts - 1) * width + text.len(), 1);
            self.mask.resize(self.n_texts * width, 0);
            self.positions.extend((0_i64..).take(width));
        }
        self.token_types.clear();
        self.token_types.resize(self.n_texts * width, 0);
    }
}
