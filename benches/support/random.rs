//! Chance that is the same in every run: a seeded generator, a shuffle, and draws by Zipf's law.

#[path = "../../tests/it/helpers/chance.rs"]
mod chance;

use self::chance::Chance;

/// 64 bits of state are plenty to order texts with.
pub struct Random(Chance);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(Chance::seeded(seed))
    }

    /// Another generator, which gives other numbers.
    pub fn fork(&mut self) -> Self {
        Self::new(self.0.next())
    }

    /// A number in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.index(n)
    }

    /// A number in 0..1.
    fn unit(&mut self) -> f64 {
        (self.0.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Brings `items` into an order that only the seed decides.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}

/// Draws ranks 0..n, rank k with a probability proportional to 1 / (k + 1)^s.
pub struct Zipf {
    /// For each rank, the weight of it and of all before it.
    cumulative: Vec<f64>,
    random: Random,
}

impl Zipf {
    /// `n` ranks and the exponent `s`.
    pub fn new(n: usize, s: f64, seed: u64) -> Self {
        let mut sum = 0.0;
        let mut add = |rank: usize| {
            sum += (rank as f64 + 1.0).powf(-s);
            sum
        };
        Self { cumulative: (0..n).map(&mut add).collect(), random: Random::new(seed) }
    }

    /// The next rank.
    pub fn draw(&mut self) -> usize {
        let total = self.cumulative.last().copied().unwrap_or_default();
        let point = self.random.unit() * total;
        self.cumulative.partition_point(|&weight| weight <= point)
    }
}
