//! Models that are downloaded from a hub: what is fetched, what survives a bad network, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use granary::domain::HubSource;
use granary::domain::hub::has_extension;
use granary::models::hub::{Hub, HubError, HubModel, HubSettings, Patience, Progress};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::helpers::{Failing, REPOSITORY, SmallDisk, StandInHub, StandInProxy, TINY, etag, sha256, test_model};

const WEIGHTS: &str = "onnx/model.onnx_data";

/// What `tiny` needs, and the weights that its stand-in graph keeps beside it.
const NEEDED: [&str; 7] = [
    "1_Pooling/config.json",
    "config.json",
    "modules.json",
    "onnx/model.onnx",
    WEIGHTS,
    "sentence_bert_config.json",
    "tokenizer.json",
];

/// A cache and a lock file of its own.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: TempDir::new().expect("a folder") }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn repository(&self) -> PathBuf {
        self.path("cache/models--granary--tiny")
    }

    fn blob(&self, path: &str, ending: &str) -> PathBuf {
        self.repository().join("blobs").join(etag(path, &files()[path]) + ending)
    }

    fn hub(&self, endpoint: &str, variables: &[(&str, &str)]) -> Hub {
        self.hub_in(&self.path("cache"), endpoint, variables)
    }

    fn hub_in(&self, cache: &Path, endpoint: &str, variables: &[(&str, &str)]) -> Hub {
        let cache = cache.to_str().expect("UTF-8");
        let all = [&[("HF_ENDPOINT", endpoint), ("HF_HUB_CACHE", cache)], variables].concat();
        let find = |name: &str| all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let patience = Patience {
            idle: Duration::from_secs(2),
            first_pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(20),
            ..Patience::default()
        };
        let settings = HubSettings::from_variables(&find).expect("settings");
        Hub::new(settings, self.path("models.lock")).with_patience(patience)
    }
}

/// A graph of one tensor whose content is in `model.onnx_data`: enough to be scanned, and too little to be run.
fn graph(location: &str) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).expect("short");
        assert!(length < 128, "one byte holds the length");
        [&[number << 3 | 2, length], content].concat()
    };
    let entry = [field(1, b"location"), field(2, location.as_bytes())].concat();
    let tensor = [field(8, b"weight"), field(13, &entry)].concat();
    [vec![8, 10], field(7, &field(5, &tensor))].concat()
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let folder = test_model(TINY);
    let described = NEEDED.into_iter().filter(|path| has_extension(path, "json"));
    let mut files: BTreeMap<_, _> =
        described.map(|path| (path.to_owned(), fs_err::read(folder.join(path)).expect("a file"))).collect();
    files.insert("onnx/model.onnx".to_owned(), graph("model.onnx_data"));
    files.insert(WEIGHTS.to_owned(), (0..600_000_u32).map(|at| (at.wrapping_mul(at) >> 7).to_le_bytes()[0]).collect());
    for decoy in ["pytorch_model.bin", "model.safetensors", "onnx/model_quantized.onnx", "README.md", "vocab.txt"] {
        files.insert(decoy.to_owned(), vec![7; 5000]);
    }
    files
}

fn source() -> HubSource {
    serde_json::from_value(serde_json::json!({ "repository": REPOSITORY })).expect("a source")
}

async fn obtain(hub: &Hub) -> Result<HubModel, HubError> {
    hub.obtain(&source(), &|_| (), &CancellationToken::new()).await
}

async fn refusal(hub: &Hub) -> HubError {
    obtain(hub).await.expect_err("refused")
}

#[tokio::test]
async fn hub_models_are_downloaded_whole_and_nothing_else_is() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    let client = place.hub(&hub.url, &[]);
    assert_eq!(client.local(&source()).expect("read"), None);
    let reports: Mutex<Vec<Progress>> = Mutex::default();
    let (report, cancel) = (|report| reports.lock().push(report), CancellationToken::new());
    let model = client.obtain(&source(), &report, &cancel).await.expect("downloaded");
    assert_eq!(hub.fetched(), NEEDED);
    let files = files();
    let expected: BTreeMap<_, _> = NEEDED.iter().map(|path| ((*path).to_owned(), sha256(&files[*path]))).collect();
    assert_eq!(model.files, expected);
    for path in NEEDED {
        assert_eq!(fs_err::read(model.folder.join(path)).expect("a file"), files[path], "{path}");
    }
    assert_eq!((model.commit.as_str(), &model.onnx), (&*"a".repeat(40), &model.folder.join("onnx/model.onnx")));
    // The layout of other tools, but for weights, which the runtime takes only from inside the folder.
    assert_eq!(model.folder, place.repository().join("snapshots").join("a".repeat(40)));
    assert_eq!(fs_err::read_to_string(place.repository().join("refs/main")).expect("a ref"), "a".repeat(40));
    let link = fs_err::read_link(model.folder.join("1_Pooling/config.json")).expect("a link");
    assert!(link.starts_with("../../../blobs/"), "{}", link.display());
    assert!(!model.folder.join(WEIGHTS).is_symlink());
    let reports = reports.into_inner();
    let last = reports.last().expect("reports");
    let n_bytes: usize = NEEDED.iter().map(|path| files[*path].len()).sum();
    assert_eq!((last.done_bytes, last.total_bytes), (n_bytes as u64, n_bytes as u64));
    assert!(reports.is_sorted_by_key(|report| report.done_bytes));

    let n_requests = hub.seen().len();
    assert_eq!(obtain(&client).await.expect("here"), model);
    assert_eq!(client.local(&source()).expect("read"), Some(model));
    assert_eq!(hub.seen().len(), n_requests, "the network is not asked again");
}

#[tokio::test]
async fn hub_downloads_go_on_where_the_connection_broke() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { cut_after: Some((200_000, 3)), ..Failing::default() });
    obtain(&place.hub(&hub.url, &[])).await.expect("downloaded");
    let ranges: Vec<_> = hub.seen().into_iter().filter(|seen| seen.host.starts_with("localhost")).collect();
    let ranges: Vec<_> = ranges.iter().filter_map(|seen| seen.range.as_deref()).collect();
    assert_eq!(ranges, ["bytes=200000-", "bytes=400000-"]);
    let files = files();
    assert_eq!(hub.sent_bytes(), files[WEIGHTS].len() + files["onnx/model.onnx"].len(), "no byte comes twice");
}

#[tokio::test]
async fn hub_downloads_of_an_earlier_process_go_on() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { slow: Some(Duration::from_millis(20)), ..Failing::default() });
    let cancel = CancellationToken::new();
    let stop = |report: Progress| {
        if report.file == WEIGHTS && report.done_bytes > 250_000 {
            cancel.cancel();
        }
    };
    let ended = place.hub(&hub.url, &[]).obtain(&source(), &stop, &cancel).await.expect_err("cancelled");
    assert!(matches!(ended, HubError::Cancelled), "{ended}");
    let begun = fs_err::metadata(place.blob(WEIGHTS, ".incomplete")).expect("kept").len();
    assert!(begun > 200_000, "{begun}");
    hub.fail(Failing::default());
    obtain(&place.hub(&hub.url, &[])).await.expect("downloaded");
    let continued = hub.seen().into_iter().filter_map(|seen| seen.range).next_back();
    assert_eq!(continued, Some(format!("bytes={begun}-")));
    assert!(!place.blob(WEIGHTS, ".incomplete").exists());
}

#[tokio::test]
async fn hub_servers_that_cannot_continue_send_the_file_anew() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { cut_after: Some((300_000, 2)), ignores_range: true, ..Failing::default() });
    let model = obtain(&place.hub(&hub.url, &[])).await.expect("downloaded");
    model.check(WEIGHTS, &sha256(&fs_err::read(model.folder.join(WEIGHTS)).expect("a file"))).expect("whole");
}

#[tokio::test]
async fn hub_downloads_that_never_get_on_are_given_up() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { cut_after: Some((1000, usize::MAX)), ..Failing::default() });
    let error = refusal(&place.hub(&hub.url, &[])).await;
    assert!(error.to_string().contains("broke 5 times") && !error.is_permanent(), "{error}");
    hub.fail(Failing { slow: Some(Duration::from_mins(1)), ..Failing::default() });
    let mut client = place.hub(&hub.url, &[]);
    client = client.with_patience(Patience { idle: Duration::from_millis(500), tries: 2, ..Patience::default() });
    let error = refusal(&client).await;
    let HubError::Broken { n_tries: 2, source: Some(source), .. } = &error else { panic!("{error}") };
    assert!(source.is_timeout(), "it stood still, and did not break: {source:?}");
}

#[tokio::test]
async fn hub_files_with_wrong_contents_are_refused_and_removed() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { wrong_bytes: Some(WEIGHTS.to_owned()), ..Failing::default() });
    let error = refusal(&place.hub(&hub.url, &[])).await;
    let HubError::WrongHash { file, expected, found } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), expected), (WEIGHTS, &sha256(&files()[WEIGHTS])));
    assert_ne!(expected, found);
    assert!(!place.blob(WEIGHTS, "").exists() && !place.blob(WEIGHTS, ".incomplete").exists());
    assert!(!place.path("models.lock").exists());
    hub.fail(Failing::default());
    obtain(&place.hub(&hub.url, &[])).await.expect("right the next time");
}

#[tokio::test]
async fn hub_refusals_say_what_to_do() {
    let place = Place::new();
    let hub = StandInHub::start(files()).await;
    let cases = [
        ((401, ""), "set HF_TOKEN"),
        ((403, "GatedRepo"), "HF_TOKEN"),
        ((401, "RepoNotFound"), "has no repository `granary/tiny`"),
        ((404, "RepoNotFound"), "has no repository `granary/tiny`"),
        ((404, "RevisionNotFound"), "has no revision `main`"),
        ((404, ""), "has no repository"),
    ];
    for (refuses, sentence) in cases {
        hub.fail(Failing { refuses: Some(refuses), ..Failing::default() });
        let error = refusal(&place.hub(&hub.url, &[("HF_TOKEN", "hf_secret")])).await;
        assert!(error.to_string().contains(sentence) && error.is_permanent(), "{refuses:?}: {error}");
        assert!(!format!("{error:?}").contains("hf_secret"));
    }
    hub.fail(Failing { misses: Some("tokenizer.json".to_owned()), ..Failing::default() });
    let error = refusal(&place.hub(&hub.url, &[])).await;
    assert!(error.to_string().contains("has no file `tokenizer.json`"), "{error}");
    hub.fail(Failing::default());
    let other = HubSource { file: "onnx/model_fp16.onnx".parse().expect("a file"), ..source() };
    let error = place.hub(&hub.url, &[]).obtain(&other, &|_| (), &CancellationToken::new()).await;
    let error = error.expect_err("no such file").to_string();
    assert!(error.contains("its ONNX files are onnx/model.onnx, onnx/model_quantized.onnx"), "{error}");
}

#[tokio::test]
async fn hub_servers_that_are_busy_or_away_are_asked_again_and_then_named() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { unavailable: 20, ..Failing::default() });
    let error = refusal(&place.hub(&hub.url, &[])).await;
    assert!(error.to_string().contains("status 503, 5 times in a row") && !error.is_permanent(), "{error}");
    hub.fail(Failing { unavailable: 3, ..Failing::default() });
    obtain(&place.hub(&hub.url, &[])).await.expect("the fourth try");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let error = refusal(&Place::new().hub(&format!("http://{nobody}"), &[])).await;
    assert!(error.to_string().contains(&format!("no connection to http://{nobody}")), "{error}");
}

#[tokio::test]
async fn hub_tokens_stay_with_the_hub() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    let client = place.hub(&hub.url, &[("HF_TOKEN", "hf_secret")]);
    assert!(!format!("{client:?}").contains("hf_secret"));
    obtain(&client).await.expect("downloaded");
    let seen = hub.seen();
    let (own, elsewhere): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.host.starts_with("127.0.0.1"));
    assert!(own.iter().all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret")));
    assert!(elsewhere.len() >= 2 && elsewhere.iter().all(|seen| seen.authorization.is_none()), "{elsewhere:?}");
}

#[tokio::test]
async fn hub_downloads_go_through_the_proxy_that_the_variables_name() {
    let hub = StandInHub::start(files()).await;
    let proxy = StandInProxy::start(&hub.url).await;
    // Nobody but the proxy knows this host.
    for variable in ["http_proxy", "ALL_PROXY", "all_proxy"] {
        let place = Place::new();
        obtain(&place.hub("http://hub.invalid", &[(variable, proxy.url.as_str())])).await.expect(variable);
        let asked = proxy.take_asked();
        let first = asked.first().expect("it was asked");
        assert!(first.starts_with("GET http://hub.invalid/api/models/granary/tiny/"), "{variable}: {asked:?}");
    }
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let place = Place::new();
        refusal(&place.hub("https://hub.invalid", &[(variable, proxy.url.as_str())])).await;
        let asked = proxy.take_asked();
        let is_tunnel = |line: &String| line.starts_with("CONNECT hub.invalid:443 ");
        assert!(!asked.is_empty() && asked.iter().all(is_tunnel), "{variable}: {asked:?}");
    }
}

#[tokio::test]
async fn hub_hosts_that_are_excepted_are_asked_without_a_proxy() {
    let hub = StandInHub::start(files()).await;
    let proxy = StandInProxy::start(&hub.url).await;
    let named = ("http_proxy", proxy.url.as_str());
    for variables in [
        [named, ("NO_PROXY", "127.0.0.1,localhost")],
        [named, ("no_proxy", "localhost, 127.0.0.0/8")],
        // Under CGI it can be a request's header: no tool reads it.
        [("HTTP_PROXY", proxy.url.as_str()), ("NO_PROXY", "")],
    ] {
        let place = Place::new();
        obtain(&place.hub(&hub.url, &variables)).await.expect("downloaded");
        assert_eq!(proxy.take_asked(), Vec::<String>::new(), "{variables:?}");
    }
    // The weights come from `localhost`.
    let place = Place::new();
    obtain(&place.hub(&hub.url, &[named, ("NO_PROXY", "127.0.0.1")])).await.expect("downloaded");
    let asked = proxy.take_asked();
    assert!(!asked.is_empty() && asked.iter().all(|line| line.contains(" http://localhost:")), "{asked:?}");
}

#[tokio::test]
async fn hub_redirects_to_other_schemes_are_refused() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { redirects_to: Some("file:///etc/passwd".to_owned()), ..Failing::default() });
    let error = refusal(&place.hub(&hub.url, &[])).await;
    let HubError::Redirect { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("`file` address") && error.is_permanent(), "{source}");
}

#[tokio::test]
async fn hub_models_stay_at_their_commit_until_the_entry_is_removed() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    let client = place.hub(&hub.url, &[]);
    let first = obtain(&client).await.expect("downloaded");
    hub.move_to(&"b".repeat(40));
    assert_eq!(obtain(&client).await.expect("pinned"), first);
    fs_err::remove_dir_all(place.path("cache")).expect("removed");
    assert_eq!(client.local(&source()).expect("read"), None);
    assert_eq!(obtain(&client).await.expect("the same again"), first);
    fs_err::remove_file(place.path("models.lock")).expect("removed");
    assert_eq!(obtain(&client).await.expect("moved on").commit, "b".repeat(40));
    fs_err::write(place.path("models.lock"), "[[model").expect("written");
    let error = refusal(&client).await;
    assert!(matches!(error, HubError::LockFile { .. }) && error.to_string().contains("models.lock"), "{error}");
}

#[tokio::test]
async fn hub_files_that_changed_are_told_from_those_that_did_not() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    let model = obtain(&place.hub(&hub.url, &[])).await.expect("downloaded");
    model.check("tokenizer.json", &model.files["tokenizer.json"]).expect("as it was");
    let error = model.check("tokenizer.json", &sha256(b"other")).expect_err("changed");
    let sentence = error.to_string();
    for part in ["`tokenizer.json` has changed", &sha256(b"other"), &model.files["tokenizer.json"], "models.lock"] {
        assert!(sentence.contains(part), "{sentence}");
    }
    assert!(error.is_permanent() && model.check("onnx/other.bin", "ab").is_err());
}

#[tokio::test]
async fn hub_caches_of_other_tools_serve_without_a_network() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    let offline = place.hub("http://127.0.0.1:1", &[("HF_HUB_OFFLINE", "1")]);
    let error = refusal(&offline).await;
    assert!(error.to_string().contains("HF_HUB_OFFLINE") && error.is_permanent(), "{error}");
    obtain(&place.hub(&hub.url, &[])).await.expect("downloaded");
    // What other tools leave: no lock file, and links to weights.
    fs_err::remove_file(place.path("models.lock")).expect("removed");
    let weights = place.repository().join("snapshots").join("a".repeat(40)).join(WEIGHTS);
    fs_err::remove_file(&weights).expect("removed");
    assert_eq!(offline.local(&source()).expect("read"), None, "a file is missing");
    let blob = format!("../../../blobs/{}", etag(WEIGHTS, &files()[WEIGHTS]));
    std::os::unix::fs::symlink(blob, &weights).expect("linked");
    assert_eq!(place.hub(&hub.url, &[]).local(&source()).expect("read"), None, "only the hub knows what is missing");
    let model = offline.local(&source()).expect("read").expect("all there");
    assert_eq!(model.files.keys().collect::<Vec<_>>(), NEEDED);
    assert!(!weights.is_symlink(), "the runtime takes weights from inside the folder only");
    assert_eq!(obtain(&offline).await.expect("all there"), model);
    assert!(fs_err::read_to_string(place.path("models.lock")).expect("pinned").contains(&model.commit));
}

#[tokio::test]
async fn hub_graphs_that_name_weights_elsewhere_are_refused() {
    let (mut files, place) = (files(), Place::new());
    files.insert("onnx/model.onnx".to_owned(), graph("../../../../etc/passwd"));
    let hub = StandInHub::start(files).await;
    let error = refusal(&place.hub(&hub.url, &[])).await;
    assert!(error.to_string().contains("outside its folder") && error.is_permanent(), "{error}");
}

#[tokio::test]
async fn hub_downloads_at_the_same_time_share_one_file() {
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    hub.fail(Failing { slow: Some(Duration::from_millis(1)), ..Failing::default() });
    let (one, two) = (place.hub(&hub.url, &[]), place.hub(&hub.url, &[]));
    let (one, two) = tokio::join!(obtain(&one), obtain(&two));
    assert_eq!(one.expect("downloaded"), two.expect("waited"));
    let files = files();
    assert_eq!(hub.sent_bytes(), files[WEIGHTS].len() + files["onnx/model.onnx"].len(), "no byte comes twice");
}

#[tokio::test]
async fn hub_downloads_to_a_full_disk_say_so() {
    let Some(disk) = SmallDisk::mount("400k") else { return };
    let (hub, place) = (StandInHub::start(files()).await, Place::new());
    let client = place.hub_in(disk.path(), &hub.url, &[]);
    let error = refusal(&client).await;
    assert!(matches!(error, HubError::DiskFull { needed_bytes: 600_000.., .. }) && !error.is_permanent(), "{error}");
    assert!(!hub.fetched().contains(&WEIGHTS.to_owned()), "nothing is begun that cannot end");
    // Room that somebody else takes while the file comes.
    hub.fail(Failing { slow: Some(Duration::from_millis(10)), ..Failing::default() });
    disk.resize("800k");
    let grab = |report: Progress| {
        if report.file == WEIGHTS {
            let _ = fs_err::write(disk.path().join("other"), vec![0; 500_000]);
        }
    };
    let error = client.obtain(&source(), &grab, &CancellationToken::new()).await.expect_err("full");
    let HubError::DiskFull { path, needed_bytes } = &error else { panic!("{error:?}") };
    assert!(path.to_string_lossy().ends_with(".incomplete") && *needed_bytes > 0, "{error}");
    fs_err::remove_file(disk.path().join("other")).expect("removed");
    obtain(&client).await.expect("there is room again");
}
