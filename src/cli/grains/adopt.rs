//! `granary grains adopt`.

use std::io::Write;

use reqwest::Method;
use serde_json::{Value, json};

use super::super::client::{Client, Request};
use super::super::output::{bar, printable, text};
use super::{AdoptArgs, Failure, GrainsError, print};

pub(super) async fn run(client: &Client, args: AdoptArgs, out: &mut impl Write) -> Result<(), Failure> {
    let body = json!({"model": args.model, "from": args.from});
    let mut lines = client.open(Request::json(Method::POST, &["spaces", "adopt"], &body)).await?;
    let bar = bar("{spinner} {msg}");
    let mut end = None;
    while let Some(line) = lines.next().await? {
        let said: Value = serde_json::from_slice(&line).unwrap_or_default();
        if said["progress"].is_object() {
            bar.set_message(printable(&counts(&said["progress"])));
            bar.tick();
        } else if said["end"].is_object() {
            end = Some(said["end"].clone());
        } else if said["error"].is_object() {
            bar.finish_and_clear();
            return Err(GrainsError::Adoption(printable(text(&said["error"]["problem"]["detail"]))).into());
        }
    }
    bar.finish_and_clear();
    let end = end.ok_or(GrainsError::CutAdoption)?;
    let unknown = end["unknown_ids"].as_array().into_iter().flatten().map(|id| format!("unknown: {}\n", text(id)));
    print(out, &format!("{}\n{}", counts(&end), unknown.collect::<String>()))
}

fn counts(tally: &Value) -> String {
    format!(
        "{} compared with {}: {} adopted into {}, {} stay unknown",
        tally["compared"],
        text(&tally["model"]),
        tally["adopted"],
        text(&tally["space"]),
        tally["unknown"]
    )
}
