//! How models are run on machines of several sizes, and what their files settle.

use super::*;
use crate::config::Config;
use crate::models::catalog::Catalog;
use crate::models::folder;
use crate::models::hub::HubSettings;

const SMALL: Footprint = Footprint { weights_bytes: 87 << 20, mapped_bytes: 0, max_tokens: 256, dimensions: 384 };

/// The options of a small model on 64 cores.
fn options(engine: EngineConfig, provider: Provider) -> EncoderOptions {
    let config = Config::default();
    let catalog = Catalog::from_config(&config.ai, &config.models).expect("the default is valid");
    let hub = HubSettings::from_variables(&|name: &str| (name == "HF_HUB_CACHE").then(|| "hub".to_owned()));
    let loader = Loader {
        runtime_library: PathBuf::new(),
        engine,
        features: CpuFeatures::default(),
        cores: 64,
        hub: Hub::new(hub.expect("a folder is enough"), PathBuf::new()),
        cache: None,
        interactive: Arc::default(),
    };
    loader.options(catalog.iter().next().expect("there are built-in models"), provider, SMALL)
}

#[test]
fn only_the_threads_of_the_query_lane_stay_awake() {
    for n_workers in [0, 1] {
        let engine = EngineConfig { workers: n_workers, ..Config::default().engine };
        let EncoderOptions { bulk, queries, .. } = options(engine, Provider::Cpu);
        assert!(!bulk.stays_awake, "{bulk:?}");
        assert_eq!(queries.map(|lane| (lane.threads, lane.stays_awake)), Some((4, true)));
    }
}

#[test]
fn a_maximum_length_that_is_inferred_of_a_hubs_files_is_at_most_the_built_in_one() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let write = |name: &str, content: &[u8]| fs_err::write(folder.path().join(name), content).expect("written");
    // An ONNX file with an empty graph.
    write("model.onnx", &[0x08, 10, 0x3a, 0]);
    write("tokenizer.json", b"{}");
    write("config.json", br#"{"max_position_embeddings": 512}"#);
    let config = Config::default();
    let catalog = Catalog::from_config(&config.ai, &config.models).expect("the default is valid");
    let model = |source, built_in, configured| {
        let lengths =
            |max_tokens| EncoderSettings { max_tokens: NonZeroU32::new(max_tokens), ..EncoderSettings::default() };
        let info = catalog.iter().next().expect("there are built-in models").clone();
        ModelInfo { source, built_in: lengths(built_in), configured: lengths(configured), ..info }
    };
    let limit = |info: &ModelInfo| {
        let files = folder::read_folder(folder.path(), None, None).expect("well formed");
        settings(info, &files).max_tokens.map(NonZeroU32::get)
    };
    let hub = || ModelSource::Hub(serde_json::from_str(r#"{"repository": "a/b"}"#).expect("a source"));
    let own = || ModelSource::Folder(folder.path().to_owned());
    assert_eq!(limit(&model(hub(), 256, 0)), Some(256));
    assert_eq!(limit(&model(hub(), 8192, 0)), Some(512));
    assert_eq!(limit(&model(hub(), 0, 0)), Some(512));
    assert_eq!(limit(&model(hub(), 256, 300)), Some(300));
    assert_eq!(limit(&model(own(), 256, 0)), Some(512), "a folder of one's own is another model");
    write("sentence_bert_config.json", br#"{"max_seq_length": 400}"#);
    assert_eq!(limit(&model(hub(), 256, 0)), Some(400));
}

#[test]
fn a_length_that_the_files_have_vectors_cut_to_is_offered_beside_the_others_unless_some_are_configured() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let write = |name: &str, content: &[u8]| fs_err::write(folder.path().join(name), content).expect("written");
    // An ONNX file with an empty graph.
    write("model.onnx", &[0x08, 10, 0x3a, 0]);
    write("tokenizer.json", b"{}");
    write("config_sentence_transformers.json", br#"{"truncate_dim": 32}"#);
    let files = folder::read_folder(folder.path(), None, None).expect("well formed");
    let config = Config::default();
    let catalog = Catalog::from_config(&config.ai, &config.models).expect("the default is valid");
    let offered = |built_in: Option<&[u32]>, configured: Option<&[u32]>| {
        let lengths = |lengths: Option<&[u32]>| EncoderSettings {
            matryoshka_dims: lengths.map(|lengths| lengths.iter().copied().filter_map(NonZeroU32::new).collect()),
            ..EncoderSettings::default()
        };
        let info = catalog.iter().next().expect("there are built-in models").clone();
        let info = ModelInfo { built_in: lengths(built_in), configured: lengths(configured), ..info };
        let offered = settings(&info, &files).matryoshka_dims.unwrap_or_default();
        offered.into_iter().map(NonZeroU32::get).collect::<Vec<_>>()
    };
    assert_eq!(offered(None, None), [32]);
    assert_eq!(offered(Some(&[64]), None), [64, 32]);
    assert_eq!(offered(Some(&[64, 32]), None), [64, 32]);
    assert_eq!(offered(None, Some(&[16])), [16]);
}

#[test]
fn no_batch_is_wider_than_the_longest_text() {
    for provider in [Provider::Cpu, Provider::OpenVino, Provider::Cuda] {
        let EncoderOptions { batch, .. } = options(Config::default().engine, provider);
        assert_eq!((batch.max_width, batch.width(256)), (256, 256), "{provider}");
    }
}

#[test]
fn each_core_runs_a_batch_in_one_thread_until_there_are_too_many() {
    use Provider::{Cpu, Cuda, OpenVino};

    for (provider, cores, expected) in [
        (Cpu, 1, (1, 1)),
        (Cpu, 4, (4, 1)),
        (Cpu, 16, (16, 1)),
        (Cpu, 128, (32, 97)),
        (OpenVino, 2, (2, 2)),
        (OpenVino, 16, (16, 16)),
        (OpenVino, 128, (32, 128)),
        (Cuda, 16, (1, 1)),
    ] {
        let n_workers = running(&Config::default().engine, None, provider, SMALL, cores).workers;
        assert_eq!((n_workers, bulk_threads(provider, n_workers, cores)), expected, "{provider} on {cores} cores");
    }
}

#[test]
fn models_without_a_query_lane_or_with_texts_longer_than_a_batch_get_few_workers() {
    let engine = Config::default().engine;
    let longest = u32::try_from(engine.max_batch_tokens).expect("a small number");
    let large = Footprint { weights_bytes: MAX_QUERY_LANE_WEIGHTS_BYTES + 1, ..SMALL };
    let long = |max_tokens| Footprint { max_tokens, ..SMALL };
    let no_lane = EngineConfig { query_lane: QueryLaneSetting::Off, ..engine.clone() };
    let every_lane = EngineConfig { query_lane: QueryLaneSetting::On, ..engine.clone() };
    let wide = EngineConfig { max_batch_tokens: 8192, ..engine.clone() };
    for (engine, footprint, expected) in [
        (&engine, SMALL, 32),
        (&engine, large, 4),
        (&every_lane, large, 32),
        (&no_lane, SMALL, 4),
        (&engine, long(longest), 32),
        (&engine, long(longest + 1), 4),
        (&wide, long(8192), 32),
    ] {
        for provider in [Provider::Cpu, Provider::OpenVino] {
            let workers = |cores| running(engine, None, provider, footprint, cores).workers;
            assert_eq!([workers(2), workers(64)], [2, expected], "{provider}, {footprint:?}, {engine:?}");
        }
    }
}

#[test]
fn what_is_said_of_workers_counts_and_a_models_own_entry_first() {
    let engine = EngineConfig { workers: 3, ..Config::default().engine };
    for provider in [Provider::Cpu, Provider::Cuda] {
        assert_eq!(running(&engine, None, provider, SMALL, 64).workers, 3);
        assert_eq!(running(&engine, NonZeroUsize::new(100), provider, SMALL, 64).workers, 100);
    }
    assert_eq!(bulk_threads(Provider::Cpu, 3, 64), 62);
}

#[test]
fn where_one_provider_finds_no_memory_the_next_one_is_tried() {
    let otherwise = |source| EngineError::Inference { index: 0, source };
    let no_memory = EngineError::of_open(Path::new("model.onnx"), "CUDA failure 2: out of memory".into(), otherwise);
    assert!(may_be_the_providers_fault(&no_memory), "{no_memory}");
}
