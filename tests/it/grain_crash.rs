//! Grains outlive kills and full disks, and nobody who reads or writes stands in another's way.
//!
//! `GRAIN_CRASH_KILLS` and `GRAIN_CONTENTION_SECONDS` choose more than the usual: see `make grain-crash` and
//! `make grain-contention`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::helpers::{
    Caller, Chance, Process, SmallDisk, TestApp, cosine, folder_with, number_from_env, send, vector_of, with_tiny,
};

const DIMENSIONS: usize = 32;

/// A grain as it was written. Without a vector, the model made one.
#[derive(Clone, Debug, PartialEq)]
struct Text {
    text: String,
    vector: Option<Vec<f32>>,
}

/// What a grain is to become.
#[derive(Clone, Debug)]
enum Order {
    Write(Text),
    Delete,
}

impl Order {
    fn carried_out(self) -> Option<Text> {
        match self {
            Self::Write(text) => Some(text),
            Self::Delete => None,
        }
    }
}

/// What is known of a grain; `None` stands for no grain.
#[derive(Clone, Debug, Default)]
struct Fate {
    /// What the server said it had done.
    acknowledged: Option<Text>,
    /// What it was asked to do, and did not answer.
    pending: Option<Order>,
}

/// Somebody who writes grains of their own, and remembers what was answered.
struct Writer {
    name: String,
    chance: Chance,
    space: String,
    fates: BTreeMap<String, Fate>,
    /// The ids of the batch that was not answered.
    batch: Vec<String>,
    n_ids: u64,
}

impl Writer {
    /// Writes one thing after another, until nobody answers any more.
    async fn write_until_nobody_answers(&mut self, app: &Caller) {
        loop {
            let requests = self.next_request(app);
            let Ok(response) = requests.send().await else { return };
            let status = response.status();
            let Ok(text) = response.text().await else { return };
            assert!(status.is_success(), "{status}: {text}");
            for fate in self.fates.values_mut() {
                if let Some(done) = fate.pending.take() {
                    fate.acknowledged = done.carried_out();
                }
            }
            self.batch.clear();
        }
    }

    fn new_id(&mut self) -> String {
        self.n_ids += 1;
        format!("{}-{}", self.name, self.n_ids)
    }

    fn draft(&mut self, id: &str) -> (Text, Value) {
        let text = format!("{id} says {}", self.chance.next());
        let vector = (self.chance.below(5) > 0).then(|| self.chance.unit_vector(DIMENSIONS));
        let space = vector.as_ref().map(|_| &self.space);
        let body = json!({"id": id, "text": text, "vector": vector, "space": space});
        (Text { text, vector }, body)
    }

    fn next_request(&mut self, app: &Caller) -> RequestBuilder {
        let present = self.fates.iter().filter(|(_, fate)| fate.acknowledged.is_some()).map(|(id, _)| id.clone());
        let present: Vec<String> = present.collect();
        let what = self.chance.below(10);
        if what < 3 && !present.is_empty() {
            let id = self.chance.pick(&present).clone();
            let path = format!("/grains/{id}");
            let (text, body) = self.draft(&id);
            let pending = if what == 0 { Order::Delete } else { Order::Write(text) };
            let method = if what == 0 { Method::DELETE } else { Method::PUT };
            self.fates.entry(id).or_default().pending = Some(pending);
            return app.request(method, &path).json(&body);
        }
        let n_grains = if what < 5 { 5 } else { 1 };
        let mut bodies = Vec::new();
        for _ in 0..n_grains {
            let id = self.new_id();
            let (text, body) = self.draft(&id);
            bodies.push(body);
            self.batch.push(id.clone());
            self.fates.insert(id, Fate { acknowledged: None, pending: Some(Order::Write(text)) });
        }
        app.request(Method::POST, "/grains").json(&json!({"grains": bodies}))
    }

    /// Everything is as it was acknowledged, or as it was asked for last.
    async fn check(&mut self, app: &Caller, stored: &BTreeMap<String, Value>) {
        let there: HashSet<bool> = self.batch.drain(..).map(|id| stored.contains_key(&id)).collect();
        assert!(there.len() <= 1, "half a batch was written");
        let mut recent = Vec::new();
        for (id, fate) in &mut self.fates {
            let found = stored.get(id).map(|grain| grain["text"].as_str().expect("a text"));
            let text = |text: &Option<Text>| text.as_ref().map(|text| text.text.clone());
            let pending = fate.pending.take().map(Order::carried_out);
            if let Some(pending) = pending
                && found.map(str::to_owned) == text(&pending)
            {
                fate.acknowledged = pending;
                recent.push(id.clone());
            }
            assert_eq!(found.map(str::to_owned), text(&fate.acknowledged), "{id}");
            if let (Some(kept), Some(grain)) = (&fate.acknowledged, stored.get(id)) {
                let vector = vector_of(&grain["vector"]);
                let is_right = kept.vector.as_ref().is_none_or(|own| cosine(own, &vector) > 0.9999);
                assert!(is_right, "{id} has another vector");
            }
        }
        // Those that were in the air when it was killed, and some others: the index has them all.
        let present: Vec<String> = stored.keys().filter(|id| self.fates.contains_key(*id)).cloned().collect();
        for _ in 0..40.min(present.len()) {
            recent.push(self.chance.pick(&present).clone());
        }
        for id in recent.iter().filter(|id| stored.contains_key(*id)) {
            let body = json!({"vector": stored[id]["vector"], "space": self.space, "limit": 1});
            let found = app.post("/grains/search", body).await.ok();
            assert_eq!(found["hits"][0]["grain"]["id"], id.as_str(), "{found}");
            assert!(found["hits"][0]["score"].as_f64() > Some(0.9999), "{found}");
        }
    }
}

/// All grains, with their vectors.
async fn read_all(app: &Caller) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut path = "/grains?include=vector&limit=1000".to_owned();
    loop {
        let page = app.get(&path).await.ok();
        for grain in page["grains"].as_array().expect("grains") {
            all.insert(grain["id"].as_str().expect("an id").to_owned(), grain.clone());
        }
        let Some(next) = page["next"].as_str() else { return all };
        path = format!("/grains?include=vector&limit=1000&cursor={next}");
    }
}

/// What SQLite says of the file, whoever works on it.
async fn assert_whole(database: &Path) {
    let mut connection = SqliteConnectOptions::new().filename(database).read_only(true).connect().await.expect("open");
    let said: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.expect("checked");
    assert_eq!(said, "ok");
    let orphans: Vec<(String,)> = sqlx::query_as("SELECT \"table\" FROM pragma_foreign_key_check")
        .fetch_all(&mut connection)
        .await
        .expect("checked");
    assert!(orphans.is_empty(), "{orphans:?}");
    connection.close().await.expect("closed");
}

/// The full text agrees with the texts, which are of letters and digits of ASCII. The file is nobody's at the time.
async fn assert_words_whole(database: &Path) {
    let mut connection = SqliteConnectOptions::new().filename(database).connect().await.expect("open");
    sqlx::query("INSERT INTO grain_words (grain_words) VALUES ('integrity-check')")
        .execute(&mut connection)
        .await
        .expect("the index of words is whole");
    sqlx::query("CREATE VIRTUAL TABLE temp.places USING fts5vocab (main, grain_words, instance)")
        .execute(&mut connection)
        .await
        .expect("the words can be listed");
    let places: Vec<(i64, String)> = sqlx::query_as("SELECT doc, term FROM temp.places ORDER BY doc, offset")
        .fetch_all(&mut connection)
        .await
        .expect("listed");
    let texts: Vec<(i64, String)> = sqlx::query_as("SELECT number, text FROM grains ORDER BY number")
        .fetch_all(&mut connection)
        .await
        .expect("read");
    let words = texts.iter().flat_map(|(number, text)| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.map(|word| (*number, word[..word.len().min(255)].to_ascii_lowercase()))
    });
    assert!(places.into_iter().eq(words), "the words are not those of the texts");
    connection.close().await.expect("closed");
}

async fn space_of_tiny(app: &Caller) -> String {
    let model = send(app.request(Method::POST, "/models/tiny/load")).await.ok();
    model["space"].as_str().expect("a space").to_owned()
}

#[tokio::test]
async fn kills_lose_nothing_that_was_acknowledged() {
    let n_kills = number_from_env("GRAIN_CRASH_KILLS", 5);
    let folder = folder_with(&with_tiny(&[]));
    let database = folder.path().join("granary.db");
    let mut chance = Chance::seeded(9);
    let mut writers: Vec<Writer> = Vec::new();
    let mut n_pending = 0;
    for _ in 0..n_kills {
        let (mut process, url) = Process::serve(folder.path(), &[]);
        let app = Caller::of(url);
        let space = space_of_tiny(&app).await;
        let stored = read_all(&app).await;
        for writer in &mut writers {
            writer.check(&app, &stored).await;
        }
        assert_whole(&database).await;
        while writers.len() < 3 {
            let name = format!("writer{}", writers.len());
            let chance = Chance::seeded(writers.len() as u64);
            let space = space.clone();
            writers.push(Writer { name, chance, space, fates: BTreeMap::new(), batch: Vec::new(), n_ids: 0 });
        }
        let wait = Duration::from_millis(20 + chance.below(500));
        let kill = async {
            tokio::time::sleep(wait).await;
            process.signal(Signal::KILL);
        };
        let writing = writers.iter_mut().map(|writer| writer.write_until_nobody_answers(&app));
        tokio::join!(futures::future::join_all(writing), kill);
        assert_eq!(process.wait().code(), None, "it was killed");
        let fates = || writers.iter().flat_map(|writer| writer.fates.values());
        n_pending += fates().filter(|fate| fate.pending.is_some()).count();
    }
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let stored = read_all(&app).await;
    for writer in &mut writers {
        writer.check(&app, &stored).await;
    }
    let n_asked: u64 = writers.iter().map(|writer| writer.n_ids).sum();
    println!("{n_kills} kills: {n_asked} grains written, {} are left; {n_pending} were in the air", stored.len());
    assert!(n_asked > n_kills, "{n_asked} grains prove nothing");
    process.stop();
    assert_whole(&database).await;
    assert_words_whole(&database).await;
}

#[tokio::test]
async fn on_a_full_disk_reading_goes_on_and_writing_does_once_there_is_room() {
    let Some(disk) = SmallDisk::mount("6m") else { return };
    fs_err::write(disk.path().join("granary.toml"), with_tiny(&[])).expect("written");
    let (process, url) = Process::serve(disk.path(), &[]);
    let app = Caller::of(url);
    let space = space_of_tiny(&app).await;
    let mut chance = Chance::seeded(4);
    let mut written: Vec<(String, Vec<f32>)> = Vec::new();
    let mut grain = |n: usize| {
        let vector = chance.unit_vector(DIMENSIONS);
        let text = format!("number{n} {}", chance.next().to_string().repeat(4_000));
        (json!({"id": n.to_string(), "text": text, "space": space, "vector": vector}), vector)
    };
    let mut refusals = Vec::new();
    for n in 0..400 {
        let (body, vector) = grain(n);
        let answer = app.post("/grains", body).await;
        if answer.status.as_u16() == 201 {
            written.push((n.to_string(), vector));
        } else {
            refusals.push(answer.problem());
            // Again and again, also by those who change what is there.
            if refusals.len() == 10 {
                break;
            }
        }
    }
    assert_eq!(refusals.len(), 10, "the disk never was full: {} grains", written.len());
    assert!(!written.is_empty());
    for (status, code, detail) in &refusals {
        assert_eq!((*status, code.as_str()), (507, "disk_full"), "{detail}");
        assert!(detail.contains("the disk of the database is full, and nothing was written"), "{detail}");
        assert!(!detail.contains(&disk.path().display().to_string()), "where it lies is the operator's to know");
    }
    let refused = app.patch("/grains/0", json!({"text": "x".repeat(900_000)})).await;
    assert_eq!(refused.problem().1, "disk_full");

    let check = async |app: &Caller, written: &[(String, Vec<f32>)]| {
        assert_eq!(app.post("/grains/count", json!({})).await.ok()["count"], written.len());
        for (id, vector) in written {
            let read = app.get(&format!("/grains/{id}?include=vector")).await.ok();
            assert!(cosine(&vector_of(&read["vector"]), vector) > 0.9999);
            let found = app.post("/grains/search", json!({"vector": vector, "space": space, "limit": 1})).await.ok();
            assert_eq!(found["hits"][0]["grain"]["id"], id.as_str());
        }
        let found = app.post("/grains/search", json!({"query": "number0", "mode": "lexical"})).await.ok();
        assert_eq!(found["hits"][0]["grain"]["id"], "0");
    };
    check(&app, &written).await;
    assert_eq!(app.get("/health/ready").await.status.as_u16(), 200, "it can be read");

    disk.resize("60m");
    for n in 400..410 {
        let (body, vector) = grain(n);
        assert_eq!(app.post("/grains", body).await.status.as_u16(), 201, "there is room");
        written.push((n.to_string(), vector));
    }
    check(&app, &written).await;
    // Not even a stop finds any, nor a start.
    let fill = |name: &str| {
        assert!(fs_err::write(disk.path().join(name), vec![0; 64 << 20]).is_err(), "the disk is full again");
    };
    fill("other");
    let log = process.stop();
    assert!(log.contains(" not saved: "), "{log}");
    fill("another");
    let mut without_room = Process::start_server(disk.path(), &[]);
    assert_eq!(without_room.wait().code(), Some(1));
    assert!(without_room.log().contains("is full"), "{}", without_room.log());
    for name in ["other", "another"] {
        fs_err::remove_file(disk.path().join(name)).expect("removed");
    }
    let (process, url) = Process::serve(disk.path(), &[]);
    check(&Caller::of(url), &written).await;
    process.stop();
    assert_whole(&disk.path().join("granary.db")).await;
    assert_words_whole(&disk.path().join("granary.db")).await;
}

/// What all of them know of each other.
struct Shared {
    app: TestApp,
    space: String,
    until: Instant,
    /// Grains that stay, with their vectors.
    stay: Mutex<Vec<(String, Vec<f32>)>>,
    /// Grains whose deletion was acknowledged.
    deleted: Mutex<HashSet<String>>,
    n_counted: AtomicU64,
    n_answers: AtomicU64,
}

impl Shared {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = send(self.app.request(method, path).json(&body)).await;
        assert!(answer.status.is_success(), "{path} {body}: {}: {}", answer.status, answer.text);
        self.n_answers.fetch_add(1, Ordering::Relaxed);
        if answer.text.is_empty() { json!(null) } else { answer.json() }
    }

    async fn write(&self) {
        let mut chance = Chance::seeded(1);
        for n in 0.. {
            if !self.goes_on() {
                return;
            }
            let (stays, leaves) = (format!("stays-{n}"), format!("leaves-{n}"));
            let vectors = [(); 2].map(|()| chance.unit_vector(DIMENSIONS));
            let grain = |id: &str, vector: &[f32]| json!({"id": id, "text": format!("common text {id}"), "space": self.space, "vector": vector});
            let body = json!({"grains": [grain(&stays, &vectors[0]), grain(&leaves, &vectors[1])]});
            self.ask(Method::POST, "/grains", body).await;
            let [vector, _] = vectors;
            self.stay.lock().push((stays.clone(), vector));
            self.ask(Method::PATCH, &format!("/grains/{stays}"), json!({"tags": ["t"], "attributes": {"n": n}})).await;
            if n % 10 == 0 {
                let body = json!({"text": "common text, embedded"});
                self.ask(Method::PUT, "/grains/embedded", body).await;
                self.ask(Method::PATCH, "/grains/embedded", json!({"text": format!("common text again {n}")})).await;
            }
            if n % 3 == 0 {
                let body = json!({"filter": {"ids": [leaves]}, "expected_count": 1});
                self.ask(Method::POST, "/grains/delete", body).await;
            } else {
                self.ask(Method::DELETE, &format!("/grains/{leaves}"), json!({})).await;
            }
            self.deleted.lock().insert(leaves);
        }
    }

    async fn read(&self, seed: u64) {
        let mut chance = Chance::seeded(seed);
        while self.goes_on() {
            let gone = self.deleted.lock().clone();
            let stay = self.stay.lock().clone();
            if stay.is_empty() {
                tokio::task::yield_now().await;
                continue;
            }
            let (id, vector) = chance.pick(&stay);
            let bodies = [
                json!({"vector": vector, "space": self.space, "limit": 200}),
                json!({"query": "common text", "mode": "lexical", "limit": 200}),
                json!({"query": "common text", "limit": 200, "filter": {"attributes": {"n": {"gte": 0}}}}),
                json!({"vector": vector, "space": self.space, "limit": 5, "filter": {"ids": [id]}}),
            ];
            for (at, body) in bodies.into_iter().enumerate() {
                let found = self.ask(Method::POST, "/grains/search", body).await;
                let hits = found["hits"].as_array().expect("hits");
                for hit in hits {
                    let id = hit["grain"]["id"].as_str().expect("an id");
                    assert!(!gone.contains(id), "{id} was deleted before the search began");
                }
                if at % 3 == 0 {
                    assert_eq!(hits[0]["grain"]["id"], id.as_str(), "it was there before the search began");
                }
            }
            let page = self.ask(Method::GET, "/grains?sort=-created_at&limit=100", json!({})).await;
            for grain in page["grains"].as_array().expect("grains") {
                assert!(!gone.contains(grain["id"].as_str().expect("an id")), "{grain}");
            }
            let counted = self.ask(Method::POST, "/grains/count", json!({"filter": {"tags": {"any": ["t"]}}})).await;
            assert!(counted["count"].as_u64() >= Some(stay.len() as u64 - 1), "{counted}");
            self.ask(Method::GET, &format!("/grains/{id}?include=vector"), json!({})).await;
        }
    }

    /// Adds one to a counter again and again, in the version that was read.
    async fn count(&self) {
        while self.goes_on() {
            let read = self.app.get("/grains/counter").await;
            let n = read.ok()["meta"]["attributes"]["n"].as_u64().expect("a number");
            let request = self.app.request(Method::PATCH, "/grains/counter").header("if-match", read.header("etag"));
            let answer = send(request.json(&json!({"attributes": {"n": n + 1}}))).await;
            match answer.status.as_u16() {
                200 => drop(self.n_counted.fetch_add(1, Ordering::Relaxed)),
                412 => {}
                status => panic!("{status}: {}", answer.text),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_and_writers_do_not_stand_in_each_others_way() {
    let seconds = number_from_env("GRAIN_CONTENTION_SECONDS", 3);
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = space_of_tiny(&app).await;
    app.post("/grains", json!({"id": "counter", "text": "a counter", "attributes": {"n": 0}})).await.ok();
    let shared = Shared {
        app,
        space,
        until: Instant::now() + Duration::from_secs(seconds),
        stay: Mutex::default(),
        deleted: Mutex::default(),
        n_counted: AtomicU64::new(0),
        n_answers: AtomicU64::new(0),
    };
    tokio::join!(shared.write(), shared.read(2), shared.read(3), shared.count(), shared.count());
    let counter = shared.app.get("/grains/counter").await.ok();
    let n_counted = shared.n_counted.load(Ordering::Relaxed);
    assert_eq!(counter["meta"]["attributes"]["n"], n_counted, "no update is lost");
    assert_eq!(counter["version"], n_counted + 1);
    let (stay, gone) = (shared.stay.into_inner(), shared.deleted.into_inner());
    let n_answers = shared.n_answers.into_inner();
    println!(
        "{seconds} s: {n_answers} answers, {n_counted} counted, {} written and {} deleted",
        stay.len(),
        gone.len()
    );
    let all = shared.app.post("/grains/count", json!({})).await.ok();
    assert_eq!(all["count"], stay.len() + 2);
    assert!(n_counted > 0 && gone.len() > 1);
    shared.app.stop().await;
}
