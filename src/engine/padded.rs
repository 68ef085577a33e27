//! What a run takes: texts laid out in rows of one width.

/// Texts of one run, padded to one width. Token type ids are all zero, as for single texts everywhere.
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
}

impl PaddedBatch {
    /// Lays texts out at `width`, which is at least the longest one's length. Buffers are reused.
    pub fn fill<'a>(&mut self, texts: impl Iterator<Item = &'a [u32]>, width: usize) {
        self.ids.clear();
        self.mask.clear();
        self.n_texts = 0;
        self.width = width;
        for text in texts {
            self.n_texts += 1;
            self.ids.extend(text.iter().map(|id| i64::from(*id)));
            self.ids.resize(self.n_texts * width, 0);
            self.mask.resize((self.n_texts - 1) * width + text.len(), 1);
            self.mask.resize(self.n_texts * width, 0);
        }
        self.token_types.clear();
        self.token_types.resize(self.n_texts * width, 0);
    }
}
