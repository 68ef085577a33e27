//! Canaries: fixed texts whose vectors show that a model still makes its space.
//!
//! A fingerprint covers what a model *is*. What only rounds, the provider, the precision and the runtime library, is
//! left out of it, so that two machines share a space; the canaries catch the case that it does more than round. They
//! are embedded at each load and compared with those recorded when the space was first seen; and again while the model is
//! loaded, compared with those of its load: the runtime reads large weights from their file while it runs.

use super::ledger::SpaceRecord;
use super::loaded::LoadedModel;
use super::standing::{Drift, LEAST_COSINE};
use crate::domain::vector::cosine;
use crate::engine::{EncodeRequest, EngineError, Finish, Input, OverLong, Priority};

/// Short and long, plain and strange. Never changed: recorded vectors are of these texts in this order.
const TEXTS: [&str; 8] = [
    "hello world",
    "Where can I change the password of my account?",
    "The granary stood at the edge of the village, and every autumn the grain of forty fields was carried up its \
     wooden stairs, weighed, written down and stored, so that in spring each farmer could be given back what was his.",
    "SELECT id, text FROM grains WHERE created_at > '2024-01-01' ORDER BY id LIMIT 10;",
    "Die Würde des Menschen ist unantastbar. Всё течёт. 春眠不覚暁 🌾",
    "a",
    "0.30000000000000004 != 0.3; 2^53 + 1 = 9007199254740993",
    "An encoder maps a text to a point in a space of a few hundred dimensions, so that texts of like meaning lie close \
     to each other. Two encoders make two spaces, even where both have as many dimensions: a point of one means nothing \
     in the other, and a distance between points of both is a number without a meaning. Whoever keeps vectors must \
     therefore keep, with each of them, the name of the space it belongs to, and whoever compares two must first see \
     that the names are equal. It sounds obvious. It is the mistake that is made most often.",
];

/// Embeds the canary texts: `[n_texts][dimensions]`.
pub(super) async fn embed(model: &LoadedModel) -> Result<Vec<f32>, EngineError> {
    let request = EncodeRequest {
        inputs: TEXTS.iter().map(|text| Input::Text((*text).to_owned())).collect(),
        prompt: None,
        over_long: OverLong::Cut(model.facts.truncation_side),
        finish: Finish { dimensions: model.facts.dimensions.native.get() as usize, normalize: model.facts.normalize },
        priority: Priority::Internal,
    };
    Ok(model.encoder.encode(request).await?.vectors)
}

/// How far canaries have moved from their record; `None` when not too far.
pub(super) fn compare(record: &SpaceRecord, canaries: &[f32], computed_by: &str) -> Option<Drift> {
    let cosine = least_cosine(&record.canaries, canaries, record.dimensions as usize);
    (cosine < LEAST_COSINE).then(|| Drift {
        cosine,
        recorded_by: record.numeric_class.clone(),
        computed_by: computed_by.to_owned(),
    })
}

/// The least cosine between canaries of the model and those of its load; `None` when they are the same but for rounding.
pub(super) fn moved_since_load(model: &LoadedModel, canaries: &[f32]) -> Option<f64> {
    let cosine = least_cosine(&model.canaries, canaries, model.facts.dimensions.native.get() as usize);
    (cosine < LEAST_COSINE).then_some(cosine)
}

/// The least cosine between old and new canaries, `[n_texts][dimensions]` each; 0 when they are not as many.
fn least_cosine(old: &[f32], new: &[f32], dimensions: usize) -> f64 {
    if old.len() != new.len() || dimensions == 0 {
        return 0.0;
    }
    let pairs = old.chunks_exact(dimensions).zip(new.chunks_exact(dimensions));
    // A vector without a direction has not moved either while it stays so.
    pairs.filter(|(old, new)| old != new).map(|(old, new)| cosine(old, new)).fold(1.0, f64::min)
}

#[cfg(test)]
mod tests {
    use super::super::standing::Standing;
    use super::*;
    use crate::domain::{Fingerprint, ModelName};

    fn record(canaries: &[f32]) -> SpaceRecord {
        SpaceRecord {
            fingerprint: Fingerprint::parse(&"ab".repeat(32)).expect("64 digits"),
            manifest: "{}".into(),
            dimensions: 2,
            declared_name: None,
            numeric_class: "cpu, float32".into(),
            canaries: canaries.to_vec(),
        }
    }

    #[test]
    fn rounding_is_no_drift_and_one_moved_vector_is() {
        let recorded = record(&[1.0, 0.0, 0.0, 2.0]);
        assert_eq!(compare(&recorded, &[1.01, 0.01, 0.01, 1.99], "x"), None);
        let drift = compare(&recorded, &[1.0, 0.0, 1.0, 1.0], "openvino, bfloat16").expect("it moved");
        assert!((drift.cosine - 0.5_f64.sqrt()).abs() < 1e-6, "{drift:?}");
        let standing = Standing { drift: Some(drift), ..Standing::default() };
        let refusal = standing.refusal(&ModelName::parse("m").expect("a name")).expect("refused");
        assert!(refusal.contains("0.7071") && refusal.contains("cpu, float32"), "{refusal}");
    }

    #[test]
    fn vectors_that_stay_without_a_direction_have_not_moved() {
        assert_eq!(compare(&record(&[0.0, 0.0, 1.0, 0.0]), &[0.0, 0.0, 1.0, 0.0], "x"), None);
    }

    #[test]
    fn vectors_of_another_length_or_of_nothing_have_moved() {
        assert!(compare(&record(&[1.0, 0.0]), &[1.0, 0.0, 0.0, 1.0], "x").is_some());
        assert!(compare(&record(&[0.0, 0.0]), &[1.0, 0.0], "x").is_some());
    }
}
