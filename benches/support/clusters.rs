//! Vectors, queries, and the nearest found by looking at all.

use std::borrow::Cow;
use std::path::Path;
use std::thread;

use super::Failure;
use super::random::Random;

/// Hits that are wanted of each search.
pub const N_HITS: usize = 10;

/// Vectors that are drawn, and compared with the queries, at once.
const AT_ONCE: usize = 4_096;

const N_CENTRES: usize = 10_000;

/// Length of what is added to a centre of length 1: the cosine of two neighbours is about 1 / (1 + 0.7²) = 0.67.
const NOISE: f32 = 0.7;

/// Where vectors come from.
pub struct Source {
    dimensions: usize,
    queries: Vec<f32>,
    rows: Rows,
}

enum Rows {
    Clusters { centres: Vec<f32> },
    File { rows: Vec<f32> },
}

/// For each query, the numbers of the nearest of those that a filter keeps.
pub type Truth = Vec<Vec<i64>>;

impl Source {
    /// Vectors around random centres, or those of a file of which the last are the queries.
    pub fn open(dimensions: usize, n_queries: usize, file: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = file {
            let bytes = fs_err::read(path)?;
            let values = bytes.chunks_exact(4).map(|bytes| Ok(f32::from_le_bytes(bytes.try_into()?)));
            let mut rows = values.collect::<Result<Vec<f32>, Failure>>()?;
            let n_rows = (rows.len() / dimensions).checked_sub(n_queries).ok_or("too few vectors")?;
            let queries = rows.split_off(n_rows * dimensions);
            return Ok(Self { dimensions, queries, rows: Rows::File { rows } });
        }
        let mut random = Random::new(1);
        let mut centres = vec![0.0; N_CENTRES * dimensions];
        centres.chunks_exact_mut(dimensions).for_each(|centre| draw_unit(&mut random, centre));
        let mut queries = vec![0.0; n_queries * dimensions];
        queries.chunks_exact_mut(dimensions).for_each(|query| draw_near(&mut random, &centres, query));
        Ok(Self { dimensions, queries, rows: Rows::Clusters { centres } })
    }

    /// How many vectors there are at most.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::Clusters { .. } => usize::MAX,
            Rows::File { rows } => rows.len() / self.dimensions,
        }
    }

    pub fn queries(&self) -> impl Iterator<Item = &[f32]> {
        self.queries.chunks_exact(self.dimensions)
    }

    /// Hands out the first `n` vectors in runs, each with the number of its first, from 1.
    pub fn each(&self, n: usize, mut take: impl FnMut(i64, &[f32]) -> Result<(), Failure>) -> Result<(), Failure> {
        for (first, rows) in self.runs(n) {
            take(first, &rows)?;
        }
        Ok(())
    }

    /// The first `n` vectors in runs, each with the number of its first, from 1.
    pub fn runs(&self, n: usize) -> impl Iterator<Item = (i64, Cow<'_, [f32]>)> {
        (0..n).step_by(AT_ONCE).zip((1..).step_by(AT_ONCE)).map(move |(first, number)| {
            let n_rows = AT_ONCE.min(n - first);
            let rows = match &self.rows {
                Rows::File { rows } => Cow::Borrowed(&rows[first * self.dimensions..][..n_rows * self.dimensions]),
                Rows::Clusters { centres } => {
                    let mut random = Random::new(first as u64 + 2);
                    let mut rows = vec![0.0; n_rows * self.dimensions];
                    rows.chunks_exact_mut(self.dimensions).for_each(|row| draw_near(&mut random, centres, row));
                    Cow::Owned(rows)
                }
            };
            (number, rows)
        })
    }

    /// The nearest of the first `n` for each query, among the numbers that are a multiple of each of `steps`.
    pub fn truths(&self, n: usize, steps: &[i64]) -> Result<Vec<Truth>, Failure> {
        let n_threads = thread::available_parallelism()?.get();
        let mut best: Vec<Best> =
            self.queries().map(|query| Best { query, of_steps: vec![vec![]; steps.len()] }).collect();
        let per_thread = best.len().div_ceil(n_threads).max(1);
        self.each(n, |first, rows| {
            thread::scope(|scope| {
                for best in best.chunks_mut(per_thread) {
                    scope.spawn(move || {
                        for (row, number) in rows.chunks_exact(self.dimensions).zip(first..) {
                            for best in best.iter_mut() {
                                best.show(row, number, steps);
                            }
                        }
                    });
                }
            });
            Ok(())
        })?;
        let numbers = |best: &[(f32, i64)]| best.iter().map(|&(_, number)| number).collect();
        Ok((0..steps.len()).map(|at| best.iter().map(|best| numbers(&best.of_steps[at])).collect()).collect())
    }
}

struct Best<'a> {
    query: &'a [f32],
    /// Best first.
    of_steps: Vec<Vec<(f32, i64)>>,
}

impl Best<'_> {
    fn show(&mut self, row: &[f32], number: i64, steps: &[i64]) {
        let score = dot(self.query, row);
        for (best, _) in self.of_steps.iter_mut().zip(steps).filter(|(_, step)| number % **step == 0) {
            if best.len() < N_HITS || best.last().is_some_and(|last| score > last.0) {
                let at = best.partition_point(|better| better.0 >= score);
                best.insert(at, (score, number));
                best.truncate(N_HITS);
            }
        }
    }
}

/// Not the index's own product, so that it checks that too.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 32];
    for (a, b) in a.chunks_exact(32).zip(b.chunks_exact(32)) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    let rest = a.len() / 32 * 32;
    sums.iter().sum::<f32>() + a[rest..].iter().zip(&b[rest..]).map(|(a, b)| a * b).sum::<f32>()
}

fn draw_near(random: &mut Random, centres: &[f32], row: &mut [f32]) {
    draw_unit(random, row);
    let centre = random.below(N_CENTRES) * row.len();
    row.iter_mut().zip(&centres[centre..]).for_each(|(value, centre)| *value = *value * NOISE + centre);
    scale_to_unit(row);
}

/// A random direction: each value about normal, as the sum of four uniform ones.
#[allow(clippy::cast_possible_truncation, reason = "16 bits at a time")]
fn draw_unit(random: &mut Random, row: &mut [f32]) {
    for value in row.iter_mut() {
        let bits = random.below(usize::MAX);
        *value = (0..4).map(|quarter| f32::from((bits >> (quarter * 16)) as u16) - 32_767.5).sum();
    }
    scale_to_unit(row);
}

fn scale_to_unit(row: &mut [f32]) {
    let length = dot(row, row).sqrt();
    for value in row.iter_mut() {
        *value /= length;
    }
}
