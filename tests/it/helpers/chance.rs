//! Chance that repeats itself: the same seed makes the same test. `benches/support` has this file too.

/// Numbers by `SplitMix64` (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
pub struct Chance(u64);

impl Chance {
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below this one.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// The same, of things in memory.
    pub fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).expect("it is below a `usize`")
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// A vector of length 1 that points anywhere.
    #[allow(clippy::cast_possible_truncation, reason = "a test's vector needs no more than that")]
    pub fn unit_vector(&mut self, dimensions: usize) -> Vec<f32> {
        let numbers: Vec<f64> = (0..dimensions).map(|_| self.below(2_000_001) as f64 / 1e6 - 1.0).collect();
        let norm = numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
        numbers.into_iter().map(|number| (number / norm) as f32).collect()
    }
}
