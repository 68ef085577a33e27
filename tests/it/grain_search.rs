//! Grains are found by meaning, by words, by both, and by vectors; and after every change as they are then.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::helpers::{
    Caller, Chance, MINILM, Process, TINY, TestApp, cosine, entry_of, folder_with, send, until, vectors_of, with_tiny,
};
use crate::search_pages::assert_pages;

/// Some grains that mean different things, in few words of each other.
const TEXTS: [(&str, &str); 7] = [
    ("wheat", "Wheat is a grass cultivated for its seed, a cereal."),
    ("cat", "The cat sleeps on the warm windowsill all afternoon."),
    ("rust", "Rust is a programming language that prevents memory errors."),
    ("piano", "She practises the piano for two hours every evening."),
    ("volcano", "The volcano erupted and covered the village in ash."),
    ("tax", "The city council raised property taxes again this year."),
    ("café", "Grüße aus dem Café in Zürich!"),
];

async fn write_texts(app: &Caller) {
    let grain =
        |(id, text): (&str, &str)| json!({"id": id.replace('é', "e"), "text": text, "attributes": {"n": text.len()}});
    app.post("/grains", json!({"grains": TEXTS.map(grain)})).await.ok();
}

async fn search(app: &Caller, body: Value) -> Value {
    app.post("/grains/search", body).await.ok()
}

fn ids(found: &Value) -> Vec<&str> {
    let hits = found["hits"].as_array().unwrap_or_else(|| panic!("no hits: {found}"));
    hits.iter().map(|hit| hit["grain"]["id"].as_str().expect("an id")).collect()
}

/// The id of the best hit.
async fn best(app: &Caller, body: Value) -> String {
    let found = search(app, body).await;
    ids(&found).first().map(|id| (*id).to_owned()).unwrap_or_default()
}

fn scores<'a>(found: &'a Value, kind: &'a str) -> Vec<f64> {
    let hits = found["hits"].as_array().expect("hits");
    hits.iter().map(|hit| hit[kind].as_f64().expect("a score")).collect()
}

/// What was said of the spaces: model, whether it was searched, reason.
fn said(found: &Value) -> Vec<(Option<&str>, bool, &str)> {
    let spaces = found["spaces"].as_array().expect("spaces").iter();
    let word = |space: &'_ Value| space["searched"].as_bool().expect("searched");
    spaces.map(|space| (space["model"].as_str(), word(space), space["reason"].as_str().unwrap_or_default())).collect()
}

#[tokio::test]
async fn texts_are_found_by_what_they_mean() {
    let app = TestApp::start().await;
    assert_eq!(search(&app, json!({"query": "anything"})).await, json!({"hits": [], "spaces": [], "merged": "score"}));
    write_texts(&app).await;
    for (query, id) in [
        ("pets taking naps", "cat"),
        ("software engineering", "rust"),
        ("bread, flour", "wheat"),
        ("natural disaster", "volcano"),
        ("musical instrument", "piano"),
        ("municipal budget", "tax"),
        ("Swiss coffee house", "cafe"),
    ] {
        assert_eq!(best(&app, json!({"query": query, "mode": "dense"})).await, id, "{query}");
        assert_eq!(best(&app, json!({"query": query})).await, id, "{query}");
    }
    let query = "pets taking naps";
    let found = search(&app, json!({"query": query, "mode": "dense"})).await;
    let embedded = app.post("/embed", json!({"inputs": [query, TEXTS[1].1]})).await;
    let vectors = vectors_of(&embedded.ok());
    let hit = &found["hits"][0];
    assert!((hit["score"].as_f64().expect("a score") - cosine(&vectors[0], &vectors[1])).abs() < 1e-3, "{hit}");
    assert_eq!((&hit["score"], &hit["space"]), (&hit["raw_score"], &json!(embedded.header("x-space"))));
    assert_eq!(hit["grain"], app.get("/grains/cat").await.ok());
    assert_eq!((ids(&found).len(), &found["merged"]), (TEXTS.len(), &json!("score")), "all of them are compared");
    assert!(scores(&found, "score").is_sorted_by(|a, b| a >= b));
    assert_eq!(found["spaces"], json!([{"space": embedded.header("x-space"), "model": MINILM, "searched": true}]));
    app.stop().await;
}

#[tokio::test]
async fn texts_are_found_by_their_words() {
    let app = TestApp::start().await;
    write_texts(&app).await;
    for (query, expected) in [
        ("taxes", &["tax"][..]),
        ("TAXES! (again)", &["tax"]),
        ("cafe zurich", &["cafe"]),
        ("GRÜSSE", &["cafe"]),
        ("grüße", &["cafe"]),
        // Letters and their marks apart, as some systems write them.
        ("zu\u{308}rich", &["cafe"]),
        ("gru\u{308}ße", &["cafe"]),
        ("wheat OR NOT piano*", &["piano", "wheat"]),
        ("tax", &[]),
        ("\"", &[]),
        ("nothing of it stands anywhere", &[]),
    ] {
        let found = search(&app, json!({"query": query, "mode": "lexical"})).await;
        let mut sorted = ids(&found);
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "{query}");
        assert_eq!((&found["spaces"], &found["merged"]), (&json!([]), &json!("score")));
        assert!(scores(&found, "score").iter().all(|score| *score > 0.0), "{found}");
    }
    let found = search(&app, json!({"query": "warm windowsill village", "mode": "lexical", "highlights": true})).await;
    assert_eq!(ids(&found), ["cat", "volcano"], "two words count for more than one");
    assert_eq!(
        found["hits"][0]["highlight"],
        "The cat sleeps on the <mark>warm</mark> <mark>windowsill</mark> all afternoon."
    );
    assert_eq!(
        (&found["hits"][0]["space"], &found["hits"][0]["score"]),
        (&json!(null), &found["hits"][0]["raw_score"])
    );

    // Both: words bring in front what the model does not know, and a grain without them shows no words.
    let found = search(&app, json!({"query": "municipal budget windowsill", "highlights": true})).await;
    assert_eq!(found["merged"], "rank");
    assert_eq!(ids(&found).len(), TEXTS.len());
    let marked = |hit: &Value| hit.get("highlight").is_some();
    let hits = found["hits"].as_array().expect("hits");
    assert!(hits.iter().all(|hit| marked(hit) == (hit["grain"]["id"] == "cat") && !hit["space"].is_null()), "{found}");
    assert!(ids(&found)[..2].contains(&"cat") && ids(&found)[..2].contains(&"tax"), "{found}");
    app.stop().await;
}

#[tokio::test]
async fn words_are_found_in_all_scripts_whatever_their_case() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let words = ["ᎠᏂᏴᏫᏯ", "ᲗᲑᲘᲚᲘᲡᲘ", "თბილისი", "𞤀𞤣𞤤𞤢𞤥", "İSTANBUL", "ΟΔΟΣ", "हिन्दी", "مُحَمَّد"];
    for (n, word) in words.iter().enumerate() {
        app.post("/grains", json!({"id": n.to_string(), "text": format!("the word {word}")})).await.ok();
    }
    for (query, expected) in [
        ("ꭰꮒᏼᏫᏯ", &["0"][..]),
        ("ᲗᲑᲘᲚᲘᲡᲘ", &["1", "2"]),
        ("თბილისი ᲗᲑᲘᲚᲘᲡᲘ", &["1", "2"]),
        ("𞤢𞤣𞤤𞤢𞤥", &["3"]),
        ("istanbul", &["4"]),
        ("οδός", &["5"]),
        ("हिन्दी", &["6"]),
        ("हन", &[]),
        ("محمد", &["7"]),
    ] {
        let found = search(&app, json!({"query": query, "mode": "lexical"})).await;
        let mut sorted = ids(&found);
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "{query}");
    }
    app.stop().await;
}

#[tokio::test]
async fn words_are_found_within_what_is_written_without_spaces() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for (id, text) in [
        ("zh", "我住在东京都，日本。"),
        ("ja", "昨日は図書館で新しい本を読みました。"),
        ("ko", "어제 도서관에서 새 책을 읽었습니다."),
        ("th", "เมื่อวานฉันอ่านหนังสือที่ห้องสมุด"),
        ("en", "Yesterday I read a book in the library."),
    ] {
        app.post("/grains", json!({"id": id, "text": text})).await.ok();
    }
    for (query, expected, highlight) in [
        ("东京", "zh", "我住在<mark>东京</mark>都，日本。"),
        ("都", "zh", "我住在东京<mark>都</mark>，日本。"),
        ("図書館", "ja", "昨日は<mark>図書館</mark>で新しい本を読みました。"),
        ("新しい本はどこ？", "ja", "昨日は図書館で<mark>新しい本</mark>を読みました。"),
        ("도서관", "ko", "어제 <mark>도서관</mark>에서 새 책을 읽었습니다."),
        ("ห้องสมุด", "th", "เมื่อวานฉันอ่านหนังสือที่<mark>ห้องสมุด</mark>"),
    ] {
        let found = search(&app, json!({"query": query, "mode": "lexical", "highlights": true})).await;
        assert_eq!(ids(&found), [expected], "{query}");
        assert_eq!(found["hits"][0]["highlight"], highlight, "{query}");
    }
    app.stop().await;
}

#[tokio::test]
async fn words_are_found_whether_their_marks_stand_apart_or_not() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    for (together, apart) in [
        ("Андрей", "Андреи\u{306}"),
        ("καλημέρα", "καλημε\u{301}ρα"),
        ("한국어", "\u{1112}\u{1161}\u{11ab}\u{1100}\u{116e}\u{11a8}\u{110b}\u{1165}"),
        ("がき", "か\u{3099}き"),
        ("Zürich", "Zu\u{308}rich"),
    ] {
        app.put("/grains/together", json!({"text": format!("the word {together}")})).await.ok();
        app.put("/grains/apart", json!({"text": format!("the word {apart}")})).await.ok();
        for query in [together, apart] {
            let found = search(&app, json!({"query": query, "mode": "lexical", "highlights": true})).await;
            assert_eq!(ids(&found).len(), 2, "{query}: {found}");
            for (id, word) in [("together", together), ("apart", apart)] {
                let hits = found["hits"].as_array().expect("hits");
                let hit = hits.iter().find(|hit| hit["grain"]["id"] == id).expect("found");
                assert_eq!(hit["highlight"], format!("the word <mark>{word}</mark>"), "{query}");
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn words_that_most_grains_have_are_left_out_beside_others() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    // What is gone does not count among all.
    let gone: Vec<_> = (0..1_300).map(|_| json!({"text": "gone", "source": "gone"})).collect();
    app.post("/grains", json!({"grains": gone})).await.ok();
    app.post("/grains/delete", json!({"filter": {"source": "gone"}, "expected_count": 1_300})).await.ok();
    let grain = |n: usize| {
        let common = if n.is_multiple_of(5) { "an" } else { "the" };
        json!({"id": n.to_string(), "text": format!("{common} item{n} Grüße")})
    };
    for numbers in [0..600, 600..1_200] {
        app.post("/grains", json!({"grains": numbers.map(grain).collect::<Vec<_>>()})).await.ok();
    }
    let lexical = async |query: &str| search(&app, json!({"query": query, "mode": "lexical", "limit": 1_000})).await;
    assert_eq!(ids(&lexical("the item7").await), ["7"]);
    assert_eq!(ids(&lexical("THE item7 and item5").await).len(), 2);
    assert_eq!(ids(&lexical("Grüße, item7").await), ["7"], "marks are not in the index");
    assert_eq!(ids(&lexical("the").await).len(), 960, "it is all there is");
    assert_eq!(ids(&lexical("the unheard-of").await).len(), 960);
    assert_eq!(ids(&lexical("an item7").await).len(), 241, "a fifth has it");
    // More have come since all were counted.
    let many: Vec<_> = (0..1_300).map(|n| json!({"text": if n % 2 == 0 { "beta" } else { "gamma" }})).collect();
    app.post("/grains", json!({"grains": many})).await.ok();
    assert_eq!(ids(&lexical("beta item7").await).len(), 651, "a quarter has it");
    app.put("/grains/0", json!({"text": "猫が寝る。猫は走る。"})).await.ok();
    assert_eq!(ids(&lexical("猫 item7").await).len(), 2);
    let page = (0..200).map(|n| format!("unheard{n}")).chain(["item8".to_owned()]).collect::<Vec<_>>();
    assert!(ids(&lexical(&page.join(" ")).await).is_empty(), "of a page, the beginning counts");
    assert_eq!(ids(&lexical(&page[100..].join(" ")).await), ["8"]);
    app.stop().await;
}

#[tokio::test]
async fn words_that_most_grains_have_change_nothing_of_what_is_found_by_meaning() {
    let app = TestApp::start().await;
    write_texts(&app).await;
    // Four of the seven have "the", but not the best of them; none has the others.
    let query = "the Swiss coffee house";
    let by_meaning = search(&app, json!({"query": query, "mode": "dense"})).await;
    assert_eq!(ids(&by_meaning)[0], "cafe");
    let by_both = search(&app, json!({"query": query, "highlights": true})).await;
    assert_eq!((ids(&by_both), &by_both["merged"]), (ids(&by_meaning), &json!("rank")));
    let marked = by_both["hits"].as_array().expect("hits").iter().filter(|hit| hit.get("highlight").is_some());
    assert_eq!(marked.count(), 4, "what is there is shown all the same");
    assert_eq!(ids(&search(&app, json!({"query": query, "mode": "lexical"})).await).len(), 4);
    app.stop().await;
}

#[tokio::test]
async fn words_that_most_grains_have_count_where_at_most_half_of_what_may_be_found_has_them() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = space_of_tiny(&app).await;
    let mut vectors = random_vectors(11, 0, 520).into_iter();
    let mut write = async |group: &str, n_with: usize, n: usize| {
        let grain = |(at, (_, vector)): (usize, (String, Vec<f32>))| {
            let (kind, text) = if at < n_with { ("with", "the ZX81") } else { ("without", "the other") };
            json!({"id": format!("{group}-{kind}-{at}"), "text": text, "tags": [group], "space": space, "vector": vector})
        };
        let grains: Vec<Value> = vectors.by_ref().take(n).enumerate().map(grain).collect();
        app.post("/grains", json!({"grains": grains})).await.ok();
    };
    let is_with = |id: &&str| id.contains("-with-");

    // Half of the whole store.
    write("half", 2, 4).await;
    let found = search(&app, json!({"query": "ZX81"})).await;
    assert!(ids(&found).len() == 4 && ids(&found)[..2].iter().all(is_with), "{found}");

    for (group, n_with, n) in [("others", 300, 300), ("one", 1, 6), ("several", 26, 204), ("most", 3, 4)] {
        write(group, n_with, n).await;
    }
    for (group, n_with, first) in [("half", 2, 2), ("one", 1, 1), ("several", 26, 50)] {
        for limit in [first, 201] {
            let body = json!({"query": "ZX81", "filter": {"tags": {"any": [group]}}, "limit": limit});
            let found = search(&app, body).await;
            let n_found = ids(&found).into_iter().take(first).filter(is_with).count();
            assert_eq!(n_found, n_with, "{group}, {limit}: {found}");
        }
    }
    let most = |mode: &str| json!({"query": "ZX81", "mode": mode, "filter": {"tags": {"any": ["most"]}}});
    let (by_both, by_meaning) = (search(&app, most("hybrid")).await, search(&app, most("dense")).await);
    assert_eq!(ids(&by_both), ids(&by_meaning));
    app.stop().await;
}

#[tokio::test]
async fn each_word_counts_by_the_share_that_has_it_of_what_may_be_found() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = space_of_tiny(&app).await;
    let mut vectors = random_vectors(12, 0, 18).into_iter();
    // The last by meaning is the only grain with what is looked for.
    for (group, query, texts, filter) in [
        ("all", "Error E4711", &["Error E4713", "Error E4713", "E4711 alone", "Error E4711"][..], json!({})),
        ("outside", "ZX81", &["the ZX81"; 8], json!({"tags": {"any": ["outside"]}})),
        (
            "one",
            "other ZX81",
            &["the other", "the other", "the other", "the other", "the other", "the ZX81"],
            json!({"tags": {"any": ["one"]}}),
        ),
    ] {
        let vectors: Vec<(String, Vec<f32>)> = vectors.by_ref().take(texts.len()).collect();
        write_vectors(&app, &space, &vectors).await;
        let among: Vec<&String> = vectors.iter().map(|(id, _)| id).collect();
        let dense = json!({"query": query, "mode": "dense", "filter": {"ids": among}});
        let by_meaning = search(&app, dense).await;
        for (id, text) in ids(&by_meaning).into_iter().zip(texts) {
            let (_, vector) = vectors.iter().find(|(known, _)| known == id).expect("written");
            let grain = json!({"text": text, "tags": [group], "space": space, "vector": vector});
            app.put(&format!("/grains/{id}"), grain).await.ok();
        }
        let found = search(&app, json!({"query": query, "filter": filter})).await;
        if group != "outside" {
            assert_eq!(ids(&found).first(), ids(&by_meaning).last(), "{group}: {found}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn of_texts_that_words_do_not_tell_apart_the_nearest_come_first_whenever_they_were_written() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = space_of_tiny(&app).await;
    let grains: Vec<Value> = random_vectors(13, 0, 560)
        .into_iter()
        .enumerate()
        .map(|(at, (_, vector))| {
            let (kind, text) = if at < 300 { ("other", "a hat") } else { ("coat", "a coat") };
            json!({"id": format!("{kind}-{at}"), "text": text, "space": space, "vector": vector})
        })
        .collect();
    app.post("/grains", json!({"grains": grains})).await.ok();

    let by_meaning = search(&app, json!({"query": "coat", "mode": "dense", "limit": 200})).await;
    let nearest: Vec<&str> = ids(&by_meaning).into_iter().filter(|id| id.starts_with("coat")).take(50).collect();
    assert_eq!(nearest.len(), 50);
    let late = nearest.iter().filter(|id| id["coat-".len()..].parse::<usize>().expect("a number") >= 500);
    assert!(late.count() > 0, "some that come after the first 200 of what words find: {nearest:?}");
    for limit in [200, 201] {
        let by_both = search(&app, json!({"query": "coat", "limit": limit})).await;
        let found: Vec<&str> = ids(&by_both).into_iter().filter(|id| id.starts_with("coat")).take(50).collect();
        assert_eq!(found, nearest, "{limit}");
    }
    let most = search(&app, json!({"query": "coat", "limit": 400})).await;
    for offset in (0..400).step_by(50) {
        let page = search(&app, json!({"query": "coat", "offset": offset, "limit": 50})).await;
        assert_eq!(ids(&page), ids(&most)[offset..offset + 50], "{offset}");
    }
    let each: HashSet<&str> = ids(&most).into_iter().collect();
    assert_eq!(each.len(), 400, "none comes twice");
    app.stop().await;
}

#[tokio::test]
async fn an_answer_of_too_much_text_is_refused_and_its_words_are_shown_at_once() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = space_of_tiny(&app).await;
    let text = "zq ".repeat(345_000);
    for (id, vector) in random_vectors(7, 0, 34) {
        app.post("/grains", json!({"id": id, "text": text, "space": space, "vector": vector})).await.ok();
    }
    let body = |limit: usize| json!({"query": "zq", "mode": "lexical", "limit": limit, "highlights": true});
    let (status, code, sentence) = app.post("/grains/search", body(100)).await.problem();
    assert_eq!((status, code.as_str()), (422, "invalid_request"));
    assert!(sentence.contains("34 hits take 33.6 MiB") && sentence.contains("32.0 MiB at most"), "{sentence}");
    let found = search(&app, body(10)).await;
    let highlights: Vec<&str> =
        found["hits"].as_array().expect("hits").iter().map(|hit| hit["highlight"].as_str().expect("shown")).collect();
    assert_eq!(highlights.len(), 10);
    assert_eq!(highlights[0].matches("<mark>zq</mark>").count(), 32, "{}", highlights[0]);

    // Texts are as long as they were when shorter ones are allowed.
    let app = app.restart_with(&format!("{}[grains]\nmax_text = \"1KiB\"\n", with_tiny(&[]))).await;
    let (status, _, sentence) = app.post("/grains/search", body(100)).await.problem();
    assert!(status == 422 && sentence.contains("34 hits take 33.6 MiB"), "{status}: {sentence}");
    assert_eq!(ids(&search(&app, body(1)).await).len(), 1);
    app.stop().await;
}

#[tokio::test]
async fn attributes_count_in_an_answer_for_what_they_become() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let attributes = json!({"a": vec![0; 15_000]});
    let grains: Vec<Value> = (0..40).map(|_| json!({"text": "zq", "attributes": attributes})).collect();
    app.post("/grains", json!({"grains": grains})).await.ok();
    let body = |limit: usize| json!({"query": "zq", "mode": "lexical", "limit": limit});
    let (status, _, sentence) = app.post("/grains/search", body(40)).await.problem();
    assert!(status == 422 && sentence.contains("the 40 hits take 42."), "{status}: {sentence}");
    assert_eq!(ids(&search(&app, body(30)).await).len(), 30);
    app.stop().await;
}

#[tokio::test]
async fn hits_are_bounded_by_filter_score_and_place() {
    let app = TestApp::start().await;
    write_texts(&app).await;
    let query = "pets taking naps";
    let all = search(&app, json!({"query": query, "mode": "dense"})).await;
    for mode in ["dense", "lexical", "hybrid"] {
        let body =
            json!({"query": format!("{query} is the in"), "mode": mode, "filter": {"ids": ["wheat", "tax", "nobody"]}});
        let found = search(&app, body).await;
        assert!(
            ids(&found).iter().all(|id| ["wheat", "tax"].contains(id)) && !ids(&found).is_empty(),
            "{mode}: {found}"
        );
        let body = json!({"query": query, "mode": mode, "filter": {"source": "elsewhere"}});
        assert!(ids(&search(&app, body).await).is_empty());
    }
    let bound = f64::midpoint(scores(&all, "score")[1], scores(&all, "score")[2]);
    let found = search(&app, json!({"query": query, "mode": "dense", "min_score": bound})).await;
    assert_eq!(ids(&found), ids(&all)[..2]);
    assert!(ids(&search(&app, json!({"query": query, "min_score": 2})).await).is_empty());
    for (offset, limit) in [(0, 1), (1, 3), (5, 5), (7, 1), (9999, 1), (0, 1000)] {
        let found = search(&app, json!({"query": query, "mode": "dense", "offset": offset, "limit": limit})).await;
        let expected: Vec<&str> = ids(&all).into_iter().skip(offset).take(limit).collect();
        assert_eq!(ids(&found), expected, "{offset} {limit}");
    }
    let space = all["spaces"][0]["space"].as_str().expect("a space");
    for (body, status, code, sentence) in [
        (json!({"query": "q", "limit": 0}), 422, "invalid_request", "`limit` is 0; it takes 1 to 1000"),
        (json!({"query": "q", "limit": 1001}), 422, "invalid_request", "`limit` is 1001"),
        (json!({"query": "q", "limit": -1}), 422, "invalid_request", "`limit`"),
        (json!({"query": "q", "offset": 10_000}), 422, "invalid_request", "`offset` is 10000; it takes 0 to 9999"),
        (
            json!({"query": "q", "offset": 9_999, "limit": 2}),
            422,
            "invalid_request",
            "10001 together; a search reaches 10000",
        ),
        (json!({"query": "q", "mode": "psychic"}), 422, "invalid_request", "`mode`"),
        (json!({"query": "q", "min_score": "high"}), 422, "invalid_request", "`min_score`"),
        (json!({"query": " \n"}), 400, "empty_input", "`query` is empty"),
        (json!({"query": "q".repeat(65_537)}), 422, "invalid_request", "`query` has 65537 bytes; it takes 65536"),
        (json!({}), 422, "invalid_request", "there is nothing to search for"),
        (json!({"query": "q", "vector": [1.0], "space": space}), 422, "invalid_request", "exclude each other"),
        (json!({"vector": [1.0]}), 422, "invalid_request", "`vector` needs `space`"),
        (json!({"query": "q", "space": space}), 422, "invalid_request", "`space` belongs to `vector`"),
        (json!({"vector": [1.0], "space": space}), 422, "invalid_request", "`vector` has 1 numbers; its space has 384"),
        (json!({"vector": vec![0.0; 384], "space": space}), 422, "invalid_request", "all zeros"),
        (json!({"vector": [1.0], "space": "0123456789abcdef"}), 422, "invalid_request", "is not known here"),
        (
            json!({"vector": vec![1.0; 384], "space": space, "mode": "hybrid"}),
            422,
            "invalid_request",
            "a vector has no words",
        ),
    ] {
        let (found_status, found_code, detail) = app.post("/grains/search", body.clone()).await.problem();
        assert_eq!((found_status, found_code.as_str()), (status, code), "{detail}");
        assert!(detail.contains(sentence), "`{detail}` does not say `{sentence}`");
    }
    // The words of a NUL and of half a million characters are words like others.
    search(&app, json!({"query": "a\0b"})).await;
    search(&app, json!({"query": "grain ".repeat(10_000)})).await;
    app.stop().await;
}

#[tokio::test]
async fn a_change_is_found_at_once_and_what_was_there_before_is_not() {
    let app = TestApp::start().await;
    write_texts(&app).await;
    let vector = vectors_of(&app.post("/embed", json!({"inputs": TEXTS[1].1})).await.ok()).remove(0);
    let space = app.get(&format!("/models/{MINILM}")).await.ok()["space"].clone();
    let exact = json!({"vector": vector, "space": space, "limit": 1});
    let found = search(&app, exact.clone()).await;
    assert_eq!(ids(&found), ["cat"]);
    assert!(scores(&found, "score")[0] > 0.9999, "{found}");
    assert_eq!(said(&found), [(None, true, "")]);

    app.patch("/grains/cat", json!({"text": "The dog barks at the postman."})).await.ok();
    assert!(scores(&search(&app, exact.clone()).await, "score")[0] < 0.9, "no vector of the old text is left");
    assert!(ids(&search(&app, json!({"query": "windowsill", "mode": "lexical"})).await).is_empty());
    assert_eq!(ids(&search(&app, json!({"query": "postman", "mode": "lexical"})).await), ["cat"]);
    assert_eq!(best(&app, json!({"query": "a dog and a mailman", "mode": "dense"})).await, "cat");
    // Metadata alone leaves all of it.
    app.patch("/grains/cat", json!({"tags": ["pet"]})).await.ok();
    assert_eq!(
        best(&app, json!({"query": "a dog", "mode": "dense", "filter": {"tags": {"any": ["pet"]}}})).await,
        "cat"
    );

    app.delete("/grains/cat").await;
    for mode in ["dense", "lexical", "hybrid"] {
        let found = search(&app, json!({"query": "The dog barks at the postman.", "mode": mode, "limit": 100})).await;
        assert!(!ids(&found).contains(&"cat"), "{mode}");
    }
    app.put("/grains/cat", json!({"text": TEXTS[1].1})).await.ok();
    assert_eq!(ids(&search(&app, exact).await), ["cat"]);
    app.stop().await;
}

/// A filter may keep grains from those who must not see them.
#[tokio::test(flavor = "multi_thread")]
async fn a_grain_that_is_changed_while_it_is_found_is_not_shown_when_it_does_not_meet_the_filter_any_more() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    app.post("/grains", json!({"id": "g", "text": "wheat", "tags": ["public"]})).await.ok();
    let is_done = AtomicBool::new(false);
    let changes = async {
        for round in 0..300 {
            let tag = if round % 2 == 0 { "private" } else { "public" };
            app.patch("/grains/g", json!({"tags": [tag]})).await.ok();
        }
        is_done.store(true, Ordering::Relaxed);
    };
    let searches = async |mode: &str| {
        let mut n_found = 0;
        while !is_done.load(Ordering::Relaxed) {
            let found =
                search(&app, json!({"query": "wheat", "mode": mode, "filter": {"tags": {"any": ["public"]}}})).await;
            for hit in found["hits"].as_array().expect("hits") {
                assert_eq!(hit["grain"]["meta"]["tags"], json!(["public"]), "{mode}");
                n_found += 1;
            }
        }
        assert!(n_found > 0, "{mode}");
    };
    tokio::join!(changes, searches("dense"), searches("lexical"));
    app.stop().await;
}

#[tokio::test]
async fn each_space_is_searched_with_its_own_model() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    for n in 0..10 {
        let model = if n % 2 == 0 { TINY } else { "tiny-cls" };
        let body = json!({"id": n.to_string(), "text": format!("the text of number {n}"), "model": model});
        app.post("/grains", body).await.ok();
    }
    let spaces = ["0", "1"].map(async |id| app.get(&format!("/grains/{id}")).await.ok()["meta"]["space"].clone());
    let spaces = futures::future::join_all(spaces).await;
    assert_ne!(spaces[0], spaces[1]);
    // Whatever is active, and loaded.
    for active in [TINY, "tiny-cls"] {
        app.put("/models/active", json!({"name": active})).await.ok();
        app.post("/models/tiny/unload", json!({})).await.ok();
        for n in 0..10 {
            let found =
                search(&app, json!({"query": format!("the text of number {n}"), "mode": "dense", "limit": 100})).await;
            assert_eq!((ids(&found).len(), &found["merged"]), (10, &json!("rank")));
            assert_eq!(said(&found), [(Some(TINY), true, ""), (Some("tiny-cls"), true, "")]);
            assert!(ids(&found)[..2].contains(&n.to_string().as_str()), "best in its own space: {found}");
            let hits = found["hits"].as_array().expect("hits");
            let hit = hits.iter().find(|hit| hit["grain"]["id"] == json!(n.to_string())).expect("found");
            assert!(hit["raw_score"].as_f64() > Some(0.999), "{hit}");
            assert!(hits.iter().all(|hit| hit["space"] == hit["grain"]["meta"]["space"]));
        }
    }
    let found = search(&app, json!({"query": "the text", "mode": "dense", "filter": {"space": spaces[1]}})).await;
    assert_eq!((said(&found), ids(&found).len()), (vec![(Some("tiny-cls"), true, "")], 5));
    let found = search(&app, json!({"query": "number", "filter": {"space": spaces[0]}})).await;
    assert!(ids(&found).iter().all(|id| ["0", "2", "4", "6", "8"].contains(id)) && ids(&found).len() == 5, "{found}");
    app.stop().await;
}

#[tokio::test]
async fn a_space_whose_model_is_not_to_be_had_says_so_and_its_words_are_found() {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    app.post("/grains", json!({"id": "a", "text": "alpha beta"})).await.ok();
    app.post("/grains", json!({"id": "b", "text": "beta gamma", "model": "tiny-cls"})).await.ok();
    app.post("/models/tiny-cls/unload", json!({"disable": true})).await.ok();
    let found = search(&app, json!({"query": "beta", "mode": "dense"})).await;
    let [(Some(TINY), true, ""), (_, false, reason)] = said(&found)[..] else { panic!("{found}") };
    assert!(reason.contains("disabled"), "{reason}");
    assert_eq!(ids(&found), ["a"]);
    let found = search(&app, json!({"query": "gamma"})).await;
    assert!(ids(&found).contains(&"b"), "its words are found: {found}");

    // Nobody makes the space any more.
    let app = app.restart_with(&with_tiny(&[])).await;
    let found = search(&app, json!({"query": "gamma"})).await;
    let [(Some(TINY), true, ""), (None, false, reason)] = said(&found)[..] else { panic!("{found}") };
    assert!(reason.contains("no model of this server makes the space"), "{reason}");
    let vector = app.get("/grains/b?include=vector").await.ok();
    let body = json!({"vector": vector["vector"], "space": vector["meta"]["space"]});
    assert_eq!(ids(&search(&app, body).await), ["b"], "a vector of the space needs no model");

    // A model whose files are gone.
    let toml = format!("{}[[ai.additional_models]]\nname = \"tiny-cls\"\npath = \"/nowhere/at/all\"\n", with_tiny(&[]));
    let app = app.restart_with(&toml).await;
    let found = search(&app, json!({"query": "gamma"})).await;
    let [(Some(TINY), true, ""), (None, false, reason)] = said(&found)[..] else { panic!("{found}") };
    assert!(!reason.is_empty());
    assert!(ids(&found).contains(&"b"), "{found}");
    app.stop().await;
}

/// Searches for vectors that were written: each must be found, and nothing else with that score.
async fn find_all(app: &Caller, space: &Value, vectors: &[(String, Vec<f32>)]) {
    for (id, vector) in vectors {
        let found = search(app, json!({"vector": vector, "space": space, "limit": 2})).await;
        assert_eq!(ids(&found)[0], id);
        assert!(
            scores(&found, "score")[0] > 0.9999 && scores(&found, "score")[1] < 0.999,
            "{id}: {:?}",
            scores(&found, "score")
        );
    }
    let counted = app.post("/grains/count", json!({})).await.ok();
    assert_eq!(counted["count"], vectors.len());
}

async fn write_vectors(app: &Caller, space: &Value, vectors: &[(String, Vec<f32>)]) {
    let grain = |(id, vector): &(String, Vec<f32>)| json!({"id": id, "text": id, "space": space, "vector": vector});
    app.post("/grains", json!({"grains": vectors.iter().map(grain).collect::<Vec<_>>()})).await.ok();
}

async fn space_of_tiny(app: &Caller) -> Value {
    send(app.request(Method::POST, "/models/tiny/load")).await.ok()["space"].clone()
}

fn random_vectors(seed: u64, from: usize, to: usize) -> Vec<(String, Vec<f32>)> {
    let mut chance = Chance::seeded(seed);
    (from..to).map(|n| (format!("grain-{n}"), chance.unit_vector(32))).collect()
}

#[tokio::test]
async fn everything_is_found_after_a_restart_and_after_a_kill() {
    let folder = folder_with(&with_tiny(&[]));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let space = space_of_tiny(&app).await;
    let mut vectors = random_vectors(1, 0, 60);
    write_vectors(&app, &space, &vectors).await;
    find_all(&app, &space, &vectors).await;
    process.stop();
    let saved = folder.path().join("granary.db.index").join(format!("{}.index", space.as_str().expect("a space")));
    assert!(saved.is_file(), "a clean stop saves the index");

    let (mut process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    assert!(process.log().contains("n_vectors=60"), "{}", process.log());
    find_all(&app, &space, &vectors).await;
    let more = random_vectors(2, 60, 80);
    write_vectors(&app, &space, &more).await;
    vectors.extend(more);
    app.delete("/grains/grain-7").await;
    vectors.retain(|(id, _)| id != "grain-7");
    process.signal(Signal::KILL);
    process.wait();
    assert!(!saved.exists(), "what was saved says nothing of what was written since");

    let (process, url) = Process::serve(folder.path(), &[]);
    assert!(process.log().contains("n_vectors=79") && !process.log().contains("WARN"), "{}", process.log());
    find_all(&Caller::of(url), &space, &vectors).await;
    process.stop();
}

#[tokio::test]
async fn index_files_that_are_not_what_was_saved_are_thrown_away() {
    let folder = folder_with(&with_tiny(&[]));
    let (process, url) = Process::serve(folder.path(), &[]);
    let app = Caller::of(url);
    let space = space_of_tiny(&app).await;
    let mut vectors = random_vectors(3, 0, 40);
    write_vectors(&app, &space, &vectors).await;
    process.stop();
    let files = folder.path().join("granary.db.index");
    let file = |ending: &str| files.join(format!("{}.{ending}", space.as_str().expect("a space")));
    let (index, raw) = (file("index"), file("vectors"));
    let earlier = [&index, &raw].map(|path| fs_err::read(path).expect("a file"));

    let cut = |path: &Path| {
        let bytes = fs_err::read(path).expect("a file");
        fs_err::write(path, &bytes[..bytes.len() / 2]).expect("written");
    };
    let flip = |path: &Path| {
        let mut bytes = fs_err::read(path).expect("a file");
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs_err::write(path, bytes).expect("written");
    };
    let damages: [(&str, &dyn Fn()); 7] = [
        ("the index is cut", &|| cut(&index)),
        ("the index is another", &|| flip(&index)),
        ("the index is empty", &|| fs_err::write(&index, "").expect("written")),
        ("the vectors are cut", &|| cut(&raw)),
        ("the vectors are others", &|| flip(&raw)),
        ("the vectors are gone", &|| fs_err::remove_file(&raw).expect("removed")),
        ("both are of an earlier day", &|| {
            fs_err::write(&index, &earlier[0]).expect("written");
            fs_err::write(&raw, &earlier[1]).expect("written");
        }),
    ];
    for (round, (what, damage)) in damages.into_iter().enumerate() {
        damage();
        let (process, url) = Process::serve(folder.path(), &[]);
        let app = Caller::of(url);
        let log = process.log();
        let warned = log.lines().any(|line| line.contains("WARN") && line.contains("a saved index is not used"));
        assert!(warned, "{what}: {log}");
        find_all(&app, &space, &vectors).await;
        let more = random_vectors(100 + round as u64, 40 + round, 41 + round);
        write_vectors(&app, &space, &more).await;
        vectors.extend(more);
        process.stop();
    }
    // And without any.
    fs_err::remove_dir_all(&files).expect("removed");
    let (process, url) = Process::serve(folder.path(), &[]);
    find_all(&Caller::of(url), &space, &vectors).await;
    process.stop();
}

#[tokio::test]
async fn a_real_model_finds_its_grains_beside_those_of_another() {
    let app = TestApp::start_with(&entry_of(TINY)).await;
    write_texts(&app).await;
    app.post("/grains", json!({"id": "odd", "text": "zyx", "model": TINY})).await.ok();
    let found = search(&app, json!({"query": "natural disaster"})).await;
    assert!(ids(&found)[..2].contains(&"volcano"), "{found}");
    assert_eq!(said(&found), [(Some(MINILM), true, ""), (Some(TINY), true, "")]);
    assert_eq!(best(&app, json!({"query": "zyx"})).await, "odd");
    app.stop().await;
}

/// The ids and cosines of the nearest vectors, by comparing all of them.
fn nearest<'a>(vectors: impl Iterator<Item = &'a (String, Vec<f32>)>, query: &[f32], n: usize) -> Vec<(&'a str, f64)> {
    let mut all: Vec<(&str, f64)> = vectors.map(|(id, vector)| (id.as_str(), cosine(query, vector))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(n);
    all
}

#[tokio::test]
async fn more_than_ten_thousand_grains_are_found_through_codes_under_every_filter() {
    let app = TestApp::start_with(&with_tiny(&[])).await;
    let space = space_of_tiny(&app).await;
    let mut vectors = random_vectors(7, 0, 10_600);
    let south = |vector: &[f32]| vector[0] < 0.0;
    for some in vectors.chunks(2000) {
        let grain = |(id, vector): &(String, Vec<f32>)| {
            let tag = if south(vector) { "south" } else { "north" };
            json!({"id": id, "text": "t", "space": space, "vector": vector, "tags": [tag, "all"]})
        };
        app.post("/grains", json!({"grains": some.iter().map(grain).collect::<Vec<_>>()})).await.ok();
    }
    let n_south = vectors.iter().filter(|(_, vector)| south(vector)).count();
    assert!(n_south > 5000, "{n_south} are few enough to be compared one by one");
    let mut northern = vec![0.01; 32];
    northern[0] = 1.0;

    let check = async |app: &Caller, vectors: &[(String, Vec<f32>)]| {
        let queries = [northern.clone(), Chance::seeded(70).unit_vector(32), vectors[5000].1.clone()];
        let conditions = ["", "all", "south", "nobody"];
        let holds = |tag: &str, vector: &[f32]| match tag {
            "south" => south(vector),
            tag => tag != "nobody",
        };
        for (query, tag) in queries.iter().flat_map(|query| conditions.map(|condition| (query, condition))) {
            let filter = if tag.is_empty() { json!(null) } else { json!({"tags": {"any": [tag]}}) };
            let body = json!({"vector": query, "space": space, "filter": filter, "limit": 10});
            let found = search(app, body).await;
            let expected = nearest(vectors.iter().filter(|(_, vector)| holds(tag, vector)), query, 10);
            let n_right = ids(&found).iter().filter(|id| expected.iter().any(|(other, _)| other == *id)).count();
            // Codes estimate: of so few dimensions, and with a query that all are far from, not each of the best is seen.
            assert!(ids(&found).len() == expected.len() && n_right + 2 >= expected.len(), "{tag}: {n_right} of 10");
            let by_id: HashMap<&str, &Vec<f32>> = vectors.iter().map(|(id, v)| (id.as_str(), v)).collect();
            for (id, score) in ids(&found).iter().zip(scores(&found, "score")) {
                assert!((score - cosine(query, by_id[id])).abs() < 1e-4, "scores are of the vectors, not of the codes");
            }
        }
    };
    check(&app, &vectors).await;
    for filter in [json!(null), json!({"tags": {"any": ["south"]}})] {
        let body = json!({"vector": northern, "space": space, "filter": filter});
        assert_eq!(assert_pages(&app, &body).await, 1_000);
    }
    // The best of them go, more than are taken out at once, and are not found any more.
    let gone: Vec<String> = nearest(vectors.iter(), &northern, 300).iter().map(|(id, _)| (*id).to_owned()).collect();
    app.post("/grains/delete", json!({"filter": {"ids": gone}, "expected_count": 300})).await.ok();
    vectors.retain(|(id, _)| !gone.contains(id));
    check(&app, &vectors).await;
    let folder = app.stop_and_keep().await;
    let files = folder.path().join("granary.db.index");
    let app = TestApp::start_in(folder, &with_tiny(&[])).await;
    check(&app, &vectors).await;
    // A disk that loses the vectors takes no search along that can do without them.
    let space = space.as_str().expect("a space");
    fs_err::write(files.join(format!("{space}.vectors")), "").expect("cut");
    let by_vector = json!({"vector": northern, "space": space, "limit": 10});
    let found = search(&app, by_vector.clone()).await;
    assert!(ids(&found).is_empty() && found["spaces"][0]["searched"] == false, "{found}");
    assert!(found["spaces"][0]["reason"].as_str().expect("a reason").contains("index"), "{found}");
    assert_eq!(ids(&search(&app, json!({"query": "t", "mode": "lexical", "limit": 10})).await).len(), 10);
    // Within a minute the index is made again, and each search until then is answered without it.
    let is_searched = async || search(&app, by_vector.clone()).await["spaces"][0]["searched"] == true;
    until("the index is made again", is_searched).await;
    check(&app, &vectors).await;
    // More than go in one step.
    let n_south = vectors.iter().filter(|(_, vector)| south(vector)).count();
    let all_but_some = json!({"filter": {"tags": {"all": ["all"]}}, "expected_count": vectors.len() - 1});
    let (status, code, _) = app.post("/grains/delete", all_but_some).await.problem();
    assert_eq!((status, code.as_str()), (409, "conflict"));
    let southern = json!({"filter": {"tags": {"any": ["south"]}}, "expected_count": n_south});
    assert_eq!(app.post("/grains/delete", southern).await.ok(), json!({"deleted": n_south}));
    assert_eq!(app.post("/grains/count", json!({})).await.ok()["count"], vectors.len() - n_south);
    for query in vectors.iter().step_by(1000).map(|(_, vector)| vector) {
        let found = search(&app, json!({"vector": query, "space": space, "limit": 100})).await;
        let is_there = |id: &&str| vectors.iter().any(|(other, vector)| other == *id && !south(vector));
        assert!(ids(&found).len() == 100 && ids(&found).iter().all(is_there), "one that is deleted is found");
    }
    app.stop().await;
}
