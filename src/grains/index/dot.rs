//! Products of f32 vectors, with the widest instructions that the machine has.
//!
//! A product is compiled once for each set of instructions, inside the function that the dispatch compiles for it. What
//! were not inlined there would be compiled without them.
#![expect(clippy::inline_always, reason = "how the dispatch hands its instructions on")]

use std::sync::LazyLock;

use pulp::{Arch, Simd, WithSimd};

/// Which instructions the machine has; asked once.
static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// Sums that are kept apart, so that an addition need not wait for the one before it.
const N_SUMS: usize = 4;

/// The dot product. The same vectors always give the same bits on one machine, in a scan or alone.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    ARCH.dispatch(Dot { a, b })
}

/// Calls `each` with the position and the dot product of every row of `rows`, `[n_rows][query.len()]`.
pub(super) fn dot_each(query: &[f32], rows: &[f32], each: impl FnMut(usize, f32)) {
    ARCH.dispatch(DotEach { query, rows, each });
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        product(simd, self.a, self.b)
    }
}

struct DotEach<'a, F> {
    query: &'a [f32],
    rows: &'a [f32],
    each: F,
}

impl<F: FnMut(usize, f32)> WithSimd for DotEach<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for (position, row) in self.rows.chunks_exact(self.query.len().max(1)).enumerate() {
            (self.each)(position, product(simd, self.query, row));
        }
    }
}

#[inline(always)]
fn product<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = S::as_simd_f32s(a);
    let (b_lanes, b_rest) = S::as_simd_f32s(b);
    let (a_groups, b_groups) = (a_lanes.chunks_exact(N_SUMS), b_lanes.chunks_exact(N_SUMS));
    let rest = a_groups.remainder().iter().zip(b_groups.remainder());
    let mut sums = [simd.splat_f32s(0.0); N_SUMS];
    for (a, b) in a_groups.zip(b_groups) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = simd.mul_add_e_f32s(*a, *b, *sum);
        }
    }
    let [mut first, second, third, fourth] = sums;
    for (a, b) in rest {
        first = simd.mul_add_e_f32s(*a, *b, first);
    }
    let lanes = simd.add_f32s(simd.add_f32s(first, second), simd.add_f32s(third, fourth));
    let tail: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(lanes) + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_every_length_are_right() {
        for n in 0_u16..200 {
            let a: Vec<f32> = (0..n).map(|i| f32::from(i % 7) - 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| f32::from(i % 5) - 2.0).collect();
            let expected: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - expected).abs() < 1e-3, "{n} dimensions");
        }
    }

    #[test]
    fn a_scan_gives_the_bits_of_each_product_alone() {
        let rows: Vec<f32> = (0_u16..5 * 37).map(|i| (f32::from(i) * 0.37).sin()).collect();
        let query = &rows[37..74];
        let mut scanned = Vec::new();
        dot_each(query, &rows, |position, score| scanned.push((position, score.to_bits())));
        let alone: Vec<_> = rows.chunks(37).map(|row| dot(query, row).to_bits()).enumerate().collect();
        assert_eq!(scanned, alone);
    }
}
