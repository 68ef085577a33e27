//! The plots of a report, as SVG inside the page: no script draws them and nothing is fetched.

use std::fmt::Write;

use super::{Comparison, Overlap, Threshold};

/// The drawing area inside a view of 640 × 280, with room for the numbers of both axes.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 56.0;

/// A plot under construction: from values to places on the page.
struct Plot {
    svg: String,
    x: (f64, f64),
    y: (f64, f64),
}

impl Plot {
    /// An empty plot over these ranges, with a name for those who do not see it.
    fn new(name: &str, x: (f64, f64), y: (f64, f64)) -> Self {
        let svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{name}\">");
        Self { svg, x, y }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |value: f64, (low, high): (f64, f64)| (value - low) / (high - low).max(f64::MIN_POSITIVE);
        let across = LEFT + part(x, self.x) * (WIDTH - LEFT - RIGHT);
        (across, HEIGHT - BOTTOM - part(y, self.y) * (HEIGHT - TOP - BOTTOM))
    }

    /// Adds a piece. A string takes everything.
    fn add(&mut self, piece: std::fmt::Arguments<'_>) {
        let _ = self.svg.write_fmt(piece);
    }

    fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let places: Vec<String> =
            points.map(|(x, y)| self.place(x, y)).map(|(across, down)| format!("{across:.1},{down:.1}")).collect();
        self.add(format_args!("<polyline class=\"{class}\" points=\"{}\"/>", places.join(" ")));
    }

    fn dots(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        for (x, y) in points {
            let (across, down) = self.place(x, y);
            self.add(format_args!("<circle class=\"{class}\" cx=\"{across:.1}\" cy=\"{down:.1}\" r=\"4\"/>"));
        }
    }

    /// A grid line across with its number.
    fn level(&mut self, y: f64, label: &str) {
        let (left, down) = self.place(self.x.0, y);
        let (right, _) = self.place(self.x.1, y);
        self.add(format_args!(
            "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{down:.1}\" y2=\"{down:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            left - 6.0,
            down + 5.0
        ));
    }

    /// A number below the plot.
    fn mark(&mut self, x: f64, label: &str) {
        let (across, _) = self.place(x, self.y.0);
        let down = HEIGHT - BOTTOM + 20.0;
        self.add(format_args!("<text x=\"{across:.1}\" y=\"{down:.1}\" text-anchor=\"middle\">{label}</text>"));
    }

    /// What the numbers below are, and the whole plot.
    fn named(mut self, x_axis: &str) -> String {
        let (middle, down) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0);
        self.add(format_args!("<text x=\"{middle:.1}\" y=\"{down:.1}\" text-anchor=\"middle\">{x_axis}</text></svg>"));
        self.svg
    }
}

/// How the scores of all queries with all sampled grains are distributed under each model.
pub(super) fn scores(comparison: &Comparison) -> String {
    let (low, high) = comparison.score_range;
    let sides = [(&comparison.from, "from"), (&comparison.to, "to")];
    let most = sides.iter().flat_map(|(side, _)| &side.histogram).copied().max().unwrap_or(0).max(1) as f64;
    let mut plot = Plot::new("Distribution of scores under both models", (low, high), (0.0, most));
    for (side, class) in sides {
        let n_bars = side.histogram.len() as f64;
        let edge = |bar: usize| low + (high - low) * bar as f64 / n_bars;
        let steps = side.histogram.iter().enumerate();
        let steps = steps.flat_map(|(bar, n)| [(edge(bar), *n as f64), (edge(bar + 1), *n as f64)]);
        plot.line(class, std::iter::once((low, 0.0)).chain(steps).chain([(high, 0.0)]));
    }
    plot.level(0.0, "0");
    plot.level(most, &most.to_string());
    for part in 0..=4 {
        let score = low + (high - low) * f64::from(part) / 4.0;
        plot.mark(score, &format!("{score:.2}"));
    }
    plot.named("score (cosine of a query and a grain)")
}

/// How much of an answer both models have, by how far down one looks.
pub(super) fn overlaps(overlaps: &[Overlap]) -> String {
    let last = overlaps.len().saturating_sub(1).max(1) as f64;
    let mut plot = Plot::new("Overlap of the answers by depth", (0.0, last), (0.0, 1.0));
    for tenths in [0_u8, 5, 10] {
        plot.level(f64::from(tenths) / 10.0, &format!("{} %", tenths * 10));
    }
    let points = || overlaps.iter().enumerate().map(|(at, overlap)| (at as f64, overlap.mean));
    plot.line("to", points());
    plot.dots("to", points());
    for (at, Overlap { k, .. }) in overlaps.iter().enumerate() {
        plot.mark(at as f64, &k.to_string());
    }
    plot.named("first k grains of the answer")
}

/// Where thresholds of the one model lie among the scores of the other.
pub(super) fn thresholds(thresholds: &[Threshold]) -> String {
    let mut plot = Plot::new("Equivalent thresholds", (0.0, 1.0), (0.0, 1.0));
    for tenths in [0_u8, 5, 10] {
        let value = f64::from(tenths) / 10.0;
        plot.level(value, &format!("{value:.1}"));
        plot.mark(value, &format!("{value:.1}"));
    }
    plot.line("grid", [(0.0, 0.0), (1.0, 1.0)].into_iter());
    let points = || thresholds.iter().map(|threshold| (threshold.from, threshold.to.clamp(0.0, 1.0)));
    plot.line("to", points());
    plot.dots("to", points());
    plot.named("threshold of the first model; upwards, of the second")
}
