//! Grains are listed page by page, counted and deleted, all of them or those that meet a filter.

use std::cell::Cell;
use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::helpers::{Caller, TINY, TestApp, percent_encoded, send, with_tiny};

/// A server, and the space of its model, for vectors that need no embedding.
async fn start() -> (TestApp, String) {
    let app = TestApp::start_with(&with_tiny(&["tiny-cls"])).await;
    let model = app.post("/models/tiny/load", json!({})).await.ok();
    let space = model["space"].as_str().expect("a space").to_owned();
    (app, space)
}

/// Writes grains, each with the same vector.
async fn write(app: &Caller, space: &str, grains: Vec<Value>) {
    let mut grains = grains;
    for grain in &mut grains {
        grain["space"] = json!(space);
        grain["vector"] = json!(vec![1.0; 32]);
        if grain["text"].is_null() {
            grain["text"] = json!("t");
        }
    }
    app.post("/grains", json!({"grains": grains})).await.ok();
}

fn ids(page: &Value) -> Vec<String> {
    let grains = page["grains"].as_array().unwrap_or_else(|| panic!("no grains: {page}"));
    grains.iter().map(|grain| grain["id"].as_str().expect("an id").to_owned()).collect()
}

async fn page(app: &Caller, query: &[(&str, &str)]) -> Value {
    let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", percent_encoded(value))).collect();
    app.get(&format!("/grains?{}", pairs.join("&"))).await.ok()
}

#[tokio::test]
async fn pages_hold_every_grain_that_stays_once_whatever_is_written_between_them() {
    let (app, space) = start().await;
    for sort in ["created_at", "-created_at", "updated_at", "-updated_at", "id", "-id"] {
        app.post("/grains/delete", json!({"filter": {"source": "page"}})).await.ok();
        let named = |n: usize| json!({"id": format!("g{:03}", (n * 37) % 100), "source": "page"});
        // Some in one batch, whose times are all the same.
        write(&app, &space, (0..40).map(named).collect()).await;
        for n in 40..60 {
            write(&app, &space, vec![named(n)]).await;
        }
        let stays: BTreeSet<String> =
            (0..60).map(|n| format!("g{:03}", (n * 37) % 100)).filter(|id| !id.ends_with('1')).collect();
        let mut seen: Vec<String> = Vec::new();
        let mut cursor: Option<String> = None;
        for round in 0.. {
            let mut query = vec![("limit", "7"), ("sort", sort)];
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor));
            }
            let found = page(&app, &query).await;
            seen.extend(ids(&found));
            let Some(next) = found["next"].as_str() else { break };
            cursor = Some(next.to_owned());
            // Some go, among them those where the next page begins, and some come.
            for id in (0..100).map(|n| format!("g{n:03}")).filter(|id| id.ends_with('1')).skip(round).take(2) {
                app.delete(&format!("/grains/{id}")).await;
            }
            write(
                &app,
                &space,
                vec![
                    json!({"id": format!("new-{round}"), "source": "page"}),
                    json!({"id": format!("a-{round}"), "source": "page"}),
                ],
            )
            .await;
            // A change moves a grain in the order of changes only.
            if !sort.ends_with("updated_at") {
                app.patch("/grains/g037", json!({"attributes": {"round": round}})).await.ok();
            }
        }
        let distinct: BTreeSet<String> = seen.iter().cloned().collect();
        assert_eq!(distinct.len(), seen.len(), "{sort}: one comes twice in {seen:?}");
        let lost: Vec<_> = stays.difference(&distinct).collect();
        assert!(lost.is_empty(), "{sort}: {lost:?} are lost");
        if sort == "id" {
            assert!(seen.is_sorted(), "{seen:?}");
        } else if sort == "-id" {
            assert!(seen.is_sorted_by(|a, b| a >= b), "{seen:?}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_vector_is_of_the_text_that_is_shown_with_it_whatever_is_written_meanwhile() {
    let (app, space) = start().await;
    let put = async |n: usize| {
        let mut vector = vec![0.0; 32];
        vector[n % 2] = 1.0;
        let grain = json!({"text": (n % 2).to_string(), "space": space, "vector": vector});
        app.put("/grains/g", grain).await.ok();
    };
    put(0).await;
    let is_written = Cell::new(false);
    let writes = async {
        for n in 1..300 {
            put(n).await;
        }
        is_written.set(true);
    };
    let reads = async {
        while !is_written.get() {
            let one = app.get("/grains/g?include=vector").await.ok();
            let many = app.get("/grains?include=vector").await.ok();
            for grain in [&one, &many["grains"][0]] {
                let at: usize = grain["text"].as_str().and_then(|text| text.parse().ok()).expect("a place");
                assert_eq!(grain["vector"][at], json!(1.0), "{grain}");
            }
        }
    };
    tokio::join!(writes, reads);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_later_is_not_older_by_its_times() {
    let (app, space) = start().await;
    for round in 0..10 {
        let writes = (0..32).map(|n| write(&app, &space, vec![json!({"id": format!("{round}-{n}")})]));
        futures::future::join_all(writes).await;
    }
    let folder = app.stop_and_keep().await;
    let database = SqliteConnectOptions::new().filename(folder.path().join("granary.db"));
    let mut connection = database.connect().await.expect("open");
    // Numbers are given in the order of commits.
    let times: Vec<i64> = sqlx::query_scalar("SELECT updated_us FROM grains ORDER BY number")
        .fetch_all(&mut connection)
        .await
        .expect("read");
    connection.close().await.expect("closed");
    assert_eq!(times.len(), 320);
    assert!(times.is_sorted(), "{times:?}");
}

#[tokio::test]
async fn orders_are_of_times_and_ids_and_cursors_belong_to_one() {
    let (app, space) = start().await;
    for id in ["b", "a", "c"] {
        write(&app, &space, vec![json!({"id": id})]).await;
    }
    app.patch("/grains/b", json!({"tags": ["changed"]})).await.ok();
    for (sort, expected) in [
        ("created_at", ["b", "a", "c"]),
        ("-created_at", ["c", "a", "b"]),
        ("updated_at", ["a", "c", "b"]),
        ("-updated_at", ["b", "c", "a"]),
        ("id", ["a", "b", "c"]),
        ("-id", ["c", "b", "a"]),
    ] {
        let whole = page(&app, &[("sort", sort)]).await;
        assert_eq!((ids(&whole), &whole["next"]), (expected.map(str::to_owned).to_vec(), &json!(null)), "{sort}");
        // The cursor knows the order by itself.
        let first = page(&app, &[("sort", sort), ("limit", "2")]).await;
        let next = first["next"].as_str().expect("more");
        assert_eq!(ids(&page(&app, &[("cursor", next)]).await), [expected[2]], "{sort}");
    }
    let next = page(&app, &[("limit", "1")]).await["next"].as_str().expect("more").to_owned();
    // A cursor does not hold its filter, but tells it from another.
    let filter = r#"{"ids": ["a", "b"]}"#;
    let first = page(&app, &[("filter", filter), ("limit", "1"), ("sort", "id")]).await;
    let filtered = first["next"].as_str().expect("more");
    let same = r#"{"tags": {"none": []}, "ids": ["a", "b"]}"#;
    for filter in [filter, same] {
        assert_eq!(ids(&page(&app, &[("filter", filter), ("cursor", filtered)]).await), ["b"]);
    }
    assert_eq!(
        ids(&page(&app, &[("filter", "{}"), ("cursor", next.as_str())]).await),
        ["a", "c"],
        "it has no condition"
    );
    let of_another = "`cursor` is of pages with another `filter`";
    for (query, sentence) in [
        (format!("cursor={filtered}"), of_another),
        (format!("cursor={filtered}&filter=%7B%7D"), of_another),
        (format!("cursor={filtered}&filter={}", percent_encoded(r#"{"ids": ["a"]}"#)), of_another),
        (format!("cursor={next}&filter={}", percent_encoded(filter)), of_another),
        (format!("cursor={next}&sort=id"), "`cursor` is of pages sorted by created_at"),
        ("cursor=nonsense".to_owned(), "`cursor` is not the `next` of an earlier page"),
        ("sort=size".to_owned(), "`sort` takes created_at, updated_at or id"),
        ("limit=0".to_owned(), "`limit` is 0; a page has 1 to 1000 grains"),
        ("limit=1001".to_owned(), "`limit` is 1001"),
        ("limit=many".to_owned(), "`limit` is a number from 1 to 1000"),
        ("filter=%7B".to_owned(), "`filter` is not a filter in JSON"),
        ("filter=%7B%22sauce%22%3A1%7D".to_owned(), "unknown field `sauce`"),
        ("include=all".to_owned(), "`include` takes `vector`"),
        ("include=vector&include=vector".to_owned(), "`include` stands twice in the query"),
        ("limit=1&limit=2".to_owned(), "`limit` stands twice in the query"),
    ] {
        let (status, code, detail) = app.get(&format!("/grains?{query}")).await.problem();
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{query}");
        assert!(detail.contains(sentence), "{query}: {detail}");
    }
    app.stop().await;
}

/// Six grains that differ in everything that is filtered by.
async fn six(app: &Caller, space: &str) {
    let grain = |id: &str, source: Value, tags: Value, attributes: Value| json!({"id": id, "source": source, "tags": tags, "attributes": attributes});
    let grains = vec![
        grain(
            "a",
            json!("x"),
            json!(["red", "round"]),
            json!({"year": 1999, "name": "Anna", "ok": true, "list": ["p", 1]}),
        ),
        grain(
            "b",
            json!("x"),
            json!(["red"]),
            json!({"year": 2020, "name": "Bert", "ok": false, "list": ["p", "q", "q"]}),
        ),
        grain(
            "c",
            json!("y"),
            json!(["green", "round"]),
            json!({"year": 2020.5, "name": "anna", "object": {"deep": 1}}),
        ),
        grain("d", json!(null), json!([]), json!({"year": "2020", "name": null, "list": []})),
        grain("e", json!("z"), json!(["blue", "red"]), json!({"year": -3, "list": [true, [1], {"k": 2}]})),
        json!({"id": "f"}),
    ];
    write(app, space, grains).await;
}

#[tokio::test]
async fn filters_pick_grains_by_what_they_are() {
    let (app, space) = start().await;
    six(&app, &space).await;
    for (filter, expected) in [
        (json!({}), "abcdef"),
        (
            json!({"source": null, "tags": null, "attributes": null, "created_at": null, "space": null, "ids": null}),
            "abcdef",
        ),
        (json!({"ids": ["a", "f", "nobody"]}), "af"),
        (json!({"ids": []}), ""),
        (json!({"source": "x"}), "ab"),
        (json!({"source": ["x", "z"]}), "abe"),
        (json!({"source": "X"}), ""),
        (json!({"tags": {"any": ["red", "green"]}}), "abce"),
        (json!({"tags": {"all": ["red", "round"]}}), "a"),
        (json!({"tags": {"none": ["red"]}}), "cdf"),
        (json!({"tags": {"any": ["round"], "none": ["green"]}}), "a"),
        (json!({"tags": {"all": [], "none": []}}), "abcdef"),
        (json!({"attributes": {"year": 2020}}), "b"),
        (json!({"attributes": {"year": 2020.5}}), "c"),
        (json!({"attributes": {"year": "2020"}}), "d"),
        (json!({"attributes": {"year": {"gte": 1999, "lt": 2020.5}}}), "ab"),
        (json!({"attributes": {"year": {"gt": 1999}}}), "bc"),
        (json!({"attributes": {"year": {"lte": -3}}}), "e"),
        (json!({"attributes": {"year": {"any": [-3, "2020", 7]}}}), "de"),
        (json!({"attributes": {"year": {"none": [2020, -3]}}}), "acdf"),
        (json!({"attributes": {"year": {"exists": true}}}), "abcde"),
        (json!({"attributes": {"name": "anna"}}), "c"),
        (json!({"attributes": {"name": {"gte": "B"}}}), "bc"),
        (json!({"attributes": {"name": {"lt": "B"}}}), "a"),
        (json!({"attributes": {"name": {"exists": true}}}), "abc"),
        (json!({"attributes": {"name": {"exists": false}}}), "def"),
        (json!({"attributes": {"ok": true}}), "a"),
        (json!({"attributes": {"ok": {"any": [true, false]}}}), "ab"),
        (json!({"attributes": {"ok": {"none": [true]}}}), "bcdef"),
        (json!({"attributes": {"list": "p"}}), "ab"),
        (json!({"attributes": {"list": 1}}), "a"),
        (json!({"attributes": {"list": true}}), "e"),
        (json!({"attributes": {"list": {"all": ["p", "q"]}}}), "b"),
        (json!({"attributes": {"list": {"none": ["q"]}}}), "acdef"),
        (json!({"attributes": {"list": {"exists": true}}}), "abde"),
        (json!({"attributes": {"object": {"exists": true}}}), "c"),
        (json!({"attributes": {"object": {"exists": false}}}), "abdef"),
        (json!({"attributes": {"nothing": {"exists": true}}}), ""),
        (json!({"attributes": {"year": {"gte": 2000}, "ok": false}}), "b"),
        (json!({"space": space}), "abcdef"),
        (json!({"space": "0123456789abcdef"}), ""),
        (json!({"space": "unknown"}), ""),
        (json!({"source": "x", "tags": {"any": ["round"]}, "attributes": {"ok": true}, "ids": ["a", "b"]}), "a"),
        (json!({"source": "' OR 1=1 --"}), ""),
        (json!({"attributes": {"year' OR 1=1 --": 1}}), ""),
    ] {
        let text = filter.to_string();
        let found = page(&app, &[("filter", &text), ("sort", "id")]).await;
        assert_eq!(ids(&found).concat(), expected, "{text}");
        let counted = app.post("/grains/count", json!({"filter": filter})).await.ok();
        assert_eq!(counted["count"], expected.len(), "{text}");
        // A search has another plan for the same conditions.
        let body = json!({"vector": vec![1.0; 32], "space": space, "filter": filter});
        let found = app.post("/grains/search", body).await.ok();
        let hits = found["hits"].as_array().expect("hits");
        let mut ids: Vec<&str> = hits.iter().filter_map(|hit| hit["grain"]["id"].as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids.concat(), expected, "{text}");
        let found = app.post("/grains/search", json!({"query": "t", "mode": "lexical", "filter": filter})).await.ok();
        assert_eq!(found["hits"].as_array().map(Vec::len), Some(expected.len()), "{text}");
    }
    app.stop().await;
}

#[tokio::test]
async fn whole_numbers_are_compared_to_their_last_digit() {
    // It and the next one are the same in floating point.
    const EVEN: i64 = 9_007_199_254_740_992;
    let (app, space) = start().await;
    let grain = |(id, n): (&str, Value)| json!({"id": id, "attributes": {"n": n}});
    let numbers = [json!(EVEN), json!(EVEN + 1), json!([EVEN + 2]), json!(u64::MAX), json!(1.0), json!(1)];
    write(&app, &space, ["a", "b", "c", "d", "e", "f"].into_iter().zip(numbers).map(grain).collect()).await;
    for (condition, expected) in [
        (json!(EVEN), "a"),
        (json!(EVEN + 1), "b"),
        (json!(u64::MAX), "d"),
        (json!(1), "ef"),
        (json!(1.0), "ef"),
        (json!({"any": [EVEN + 1, EVEN + 2]}), "bc"),
        (json!({"any": [1, 1.5]}), "ef"),
        (json!({"all": vec![EVEN + 1; 10]}), "b"),
        (json!({"none": [EVEN + 1]}), "acdef"),
        (json!({"none": [EVEN + 1, 1.0]}), "acd"),
        (json!({"gt": EVEN}), "bcd"),
        (json!({"gte": EVEN + 1}), "bcd"),
        (json!({"lt": EVEN + 1}), "aef"),
        (json!({"lte": EVEN}), "aef"),
        (json!({"lte": i64::MAX}), "abcef"),
    ] {
        let filter = json!({"attributes": {"n": condition}});
        let found = page(&app, &[("filter", &filter.to_string()), ("sort", "id")]).await;
        assert_eq!(ids(&found).concat(), expected, "{filter}");
        let body = json!({"vector": vec![1.0; 32], "space": space, "filter": filter});
        let found = app.post("/grains/search", body).await.ok();
        assert_eq!(found["hits"].as_array().map(Vec::len), Some(expected.len()), "{filter}");
    }
    let deleted = app.post("/grains/delete", json!({"filter": {"attributes": {"n": EVEN + 1}}})).await.ok();
    assert_eq!(deleted["deleted"], 1);
    assert_eq!(ids(&page(&app, &[("sort", "id")]).await).concat(), "acdef");
    app.stop().await;
}

#[tokio::test]
async fn numbers_of_any_size_are_equal_to_themselves() {
    let (app, space) = start().await;
    let numbers = [
        ("a", "bcd", -4.640_314_894_646_57e-246),
        ("b", "acd", 2.279_012_170_860_524_3e274),
        ("c", "abd", -1.5),
        ("d", "abc", 7.654_927_133_881_691e-231),
    ];
    let grain = |(id, _, n): (&str, &str, f64)| json!({"id": id, "attributes": {"n": n}});
    write(&app, &space, numbers.into_iter().map(grain).collect()).await;
    for (id, others, n) in numbers {
        for (condition, expected) in [
            (json!(n), id),
            (json!({"any": [n]}), id),
            (json!({"any": [n, 0.5]}), id),
            (json!({"all": vec![n; 10]}), id),
            (json!({"none": [n]}), others),
            (json!({"none": [n, 0.5]}), others),
            (json!({"gte": n, "lte": n}), id),
            (json!({"gt": n, "lte": n}), ""),
        ] {
            let filter = json!({"attributes": {"n": condition}});
            let found = page(&app, &[("filter", &filter.to_string()), ("sort", "id")]).await;
            assert_eq!(ids(&found).concat(), expected, "{filter}");
            let counted = app.post("/grains/count", json!({"filter": filter})).await.ok();
            assert_eq!(counted["count"], expected.len(), "{filter}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn filters_pick_grains_by_their_times_and_spaces() {
    let (app, space) = start().await;
    write(&app, &space, vec![json!({"id": "a"}), json!({"id": "b"})]).await;
    app.post("/grains", json!({"id": "c", "text": "elsewhere", "model": "tiny-cls"})).await.ok();
    app.patch("/grains/a", json!({"tags": ["x"]})).await.ok();
    let time = |grain: &Value, key: &str| grain[key].as_str().expect("a time").to_owned();
    let (a, c) = (app.get("/grains/a").await.ok(), app.get("/grains/c").await.ok());
    let elsewhere = c["meta"]["space"].as_str().expect("a space");
    assert_ne!(elsewhere, space);
    for (filter, expected) in [
        (json!({"created_at": {"gte": time(&c, "created_at")}}), "c"),
        (json!({"created_at": {"gt": time(&c, "created_at")}}), ""),
        (json!({"created_at": {"lt": time(&c, "created_at")}}), "ab"),
        (json!({"created_at": {"lte": time(&a, "created_at")}}), "ab"),
        (json!({"updated_at": {"gte": time(&a, "updated_at")}}), "a"),
        (json!({"updated_at": {"gt": time(&a, "created_at"), "lt": time(&a, "updated_at")}}), "c"),
        (json!({"created_at": {"gte": "1999-12-31T23:59:59+01:00"}}), "abc"),
        (json!({"created_at": {"gte": "2999-12-31T23:59:59Z"}}), ""),
        (json!({"space": space}), "ab"),
        (json!({"space": elsewhere}), "c"),
    ] {
        let text = filter.to_string();
        let found = page(&app, &[("filter", &text), ("sort", "id")]).await;
        assert_eq!(ids(&found).concat(), expected, "{text}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_bound_finer_than_a_microsecond_parts_the_two_beside_it() {
    let (app, _) = start().await;
    let line = |id: &str, us: u32| json!({"id": id, "text": id, "created_at": format!("2024-01-01T00:00:00.{us:06}Z")});
    let lines = format!("{}\n{}", line("a", 123_456), line("b", 123_457));
    let import = app.request(Method::POST, "/grains/import").header("content-type", "application/x-ndjson");
    let answer = send(import.body(lines)).await;
    assert!(answer.text.contains("\"failed\":0"), "{}", answer.text);
    // After, from, before and up to the bound.
    for (bound, expected) in [
        ("2024-01-01T00:00:00.123456Z", ["b", "ab", "", "a"]),
        ("2024-01-01T00:00:00.1234560Z", ["b", "ab", "", "a"]),
        ("2024-01-01T00:00:00.1234565Z", ["b", "b", "a", "a"]),
        ("2024-01-01T01:00:00.1234560001+01:00", ["b", "b", "a", "a"]),
        ("2024-01-01T00:00:00.123457Z", ["", "b", "a", "ab"]),
    ] {
        for (word, expected) in ["gt", "gte", "lt", "lte"].into_iter().zip(expected) {
            let filter = json!({"created_at": {word: bound}}).to_string();
            let found = page(&app, &[("filter", &filter), ("sort", "id")]).await;
            assert_eq!(ids(&found).concat(), expected, "{filter}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn what_is_no_filter_is_refused_on_every_route() {
    let (app, _) = start().await;
    let many = vec!["x"; 1001];
    for (filter, sentence) in [
        (json!({"sources": "x"}), "unknown field `sources`"),
        (json!({"tags": {"any": []}}), "`any` is empty"),
        (json!({"tags": {"some": ["x"]}}), "unknown field `some`"),
        (json!({"attributes": {"a": {"above": 1}}}), "unknown field `above`"),
        (json!({"attributes": {"a": null}}), "expected a string, a number or a boolean"),
        (json!({"attributes": {"a": {"gte": [1]}}}), "expected a string, a number or a boolean"),
        (json!({"created_at": {"gte": "yesterday"}}), "`yesterday` is not a time such as"),
        (json!({"space": "here"}), "`filter.space`"),
        (json!({"ids": many}), "`filter.ids` has 1001 values; it takes 1000"),
        (json!({"source": 7}), "expected a string or a list of strings"),
    ] {
        let bodies = [
            ("/grains/count", json!({"filter": filter})),
            ("/grains/delete", json!({"filter": filter})),
            ("/grains/search", json!({"query": "q", "filter": filter})),
        ];
        for (path, body) in bodies {
            let (status, code, detail) = app.post(path, body).await.problem();
            assert_eq!((status, code.as_str()), (422, "invalid_request"), "{path}: {filter}");
            assert!(detail.contains(sentence), "{path}: {detail}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn counts_say_how_grains_are_distributed() {
    let (app, space) = start().await;
    let counted = app.post("/grains/count", json!({"facets": ["source", "tags", "space"]})).await.ok();
    assert_eq!(counted, json!({"count": 0, "facets": {"source": [], "tags": [], "space": []}}));
    six(&app, &space).await;
    app.post("/grains", json!({"id": "c2", "text": "elsewhere", "model": "tiny-cls", "source": "y"})).await.ok();
    let elsewhere = app.get("/grains/c2").await.ok()["meta"]["space"].clone();
    let counted = app.post("/grains/count", json!({"facets": ["source", "tags", "space", "tags"]})).await.ok();
    assert_eq!(
        counted,
        json!({"count": 7, "facets": {
            "source": [{"value": null, "count": 2}, {"value": "x", "count": 2}, {"value": "y", "count": 2}, {"value": "z", "count": 1}],
            "tags": [{"value": "red", "count": 3}, {"value": "round", "count": 2}, {"value": "blue", "count": 1}, {"value": "green", "count": 1}],
            "space": [{"value": space, "count": 6}, {"value": elsewhere, "count": 1}],
        }})
    );
    let counted =
        app.post("/grains/count", json!({"filter": {"tags": {"any": ["red"]}}, "facets": ["source"]})).await.ok();
    assert_eq!(
        counted,
        json!({"count": 3, "facets": {"source": [{"value": "x", "count": 2}, {"value": "z", "count": 1}]}})
    );
    let (status, code, _) = app.post("/grains/count", json!({"facets": ["year"]})).await.problem();
    assert_eq!((status, code.as_str()), (422, "invalid_request"));
    app.stop().await;
}

#[tokio::test]
async fn grains_are_deleted_by_filter_when_as_many_meet_it_as_expected() {
    let (app, space) = start().await;
    six(&app, &space).await;
    let count = async || app.post("/grains/count", json!({})).await.ok()["count"].as_u64().expect("a count");
    let red = json!({"tags": {"any": ["red"]}});
    for expected in [2, 4, 0] {
        let answer = app.post("/grains/delete", json!({"filter": red, "expected_count": expected})).await;
        let (status, code, detail) = answer.problem();
        assert_eq!((status, code.as_str()), (409, "conflict"));
        assert!(detail.contains(&format!("3 grains meet the filter, not the {expected}")), "{detail}");
        assert_eq!(count().await, 6, "nothing was deleted");
    }
    for everything in [
        json!({}),
        json!({"attributes": {"year": {}}}),
        json!({"attributes": {"year": {"gte": null}}}),
        json!({"attributes": {"year": {"none": []}, "month": {"all": []}}}),
        json!({"tags": {"none": []}, "created_at": {"lt": null}}),
    ] {
        let (status, _, detail) = app.post("/grains/delete", json!({"filter": everything})).await.problem();
        assert!(status == 422 && detail.contains("send `expected_count`"), "{everything}: {detail}");
    }
    assert_eq!(app.post("/grains/delete", json!({})).await.problem().0, 422, "a filter must be there");
    assert_eq!(count().await, 6);

    let deleted = app.post("/grains/delete", json!({"filter": red, "expected_count": 3})).await.ok();
    assert_eq!((deleted, count().await), (json!({"deleted": 3}), 3));
    assert_eq!(app.post("/grains/delete", json!({"filter": red})).await.ok(), json!({"deleted": 0}));
    let body = json!({"vector": vec![1.0; 32], "space": space});
    let left = app.post("/grains/search", body.clone()).await.ok();
    assert_eq!(left["hits"].as_array().map(Vec::len), Some(3), "what is deleted is not found");
    assert_eq!(
        app.post("/grains/delete", json!({"filter": {}, "expected_count": 3})).await.ok(),
        json!({"deleted": 3})
    );
    assert_eq!(app.post("/grains/search", body).await.ok()["hits"], json!([]));
    assert_eq!(page(&app, &[]).await, json!({"grains": [], "next": null}));
    app.stop().await;
}

#[tokio::test]
async fn vectors_come_with_a_page_when_they_are_asked_for() {
    let (app, space) = start().await;
    six(&app, &space).await;
    let with = page(&app, &[("include", "vector"), ("limit", "2")]).await;
    for grain in with["grains"].as_array().expect("grains") {
        assert_eq!(grain["vector"].as_array().map(Vec::len), Some(32));
        assert_eq!((&grain["meta"]["space"], &grain["meta"]["embedding_model"]), (&json!(space), &json!(null)));
    }
    assert_eq!(page(&app, &[("limit", "1")]).await["grains"][0].get("vector"), None);
    assert_eq!(app.get(&format!("/models/{TINY}")).await.ok()["space"], space);
    app.stop().await;
}

#[tokio::test]
async fn a_page_of_long_texts_ends_early_and_says_where_to_go_on() {
    let (app, space) = start().await;
    let text = "x".repeat(1_000_000);
    for n in 0..20 {
        write(&app, &space, vec![json!({"id": format!("g{n:02}"), "text": text})]).await;
    }
    let first = page(&app, &[("limit", "1000"), ("sort", "id")]).await;
    assert_eq!(ids(&first).len(), 17, "16 MiB, and the grain with which they are full");
    let next = first["next"].as_str().expect("another page");
    let second = page(&app, &[("limit", "1000"), ("sort", "id"), ("cursor", next)]).await;
    assert_eq!(ids(&second), ["g17", "g18", "g19"]);
    assert!(second["next"].is_null());
    // What looks many up by their ids finds all of them.
    let lines: Vec<String> = (0..20).map(|n| json!({"id": format!("g{n:02}"), "text": text}).to_string()).collect();
    let import = app.request(reqwest::Method::POST, "/grains/import?on_conflict=skip");
    let import = import.header("content-type", "application/x-ndjson").body(lines.join("\n"));
    let answer = send(import).await.text;
    assert!(answer.contains("\"skipped\":20"), "{answer}");
    app.stop().await;
}
