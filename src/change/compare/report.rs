//! A comparison as one HTML page that needs nothing else: no script, no style sheet, no picture from elsewhere.
//!
//! Whatever comes from a user (texts, ids, queries, names of models) goes through [`Escaped`].

use std::fmt::{self, Display, Write};
use std::time::Duration;

use super::{Comparison, Found, Moved, QuerySource, Side, plots};

const STYLE: &str = include_str!("report.css");

/// The page.
#[must_use]
pub fn html(comparison: &Comparison) -> String {
    let mut page = String::new();
    // A string takes everything.
    let _ = write_page(&mut page, comparison);
    page
}

fn write_page(page: &mut String, comparison: &Comparison) -> fmt::Result {
    let Comparison { from, to, n_grains, n_sampled, n_queries, depth, .. } = comparison;
    let (from_name, to_name) = (Escaped(from.model.as_str()), Escaped(to.model.as_str()));
    writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{from_name} and {to_name}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1><span class=\"from\">{from_name}</span> and <span class=\"to\">{to_name}</span></h1>"
    )?;
    let source = match comparison.queries {
        QuerySource::Caller => "queries that were sent",
        QuerySource::Grains => {
            "queries drawn from the beginnings of these texts, which find their own grain easily: with queries of your \
             users the models may differ more"
        }
    };
    writeln!(
        page,
        "<p>{n_sampled} of {n_grains} grains were embedded with both models and searched with {n_queries} {source}. \
         Answers have {depth} grains.</p>"
    )?;
    if from.space == to.space {
        writeln!(page, "<p>Both make the same space: their vectors compare, and a switch changes no answer.</p>")?;
    }
    writeln!(page, "<h2>How alike the answers are</h2>\n<figure>{}</figure>", plots::overlaps(&comparison.overlap))?;
    let shares =
        comparison.overlap.iter().map(|overlap| format!("{} of the first {}", percent(overlap.mean), overlap.k));
    writeln!(
        page,
        "<p>Both models find {}. Rank-biased overlap (p = 0.9; Webber, Moffat and Zobel 2010), in which the first ranks \
         count most: {:.3}, where 1 is the same answers.</p>",
        shares.collect::<Vec<_>>().join(", "),
        comparison.rank_biased_overlap
    )?;
    write_sides(page, comparison)?;
    write_scores(page, comparison)?;
    writeln!(page, "<h2>Queries whose answers move most</h2>")?;
    for moved in &comparison.moved {
        write_moved(page, moved, (&from_name, &to_name))?;
    }
    writeln!(page, "</body>\n</html>")
}

fn write_sides(page: &mut String, comparison: &Comparison) -> fmt::Result {
    let sides = [&comparison.from, &comparison.to];
    writeln!(page, "<h2>What they cost</h2>\n<div class=\"wide\"><table>\n<tr><th></th>")?;
    for side in sides {
        writeln!(page, "<th>{}</th>", Escaped(side.model.as_str()))?;
    }
    let mut row = |title: &str, cell: &dyn Fn(&Side) -> String| {
        writeln!(page, "</tr>\n<tr><th>{title}</th><td>{}</td><td>{}</td>", cell(sides[0]), cell(sides[1]))
    };
    row("space", &|side| side.space.to_string())?;
    row("numbers of a vector", &|side| side.dimensions.to_string())?;
    row("bytes of a vector", &|side| side.bytes_per_vector.to_string())?;
    row("tokens it takes", &|side| side.max_tokens.to_string())?;
    row("texts that are cut", &|side| percent(side.truncated_share))?;
    row("one text, p50", &|side| format!("{:.1} ms", side.p50_ms))?;
    row("one text, p95", &|side| format!("{:.1} ms", side.p95_ms))?;
    row("texts a second in bulk", &|side| format!("{:.0}", side.texts_per_second))?;
    row("tokens a second in bulk", &|side| format!("{:.0}", side.tokens_per_second))?;
    if comparison.queries == QuerySource::Grains {
        row("own grain, mean reciprocal rank", &|side| format!("{:.3}", side.own_grain_mrr.unwrap_or_default()))?;
    }
    writeln!(
        page,
        "</tr>\n</table></div>\n<p>A switch would embed {} grains anew, in about {} at the speed seen here.</p>",
        comparison.n_to_reembed,
        in_words(comparison.estimated)
    )
}

fn write_scores(page: &mut String, comparison: &Comparison) -> fmt::Result {
    let (from, to) = (Escaped(comparison.from.model.as_str()), Escaped(comparison.to.model.as_str()));
    writeln!(
        page,
        "<h2>Scores</h2>\n<p class=\"legend\"><span class=\"from\">{from}</span> <span class=\"to\">{to}</span></p>\n\
         <figure>{}</figure>\n<h2>Thresholds</h2>\n\
         <p>A score of {from} and the score of {to} that the same share of all pairs of a query and a grain reaches.</p>\n\
         <figure>{}</figure>\n<div class=\"wide\"><table>\n<tr><th>{from}</th><th>{to}</th><th>share of pairs</th></tr>",
        plots::scores(comparison),
        plots::thresholds(&comparison.thresholds)
    )?;
    for threshold in &comparison.thresholds {
        let share = if threshold.share > 0.0 { percent(threshold.share) } else { "none: a guess".to_owned() };
        writeln!(page, "<tr><td>{:.1}</td><td>{:.3}</td><td>{share}</td></tr>", threshold.from, threshold.to)?;
    }
    writeln!(page, "</table></div>")
}

fn write_moved(page: &mut String, moved: &Moved, (from, to): (&Escaped<'_>, &Escaped<'_>)) -> fmt::Result {
    writeln!(
        page,
        "<details>\n<summary>{} <small>overlap {}, rank-biased {:.3}</small></summary>\n<div class=\"both\">",
        Escaped(&moved.query),
        percent(moved.overlap),
        moved.rank_biased_overlap
    )?;
    for (name, class, list) in [(from, "from", &moved.from), (to, "to", &moved.to)] {
        writeln!(page, "<section><h3 class=\"{class}\">{name}</h3>\n<ol>")?;
        for Found { id, snippet, score, other_rank } in list {
            let elsewhere = other_rank.map_or_else(|| "not there".to_owned(), |rank| format!("there {rank}"));
            writeln!(
                page,
                "<li>{} <small>{} · {score:.3} · {elsewhere}</small></li>",
                Escaped(snippet),
                Escaped(id.as_str())
            )?;
        }
        writeln!(page, "</ol></section>")?;
    }
    writeln!(page, "</div>\n</details>")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        ..1.0 => "less than a second".to_owned(),
        ..120.0 => format!("{seconds:.0} seconds"),
        ..7_200.0 => format!("{:.0} minutes", seconds / 60.0),
        ..172_800.0 => format!("{:.1} hours", seconds / 3_600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

/// A user's text in the page: none of it is markup.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            // None of them may stand in a page, and some would turn its text around.
            c if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c) => {
                f.write_char('\u{fffd}')
            }
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_user_is_markup() {
        let text = "<script>\"a\" & 'b'</script>\u{202e}\u{0}";
        let shown = "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;\u{fffd}\u{fffd}";
        assert_eq!(Escaped(text).to_string(), shown);
    }

    #[test]
    fn durations_are_as_coarse_as_an_estimate() {
        let shown = |seconds| in_words(Duration::from_secs(seconds));
        assert_eq!(
            [shown(0), shown(90), shown(600), shown(9_000), shown(432_000)],
            ["less than a second", "90 seconds", "10 minutes", "2.5 hours", "5.0 days"]
        );
    }
}
