//! Random operations on grains, each answer compared with what a map of the standard library says, before and after
//! the database is opened again.
//!
//! `GRAIN_MODEL_OPERATIONS` and `GRAIN_MODEL_SEED` choose others than the usual: `make grain-model` runs 10,000.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::helpers::{
    Answer, Caller, Chance, TestApp, cosine, number_from_env, percent_encoded, send, vector_of, vectors_of, with_tiny,
};

const N_IDS: u64 = 120;
const N_TEXTS: usize = 24;
const SOURCES: [&str; 3] = ["a", "b", "c"];
const TAGS: [&str; 5] = ["red", "green", "blue", "round", "ünïcode"];
const DIMENSIONS: usize = 32;

/// A grain as it must be.
#[derive(Clone, Debug)]
struct Kept {
    text: usize,
    source: Option<&'static str>,
    tags: Vec<&'static str>,
    attributes: Map<String, Value>,
    vector: Vec<f32>,
    origin: &'static str,
    version: u64,
    /// Counts all writes: the orders by time.
    created: u64,
    updated: u64,
}

/// A server, and what it must answer.
struct Checked {
    app: TestApp,
    chance: Chance,
    space: String,
    /// The vector of each text.
    texts: Vec<Vec<f32>>,
    kept: BTreeMap<String, Kept>,
    n_writes: u64,
}

fn text(number: usize) -> String {
    format!("unique{number} and what all have")
}

fn configuration() -> String {
    with_tiny(&[])
}

/// Whether the grain of an id meets a condition.
type Test = dyn Fn(&str, &Kept) -> bool;

/// A condition, and which grains meet it.
struct Condition {
    filter: Value,
    holds: Box<Test>,
}

impl Checked {
    async fn start(seed: u64) -> Self {
        let app = TestApp::start_with(&configuration()).await;
        let texts: Vec<String> = (0..N_TEXTS).map(text).collect();
        let embedded = app.post("/embed", json!({"inputs": texts})).await;
        let space = embedded.header("x-space").to_owned();
        let texts = vectors_of(&embedded.ok());
        Self { app, chance: Chance::seeded(seed), space, texts, kept: BTreeMap::new(), n_writes: 0 }
    }

    fn id(&mut self) -> String {
        format!("id-{}", self.chance.below(N_IDS))
    }

    /// The id of a grain that is there, if there is one.
    fn present(&mut self) -> Option<String> {
        let ids: Vec<String> = self.kept.keys().cloned().collect();
        (!ids.is_empty()).then(|| self.chance.pick(&ids).clone())
    }

    fn tags(&mut self) -> Vec<&'static str> {
        (0..self.chance.below(4)).map(|_| *self.chance.pick(&TAGS)).collect()
    }

    fn source(&mut self) -> Option<&'static str> {
        (self.chance.below(4) > 0).then(|| *self.chance.pick(&SOURCES))
    }

    fn attributes(&mut self) -> Map<String, Value> {
        let mut attributes = Map::new();
        for name in ["n", "word", "list"] {
            if self.chance.below(2) == 0 {
                continue;
            }
            let value = match name {
                "n" => json!(self.chance.below(10)),
                "word" => json!(TAGS[0].repeat(self.chance.index(3) + 1)),
                _ => json!([self.chance.below(3), "x", null]),
            };
            attributes.insert(name.to_owned(), value);
        }
        attributes
    }

    /// A grain, with its own vector or the model's, and the body that writes it.
    fn draft(&mut self) -> (Kept, Value) {
        let number = self.chance.index(N_TEXTS);
        let (source, tags, attributes) = (self.source(), self.tags(), self.attributes());
        let mut body = json!({"text": text(number), "source": source, "tags": tags, "attributes": attributes});
        let (mut vector, mut origin) = (self.texts[number].clone(), "computed");
        // A vector that is brought along costs the server nothing.
        if self.chance.below(4) > 0 {
            vector = self.chance.unit_vector(DIMENSIONS);
            origin = "supplied";
            body["space"] = json!(self.space);
            body["vector"] = json!(vector);
        }
        let kept = Kept { text: number, source, tags, attributes, vector, origin, version: 1, created: 0, updated: 0 };
        (kept, body)
    }

    fn insert(&mut self, id: String, mut kept: Kept) {
        self.n_writes += 1;
        (kept.created, kept.updated) = (self.n_writes, self.n_writes);
        self.kept.insert(id, kept);
    }

    fn condition(&mut self) -> Condition {
        match self.chance.below(10) {
            0 => Condition { filter: json!({}), holds: Box::new(|_, _| true) },
            1 => {
                let source = self.source();
                Condition { filter: json!({"source": [source]}), holds: Box::new(move |_, kept| kept.source == source) }
            }
            2 => {
                let tag = *self.chance.pick(&TAGS);
                Condition {
                    filter: json!({"tags": {"any": [tag]}}),
                    holds: Box::new(move |_, kept| kept.tags.contains(&tag)),
                }
            }
            3 => {
                let tag = *self.chance.pick(&TAGS);
                Condition {
                    filter: json!({"tags": {"none": [tag]}}),
                    holds: Box::new(move |_, kept| !kept.tags.contains(&tag)),
                }
            }
            4 => {
                let least = self.chance.below(10);
                let holds = move |_: &str, kept: &Kept| kept.attributes.get("n").and_then(Value::as_u64) >= Some(least);
                Condition { filter: json!({"attributes": {"n": {"gte": least}}}), holds: Box::new(holds) }
            }
            5 => {
                let element = self.chance.below(3);
                let holds =
                    move |_: &str, kept: &Kept| kept.attributes.get("list").is_some_and(|list| list[0] == element);
                Condition { filter: json!({"attributes": {"list": element}}), holds: Box::new(holds) }
            }
            6 => {
                let (one, other) = (*self.chance.pick(&TAGS), *self.chance.pick(&TAGS));
                Condition {
                    filter: json!({"tags": {"any": [one, other]}}),
                    holds: Box::new(move |_, kept| kept.tags.contains(&one) || kept.tags.contains(&other)),
                }
            }
            7 => {
                let (tag, source) = (*self.chance.pick(&TAGS), *self.chance.pick(&SOURCES));
                Condition {
                    filter: json!({"tags": {"all": [tag]}, "source": source}),
                    holds: Box::new(move |_, kept| kept.tags.contains(&tag) && kept.source == Some(source)),
                }
            }
            8 => {
                let (tag, least) = (*self.chance.pick(&TAGS), self.chance.below(10));
                let holds = move |_: &str, kept: &Kept| {
                    kept.tags.contains(&tag) && kept.attributes.get("n").and_then(Value::as_u64) >= Some(least)
                };
                let filter = json!({"tags": {"all": [tag]}, "attributes": {"n": {"gte": least}}});
                Condition { filter, holds: Box::new(holds) }
            }
            _ => {
                let ids: Vec<String> = (0..self.chance.below(30)).map(|_| self.id()).collect();
                Condition {
                    filter: json!({"ids": ids}),
                    holds: Box::new(move |id, _| ids.iter().any(|other| other == id)),
                }
            }
        }
    }

    fn meeting(&self, condition: &Condition) -> Vec<String> {
        let meets = self.kept.iter().filter(|(id, kept)| (condition.holds)(id, kept));
        meets.map(|(id, _)| id.clone()).collect()
    }

    async fn step(&mut self) {
        match self.chance.below(100) {
            0..20 => self.create_one().await,
            20..28 => self.create_many().await,
            28..45 => self.put().await,
            45..60 => self.patch().await,
            60..67 => self.delete().await,
            67..70 => self.delete_by_filter().await,
            70..80 => self.search_vector().await,
            80..85 => self.search_words().await,
            85..92 => self.count().await,
            92..95 => self.read_pages().await,
            _ => {
                let id = self.id();
                let answer = self.app.get(&format!("/grains/{id}?include=vector")).await;
                self.check(&id, &answer);
            }
        }
    }

    /// A grain as it was read, with its vector.
    fn check(&self, id: &str, answer: &Answer) {
        match self.kept.get(id) {
            Some(kept) => {
                assert_eq!(answer.version(), kept.version.to_string(), "{id}");
                check(id, kept, &answer.ok());
            }
            None => assert_eq!(answer.problem().0, 404, "{id}"),
        }
    }

    async fn create_one(&mut self) {
        let (kept, mut body) = self.draft();
        let given = (self.chance.below(4) > 0).then(|| self.id());
        body["id"] = json!(given);
        let answer = self.app.post("/grains", body).await;
        match given {
            Some(id) if self.kept.contains_key(&id) => assert_eq!(answer.problem().1, "conflict"),
            given => {
                let id = answer.ok()["id"].as_str().expect("an id").to_owned();
                assert_eq!(given.unwrap_or_else(|| id.clone()), id);
                check(&id, &kept, &answer.ok());
                self.insert(id, kept);
            }
        }
    }

    async fn create_many(&mut self) {
        let (mut drafts, mut bodies) = (Vec::new(), Vec::new());
        for _ in 0..=self.chance.below(6) {
            let (kept, mut body) = self.draft();
            let id = self.id();
            body["id"] = json!(id);
            drafts.push((id, kept));
            bodies.push(body);
        }
        let is_partial = self.chance.below(2) == 0;
        let answer = self.app.post(&format!("/grains?partial={is_partial}"), json!({"grains": bodies})).await;
        let mut seen = std::collections::HashSet::new();
        let good: Vec<bool> =
            drafts.iter().map(|(id, _)| seen.insert(id.clone()) && !self.kept.contains_key(id)).collect();
        if is_partial {
            let results = answer.ok()["results"].clone();
            for (at, is_good) in good.iter().enumerate() {
                assert_eq!(results[at]["status"], if *is_good { 201 } else { 409 }, "{results}");
            }
        } else if !good.iter().all(|is_good| *is_good) {
            assert_eq!(answer.problem().1, "conflict");
            return;
        } else {
            assert_eq!(answer.ok()["grains"].as_array().map(Vec::len), Some(drafts.len()));
        }
        for ((id, kept), _) in drafts.into_iter().zip(good).filter(|(_, is_good)| *is_good) {
            self.insert(id, kept);
        }
    }

    /// A version for `If-Match`, right or not; and whether it is right.
    fn version(&mut self, id: &str) -> (Option<u64>, bool) {
        let version = self.kept.get(id).map_or(0, |kept| kept.version);
        match self.chance.below(6) {
            0 => (Some(version), version > 0),
            1 => (Some(version + 1), false),
            _ => (None, true),
        }
    }

    async fn put(&mut self) {
        let id =
            if self.chance.below(3) == 0 { self.id() } else { self.present().unwrap_or_else(|| "id-0".to_owned()) };
        let (mut draft, mut body) = self.draft();
        if let Some(kept) = self.kept.get(&id).filter(|_| self.chance.below(2) == 0) {
            // The text and the vector that are there already, and sometimes all else.
            let is_all = self.chance.below(2) == 0;
            draft = if is_all { kept.clone() } else { Kept { text: kept.text, ..draft } };
            body = json!({"text": text(draft.text), "source": draft.source, "tags": draft.tags, "attributes": draft.attributes});
            if self.chance.below(2) == 0 && kept.origin == "supplied" {
                body["space"] = json!(self.space);
                body["vector"] = json!(kept.vector);
            }
            (draft.vector, draft.origin) = (kept.vector.clone(), kept.origin);
        } else if let Some(kept) = self.kept.get(&id).filter(|kept| kept.text == draft.text && body["vector"].is_null())
        {
            // By chance the same text: its vector stays, whoever made it.
            (draft.vector, draft.origin) = (kept.vector.clone(), kept.origin);
        }
        let (version, is_right) = self.version(&id);
        let answer = conditionally(&self.app, Method::PUT, &id, version, &body).await;
        if !is_right {
            assert_eq!(answer.problem().0, 412);
        } else if self.kept.contains_key(&id) {
            self.update(&id, draft, &answer);
        } else {
            assert_eq!(answer.status.as_u16(), 201);
            self.insert(id, draft);
        }
    }

    async fn patch(&mut self) {
        let Some(id) = self.present() else { return };
        let mut draft = self.kept[&id].clone();
        let mut body = json!({});
        if self.chance.below(3) == 0 {
            draft.source = self.source();
            body["source"] = json!(draft.source);
        }
        if self.chance.below(3) == 0 {
            draft.tags = self.tags();
            body["tags"] = json!(draft.tags);
        }
        if self.chance.below(3) == 0 {
            body["attributes"] = json!({"n": null, "word": "red"});
            draft.attributes.shift_remove("n");
            draft.attributes.insert("word".to_owned(), json!("red"));
        }
        if self.chance.below(4) == 0 {
            let number = self.chance.index(N_TEXTS);
            body["text"] = json!(text(number));
            if number != draft.text {
                (draft.text, draft.vector, draft.origin) = (number, self.texts[number].clone(), "computed");
            }
        }
        let (version, is_right) = self.version(&id);
        let answer = conditionally(&self.app, Method::PATCH, &id, version, &body).await;
        if is_right {
            self.update(&id, draft, &answer);
        } else {
            assert_eq!(answer.problem().0, 412);
        }
    }

    /// Notes a change of a grain that is there; nothing, when it is none.
    fn update(&mut self, id: &str, draft: Kept, answer: &Answer) {
        let kept = self.kept.get_mut(id).expect("it is there");
        let is_same = kept.text == draft.text
            && (kept.source, &kept.tags, &kept.attributes) == (draft.source, &draft.tags, &draft.attributes)
            && kept.vector == draft.vector;
        if !is_same {
            self.n_writes += 1;
            *kept = Kept { version: kept.version + 1, created: kept.created, updated: self.n_writes, ..draft };
        }
        assert_eq!(answer.status.as_u16(), 200);
        check(id, kept, &answer.ok());
    }

    async fn delete(&mut self) {
        let id = if self.chance.below(3) == 0 { self.id() } else { self.present().unwrap_or_default() };
        if id.is_empty() {
            return;
        }
        let (version, is_right) = self.version(&id);
        let answer = conditionally(&self.app, Method::DELETE, &id, version, &json!({})).await;
        match (self.kept.contains_key(&id), is_right) {
            (false, _) => assert_eq!(answer.problem().0, 404),
            (true, false) => assert_eq!(answer.problem().0, 412),
            (true, true) => {
                assert_eq!(answer.status.as_u16(), 204);
                self.kept.remove(&id);
            }
        }
    }

    async fn delete_by_filter(&mut self) {
        let condition = self.condition();
        let meeting = self.meeting(&condition);
        // Not so many that nothing is left to test with.
        if condition.filter == json!({}) || meeting.len() > 25 {
            let answer = self
                .app
                .post("/grains/delete", json!({"filter": condition.filter, "expected_count": meeting.len() + 1}));
            assert_eq!(answer.await.problem().1, "conflict");
            return;
        }
        let expected = (self.chance.below(2) == 0).then_some(meeting.len());
        let body = json!({"filter": condition.filter, "expected_count": expected});
        let deleted = self.app.post("/grains/delete", body).await.ok();
        assert_eq!(deleted["deleted"], meeting.len(), "{}", condition.filter);
        for id in meeting {
            self.kept.remove(&id);
        }
    }

    /// The nearest of a grain's vector, or of anything, compared with all there are.
    async fn search_vector(&mut self) {
        let query = match self.present() {
            Some(id) if self.chance.below(3) > 0 => self.kept[&id].vector.clone(),
            _ => self.chance.unit_vector(DIMENSIONS),
        };
        let condition = self.condition();
        let limit = 1 + self.chance.index(20);
        let mut expected: Vec<f64> =
            self.meeting(&condition).iter().map(|id| cosine(&query, &self.kept[id].vector)).collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        expected.truncate(limit);
        let body = json!({"vector": query, "space": self.space, "filter": condition.filter, "limit": limit});
        let found = self.app.post("/grains/search", body).await.ok();
        let hits = found["hits"].as_array().expect("hits");
        assert_eq!(hits.len(), expected.len(), "{}", condition.filter);
        for (hit, expected) in hits.iter().zip(expected) {
            let id = hit["grain"]["id"].as_str().expect("an id");
            let kept = self.kept.get(id).unwrap_or_else(|| panic!("{id} is not there"));
            assert!((condition.holds)(id, kept), "{id} does not meet {}", condition.filter);
            let score = hit["score"].as_f64().expect("a score");
            assert!((score - expected).abs() < 1e-4, "{id}: {score}, not {expected}");
            assert!((score - cosine(&query, &kept.vector)).abs() < 1e-4, "{id} by another vector than it has");
            check(id, kept, &hit["grain"]);
        }
    }

    async fn search_words(&mut self) {
        let number = self.chance.index(N_TEXTS);
        let body = json!({"query": format!("unique{number}"), "mode": "lexical", "limit": 1000});
        let found = self.app.post("/grains/search", body).await.ok();
        let mut ids: Vec<&str> =
            found["hits"].as_array().expect("hits").iter().filter_map(|hit| hit["grain"]["id"].as_str()).collect();
        ids.sort_unstable();
        let expected: Vec<&str> =
            self.kept.iter().filter(|(_, kept)| kept.text == number).map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, expected, "unique{number}");
    }

    async fn count(&mut self) {
        let condition = self.condition();
        let body = json!({"filter": condition.filter, "facets": ["source", "tags"]});
        let counted = self.app.post("/grains/count", body).await.ok();
        let meeting = self.meeting(&condition);
        assert_eq!(counted["count"], meeting.len(), "{}", condition.filter);
        let (mut sources, mut tags) = (BTreeMap::new(), BTreeMap::new());
        for id in &meeting {
            let kept = &self.kept[id];
            *sources.entry(kept.source).or_insert(0) += 1;
            for tag in kept.tags.iter().collect::<std::collections::BTreeSet<_>>() {
                *tags.entry(Some(*tag)).or_insert(0) += 1;
            }
        }
        for (facet, expected) in [("source", sources), ("tags", tags)] {
            let values = counted["facets"][facet].as_array().expect("values");
            let found: BTreeMap<Option<&str>, u64> = values
                .iter()
                .map(|value| (value["value"].as_str(), value["count"].as_u64().expect("a count")))
                .collect();
            assert_eq!(found, expected, "{facet} of {}", condition.filter);
        }
    }

    /// All grains in some order, page by page.
    async fn read_pages(&mut self) {
        let condition = self.condition();
        let sort = *self.chance.pick(&["created_at", "-created_at", "updated_at", "-updated_at", "id", "-id"]);
        let limit = 1 + self.chance.below(50);
        let filter = percent_encoded(&condition.filter.to_string());
        let mut path = format!("/grains?include=vector&limit={limit}&sort={sort}&filter={filter}");
        let mut found: Vec<String> = Vec::new();
        loop {
            let page = self.app.get(&path).await.ok();
            for grain in page["grains"].as_array().expect("grains") {
                let id = grain["id"].as_str().expect("an id");
                check(id, self.kept.get(id).unwrap_or_else(|| panic!("{id} is not there")), grain);
                found.push(id.to_owned());
            }
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/grains?include=vector&limit={limit}&filter={filter}&cursor={next}");
        }
        let mut expected = self.meeting(&condition);
        match sort.trim_start_matches('-') {
            "created_at" => expected.sort_by_key(|id| self.kept[id].created),
            "updated_at" => expected.sort_by_key(|id| self.kept[id].updated),
            _ => {}
        }
        if sort.starts_with('-') {
            expected.reverse();
        }
        assert_eq!(found, expected, "{sort} {}", condition.filter);
    }

    /// Every grain, and every supplied vector by a search.
    async fn check_all(&self) {
        let counted = self.app.post("/grains/count", json!({"facets": ["space"]})).await.ok();
        assert_eq!(counted["count"], self.kept.len());
        for (id, kept) in &self.kept {
            self.check(id, &self.app.get(&format!("/grains/{id}?include=vector")).await);
            if kept.origin == "supplied" {
                let body = json!({"vector": kept.vector, "space": self.space, "limit": 1});
                let found = self.app.post("/grains/search", body).await.ok();
                assert_eq!(found["hits"][0]["grain"]["id"], id.as_str());
            }
        }
    }
}

/// A grain as an answer shows it. Vectors that are not shown are not compared.
fn check(id: &str, kept: &Kept, grain: &Value) {
    let meta = &grain["meta"];
    assert_eq!((&grain["id"], &grain["text"]), (&json!(id), &json!(text(kept.text))));
    assert_eq!((&meta["source"], &meta["tags"]), (&json!(kept.source), &json!(kept.tags)), "{id}");
    assert_eq!(meta["attributes"], Value::Object(kept.attributes.clone()), "{id}");
    assert_eq!((&grain["version"], &meta["origin"]), (&json!(kept.version), &json!(kept.origin)), "{id}");
    if let Some(vector) = grain.get("vector") {
        let cosine = cosine(&vector_of(vector), &kept.vector);
        assert!(cosine > 0.9999, "{id}: cosine {cosine}");
    }
}

async fn conditionally(app: &Caller, method: Method, id: &str, version: Option<u64>, body: &Value) -> Answer {
    let mut request = app.request(method, &format!("/grains/{id}"));
    if let Some(version) = version {
        request = request.header("if-match", format!("\"{version}\""));
    }
    send(request.json(body)).await
}

#[tokio::test]
async fn grains_are_what_a_map_would_hold() {
    let n_operations = number_from_env("GRAIN_MODEL_OPERATIONS", 300);
    let seed = number_from_env("GRAIN_MODEL_SEED", 20_260_101);
    println!("{n_operations} operations of GRAIN_MODEL_SEED={seed}");
    let mut checked = Checked::start(seed).await;
    for n in 1..=n_operations {
        checked.step().await;
        if n % (n_operations / 4).max(100) == 0 {
            checked.check_all().await;
            checked.app = checked.app.restart_with(&configuration()).await;
            checked.check_all().await;
        }
    }
    checked.app.stop().await;
}
