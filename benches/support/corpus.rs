//! Real texts of a wanted length, none twice: windows over Debian's package descriptions.
//!
//! Lengths are counted in the model's own tokens. `WordPiece` never joins what white space parts, so that the tokens of a
//! text are those of its words: each word is tokenised once, and cutting a text costs a few additions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::Failure;
use super::random::Random;

/// `[CLS]` and `[SEP]`.
const N_SPECIAL_TOKENS: u32 = 2;
/// How often the descriptions are cut anew before they count as used up.
const N_LAPS: usize = 8;

/// A text and how many tokens the model sees of it, special ones included.
#[derive(Debug)]
pub struct Text {
    /// The words, one space between.
    pub text: String,
    /// Tokens.
    pub n_tokens: u32,
}

/// The length of texts, and the descriptions they are cut from: no two forms share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// About 12 tokens, within one description.
    Query,
    /// About 128 tokens; one may end in the next description.
    Passage,
    /// Descriptions as they are, of 4 to 256 tokens.
    Natural,
}

struct Cut {
    /// Of every ten descriptions, these.
    share: std::ops::Range<usize>,
    /// Tokens, without the special ones.
    tokens: std::ops::RangeInclusive<u32>,
    joins_texts: bool,
    one_per_text: bool,
}

impl Form {
    fn cut(self) -> Cut {
        match self {
            Self::Query => Cut { share: 0..2, tokens: 8..=11, joins_texts: false, one_per_text: false },
            Self::Passage => Cut { share: 2..6, tokens: 120..=126, joins_texts: true, one_per_text: false },
            Self::Natural => Cut { share: 6..10, tokens: 2..=254, joins_texts: false, one_per_text: true },
        }
    }
}

/// The descriptions, in an order without meaning that is the same in every run.
pub struct Corpus {
    texts: Vec<Vec<Word>>,
    /// Of the file, so that results over other texts can be told apart.
    pub sha256: String,
}

#[derive(Clone)]
struct Word {
    letters: Arc<str>,
    n_tokens: u32,
    ends_text: bool,
}

impl Corpus {
    /// Reads a file of texts, one a line.
    pub fn read(path: &Path, tokenizer: &Path) -> Result<Self, Failure> {
        let content =
            fs_err::read_to_string(path).map_err(|error| format!("{error}; `make setup-bench` fetches it"))?;
        let mut tokenizer = Tokenizer::from_file(tokenizer)?;
        tokenizer.with_truncation(None)?.with_padding(None);
        let mut known: HashMap<&str, Word> = HashMap::new();
        let mut texts = Vec::new();
        for line in content.lines() {
            let mut words: Vec<Word> = Vec::new();
            for word in line.split_whitespace() {
                if !known.contains_key(word) {
                    let n_tokens = u32::try_from(tokenizer.encode_fast(word, false)?.len())?;
                    known.insert(word, Word { letters: word.into(), n_tokens, ends_text: false });
                }
                words.push(known[word].clone());
            }
            if let Some(last) = words.last_mut() {
                last.ends_text = true;
                texts.push(words);
            }
        }
        Random::new(1).shuffle(&mut texts);
        let sha256 = Sha256::digest(&content).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        Ok(Self { texts, sha256 })
    }

    /// How many texts the file has.
    pub fn n_texts(&self) -> usize {
        self.texts.len()
    }

    /// Texts of this form, from the first on.
    pub fn stream(&self, form: Form) -> Stream {
        let share = form.cut().share;
        let ours = self.texts.iter().enumerate().filter(|(index, _)| share.contains(&(index % 10)));
        Stream {
            cut: form.cut(),
            words: ours.flat_map(|(_, words)| words.iter().cloned()).collect(),
            at: 0,
            lap: 0,
            seen: HashSet::new(),
            ready: VecDeque::new(),
        }
    }
}

/// Texts of one form. Each is given once: what [`Stream::peek`] shows is there until [`Stream::discard`] takes it away, so
/// that several servers can be given the same.
pub struct Stream {
    cut: Cut,
    words: Vec<Word>,
    at: usize,
    lap: usize,
    seen: HashSet<[u8; 16]>,
    ready: VecDeque<Arc<Text>>,
}

impl Stream {
    /// The next `n` texts; fewer when the descriptions are used up.
    pub fn peek(&mut self, n: usize) -> Vec<Arc<Text>> {
        while self.ready.len() < n {
            let Some(text) = self.cut_next() else { break };
            self.ready.push_back(Arc::new(text));
        }
        self.ready.iter().take(n).cloned().collect()
    }

    /// Drops the next `n` texts: they have been used.
    pub fn discard(&mut self, n: usize) {
        self.ready.drain(..n.min(self.ready.len()));
    }

    /// The next `n` texts, used by the caller alone.
    pub fn take(&mut self, n: usize) -> Vec<Arc<Text>> {
        let texts = self.peek(n);
        self.discard(n);
        texts
    }

    fn cut_next(&mut self) -> Option<Text> {
        loop {
            // From the second lap on some words are left out before each window, so that other windows come of it.
            self.at += self.lap;
            if self.at >= self.words.len() {
                self.lap += 1;
                self.at = 0;
                if self.lap == N_LAPS {
                    return None;
                }
                continue;
            }
            let window = self.window();
            let n_tokens = window.iter().map(|word| word.n_tokens).sum::<u32>();
            let text = window.iter().map(|word| &*word.letters).collect::<Vec<_>>().join(" ");
            if self.cut.tokens.contains(&n_tokens) && self.is_new(&text) {
                return Some(Text { text, n_tokens: n_tokens + N_SPECIAL_TOKENS });
            }
        }
    }

    /// As many words from here on as fit, and moves behind them.
    fn window(&mut self) -> Vec<Word> {
        let (mut window, mut n_tokens) = (Vec::new(), 0);
        let mut at_end = false;
        while let Some(word) = self.words.get(self.at)
            && !at_end
            && n_tokens + word.n_tokens <= *self.cut.tokens.end()
        {
            n_tokens += word.n_tokens;
            at_end = word.ends_text && !self.cut.joins_texts;
            window.push(word.clone());
            self.at += 1;
        }
        if window.is_empty() {
            self.at += 1; // a word that is longer than any window
        } else if self.cut.one_per_text && !at_end {
            let rest = self.words[self.at..].iter().position(|word| word.ends_text);
            self.at += rest.map_or(self.words.len(), |last| last + 1);
        }
        window
    }

    fn is_new(&mut self, text: &str) -> bool {
        let hash = Sha256::digest(text);
        self.seen.insert(hash[..16].try_into().expect("a SHA-256 has 32 bytes"))
    }
}

/// Texts for one run of many clients: each takes the next, none is given twice.
pub struct Feed {
    texts: Vec<Arc<Text>>,
    next: AtomicUsize,
}

impl Feed {
    /// Gives these texts in their order.
    pub fn new(texts: Vec<Arc<Text>>) -> Self {
        Self { texts, next: AtomicUsize::new(0) }
    }

    /// The next `n` texts; `None` when there are not as many left.
    pub fn take(&self, n: usize) -> Option<&[Arc<Text>]> {
        let start = self.next.fetch_add(n, Ordering::Relaxed);
        self.texts.get(start..start + n)
    }

    /// How many texts have been taken.
    pub fn n_taken(&self) -> usize {
        self.next.load(Ordering::Relaxed).min(self.texts.len())
    }
}
