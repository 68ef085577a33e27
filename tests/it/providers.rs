//! What executes a model: asked for in the configuration, for all models or for one, and replaced where it is missing.

use granary::domain::Provider;
use granary::engine::padded::PaddedBatch;
use granary::engine::session::{EncoderSession, WantedOutput};
use granary::engine::{EngineError, GraphApart, GraphFiles, Runtime, SessionOptions, run_memory};
use serde_json::{Value, json};

use crate::helpers::{TestApp, data_dir, entry_of, test_model, vectors_of, with_tiny};

async fn provider_of(app: &TestApp, model: &str) -> Value {
    app.post(&format!("/models/{model}/load"), json!({})).await.ok()["provider"].clone()
}

#[tokio::test]
async fn a_model_may_have_another_provider_than_the_rest() {
    let entry = entry_of("tiny-cls");
    let toml = with_tiny(&[]).replacen("[ai]\n", "[engine]\nprovider = \"cpu\"\n[ai]\n", 1);
    let app = TestApp::start_with(&format!("{toml}{entry}provider = \"openvino\"\n")).await;
    let tiny = provider_of(&app, "tiny").await;
    assert_eq!((&tiny["name"], &tiny["precision"], &tiny["wanted"]), (&json!("cpu"), &json!("float32"), &json!(null)));
    assert_eq!(tiny["reason"], "`engine.provider` says so");
    let other = provider_of(&app, "tiny-cls").await;
    let reason = other["reason"].as_str().expect("a reason");
    // The runtime library of set-up has OpenVINO on x86-64 only.
    if cfg!(target_arch = "x86_64") {
        assert_eq!((&other["name"], &other["wanted"]), (&json!("openvino"), &json!(null)));
        assert_eq!(reason, "the model's `provider` says so");
    } else {
        assert_eq!((&other["name"], &other["wanted"]), (&json!("cpu"), &json!("openvino")));
        assert!(reason.contains("the runtime library has no OpenVINO"), "{reason}");
    }
    app.stop().await;
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn what_runs_bulk_gives_way_to_lone_queries() {
    use rustix::process::{Pid, getpriority_process};

    let toml = with_tiny(&[]).replacen("[ai]\n", "[engine]\nquery_lane = \"on\"\nworkers = 2\n[ai]\n", 1);
    let app = TestApp::start_with(&toml).await;
    app.post("/embed", json!({"inputs": "hello"})).await.ok();
    let mut niceness = std::collections::BTreeMap::new();
    for task in fs_err::read_dir("/proc/self/task").expect("this process") {
        let task = task.expect("a thread");
        let id = task.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        // Others end meanwhile.
        if let (Ok(name), Ok(nice)) = (fs_err::read_to_string(task.path().join("comm")), getpriority_process(id)) {
            niceness.insert(name.trim().to_owned(), nice);
        }
    }
    let of_process = getpriority_process(None).expect("this process");
    let more = |name| niceness.get(name).map(|nice| nice - of_process);
    assert_eq!(["infer-0", "infer-1", "infer-2"].map(more), [Some(3), Some(3), Some(0)]);
    // What OpenVINO runs bulk on has its name from the thread that opened the session.
    assert!(more("infer-bulk").is_none_or(|more| more == 3), "{niceness:?}");
    app.stop().await;
}

#[tokio::test]
async fn a_provider_that_the_library_lacks_is_replaced_and_what_is_lost_is_said() {
    let entry = format!("{}provider = \"cuda\"\n", entry_of("tiny"));
    let app = TestApp::start_with(&format!("[ai]\nmodel_name = \"tiny\"\n{entry}")).await;
    let answer = app.post("/models/tiny/embed", json!({"inputs": "hello"})).await;
    assert_eq!((vectors_of(&answer.ok())[0].len(), answer.header("x-compute-type")), (32, "cpu"));
    let provider = provider_of(&app, "tiny").await;
    let reason = provider["reason"].as_str().expect("a reason");
    assert_eq!(provider["wanted"], "cuda");
    assert!(["cpu", "openvino"].contains(&provider["name"].as_str().expect("a name")), "{provider}");
    assert!(
        reason.starts_with("not `cuda`: the model's `provider` asks for it, but the runtime library has no CUDA;")
            && reason.ends_with("much slower in bulk than a GPU"),
        "{reason}"
    );
    app.stop().await;
}

#[test]
fn a_second_runtime_library_is_refused_with_the_way_out() {
    Runtime::load(&data_dir().join("runtime/libonnxruntime.so")).expect("set-up installed it");
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("libonnxruntime.so");
    fs_err::write(&other, "").expect("written");
    let refused = Runtime::load(&other).err().expect("refused").to_string();
    assert!(refused.contains("which is in use: restart to change it"), "{refused}");
}

const ON_ONE_THREAD: SessionOptions = SessionOptions {
    provider: Provider::Cpu,
    threads: 1,
    streams: 1,
    stays_awake: false,
    bf16: false,
    is_tried_once: false,
};

#[test]
fn weights_that_cannot_be_mapped_are_read() {
    let runtime = Runtime::load(&data_dir().join("runtime/libonnxruntime.so")).expect("set-up installed it");
    let onnx = test_model("tiny").join("onnx/model.onnx");
    let apart = GraphApart { graph: b"no graph".to_vec(), unfit_for_bf16: Vec::new(), weights: onnx.clone() };
    let files = GraphFiles { onnx, external_data: Vec::new(), unfit_for_bf16: Vec::new(), apart: Some(apart) };
    let wanted = WantedOutput { pooling_is_known: true, hidden_size: Some(32) };
    let session = EncoderSession::open(&runtime, &files, ON_ONE_THREAD, wanted).expect("the file is whole");
    assert_eq!(session.output().name, "last_hidden_state");
}

/// Where memory is mapped now.
#[cfg(target_os = "linux")]
fn mapped() -> Vec<std::ops::Range<usize>> {
    let maps = fs_err::read_to_string("/proc/self/maps").expect("one's own maps");
    let address = |digits: &str| usize::from_str_radix(digits, 16).expect("an address");
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some(address(start)..address(end))
    };
    maps.lines().map(|line| range(line).expect("a range")).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn on_cpu_a_thread_that_has_memory_of_its_own_computes_there() {
    let runtime = Runtime::load(&data_dir().join("runtime/libonnxruntime.so")).expect("set-up installed it");
    let files = GraphFiles {
        onnx: test_model("tiny").join("onnx/model.onnx"),
        external_data: Vec::new(),
        unfit_for_bf16: Vec::new(),
        apart: None,
    };
    let wanted = WantedOutput { pooling_is_known: true, hidden_size: Some(32) };
    let session = EncoderSession::open(&runtime, &files, ON_ONE_THREAD, wanted).expect("the file is whole");
    let mut batch = PaddedBatch::default();
    batch.fill([[1_u32; 100].as_slice(); 8].into_iter(), 100);
    let place_of_output =
        || session.run(&batch, |output| output.values.as_ptr().addr()).expect("the ids are the tokenizer's");
    let is_in = |place, ranges: Vec<std::ops::Range<usize>>| ranges.iter().any(|range| range.contains(&place));
    place_of_output(); // what the process keeps for the next run is mapped from now on
    let before = mapped();
    run_memory::keep_own();
    let place = place_of_output();
    assert!(is_in(place, mapped()) && !is_in(place, before), "{place:#x} is not in what was mapped for the thread");
}

/// A field of a protocol buffer's message that holds bytes.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let n = bytes.len();
    let length = [u8::try_from(n & 127).expect("7 bits") | 128, u8::try_from(n >> 7).expect("a short message")];
    [&[number << 3 | 2], &length[..], bytes].concat()
}

/// A graph whose output has the ids that it is given as its shape.
fn graph_of_any_size() -> Vec<u8> {
    let node = |op: &str, inputs: &[&str], output: &str| {
        let inputs = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
        field(1, &[inputs, field(2, output.as_bytes()), field(4, op.as_bytes())].concat())
    };
    let tensor = |name: &str, element: u8, rank: usize| {
        let shape = field(2, &field(1, &field(2, b"n")).repeat(rank));
        let kind = field(1, &[vec![1 << 3, element], shape].concat());
        [field(1, name.as_bytes()), field(2, &kind)].concat()
    };
    let minus_one = [vec![1 << 3, 1, 2 << 3, 7], field(8, b"flat"), field(9, &[0xff; 8])].concat();
    let graph = [
        node("Reshape", &["input_ids", "flat"], "shape"),
        node("ConstantOfShape", &["shape"], "last_hidden_state"),
        field(2, b"any"),
        field(5, &minus_one),
        field(11, &tensor("input_ids", 7, 2)),
        field(11, &tensor("attention_mask", 7, 2)),
        field(12, &tensor("last_hidden_state", 1, 3)),
    ];
    [vec![1 << 3, 8], field(7, &graph.concat()), field(8, &[2 << 3, 13])].concat()
}

#[test]
fn memory_that_cannot_be_had_fails_one_run() {
    let runtime = Runtime::load(&data_dir().join("runtime/libonnxruntime.so")).expect("set-up installed it");
    let folder = tempfile::tempdir().expect("a folder");
    let onnx = folder.path().join("any.onnx");
    fs_err::write(&onnx, graph_of_any_size()).expect("written");
    let files = GraphFiles { onnx, external_data: Vec::new(), unfit_for_bf16: Vec::new(), apart: None };
    let wanted = WantedOutput { pooling_is_known: true, hidden_size: None };
    let session = EncoderSession::open(&runtime, &files, ON_ONE_THREAD, wanted).expect("a graph");
    let mut batch = PaddedBatch::default();
    batch.fill(std::iter::once([u32::MAX, 1 << 20, 8].as_slice()), 3);
    let error = session.run(&batch, |_| ()).expect_err("no address space is that large");
    assert!(matches!(EngineError::of_run(3, error), EngineError::NoMemory { index: 3, .. }));
    batch.fill(std::iter::once([1, 3, 2].as_slice()), 3);
    session.run(&batch, |output| assert_eq!(output.values, [0.0; 6])).expect("it goes on");
}
