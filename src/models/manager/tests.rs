//! What is recorded of models, which are not loaded here.

use super::*;
use crate::config::Config;
use crate::domain::{ModelSource, SpaceId};
use crate::engine::CpuFeatures;
use crate::models::hub::{Hub, HubSettings};
use crate::models::ledger::VolatileLedger;
use crate::models::lifecycle::{Failure, FailureKind};

/// The built-in models, none of which can be loaded.
async fn manager() -> MultiModelManager {
    manager_in(Path::new("")).await
}

/// The same, with a runtime library `library`, the cache `hub` and the list `models.lock` in a folder.
async fn manager_in(folder: &Path) -> MultiModelManager {
    let config = Config::default();
    let cache_dir = folder.join("hub").display().to_string();
    let hub = HubSettings::from_variables(&|name: &str| (name == "HF_HUB_CACHE").then(|| cache_dir.clone()));
    let parts = ManagerParts {
        catalog: Catalog::from_config(&config.ai, &config.models).expect("the default is valid"),
        models_dir: PathBuf::new(),
        takes_registrations: true,
        memory_budget: None,
        budget_of: BudgetOf::Models,
        first_active: config.ai.model_name.clone(),
        loader: Loader {
            runtime_library: folder.join("library"),
            engine: config.engine.clone(),
            features: CpuFeatures::default(),
            cores: 1,
            hub: Hub::new(hub.expect("a folder is enough"), folder.join("models.lock")),
            cache: None,
            interactive: Arc::default(),
        },
        ledger: Arc::new(VolatileLedger::default()),
        shutdown: Shutdown::new(),
        timing: Timing {
            load_timeout: Duration::from_secs(1),
            failed_load_cooldown: Duration::from_secs(1),
            idle_unload: Duration::ZERO,
        },
    };
    MultiModelManager::start(parts).await.expect("nothing is read that can fail")
}

async fn recorded_as_disabled(manager: &MultiModelManager) -> Vec<ModelName> {
    manager.ledger.disabled_models().await.expect("it is in memory")
}

#[tokio::test]
async fn nothing_is_recorded_of_a_deleted_model() {
    let manager = manager().await;
    let entry = manager.entry(&manager.active()).expect("it is known");
    entry.delete();
    let refused = manager.disable_in_turn(&entry).await;
    assert!(matches!(refused, Err(ModelError::NotFound { .. })), "{refused:?}");
    assert!(recorded_as_disabled(&manager).await.is_empty());

    // Another model has its name by now, and is disabled.
    let name = &entry.info.name;
    manager.ledger.record_disabled(name).await.expect("it is in memory");
    entry.set_disabled(true);
    let refused = manager.enable_in_turn(&entry).await;
    assert!(matches!(refused, Err(ModelError::NotFound { .. })), "{refused:?}");
    assert_eq!(recorded_as_disabled(&manager).await, std::slice::from_ref(name));
}

#[tokio::test]
async fn a_stuck_model_is_disabled_though_it_cannot_be_unloaded() {
    let manager = manager().await;
    let name = manager.active();
    let entry = manager.entry(&name).expect("it is known");
    entry.get_stuck();
    let refusal = manager.unload_model(&name).await.expect_err("it is stuck").to_string();
    assert!(refusal.contains("cannot be unloaded") && !refusal.contains("disabled"), "{refusal}");
    assert!(!entry.status().disabled);

    let refusal = manager.disable_model(&name).await.expect_err("it is stuck").to_string();
    assert!(refusal.contains("cannot be unloaded") && refusal.contains("It is disabled from now on"), "{refusal}");
    assert!(matches!(manager.lease(&name).await, Err(ModelError::Disabled { .. })));
    assert_eq!(recorded_as_disabled(&manager).await, [name]);
}

#[tokio::test]
async fn an_unload_of_a_model_that_is_loading_goes_on_when_its_caller_leaves() {
    let manager = manager().await;
    let name = manager.active();
    let entry = manager.entry(&name).expect("it is known");
    let now = Instant::now();
    assert!(matches!(entry.lease_or_claim_load(Eagerness::ByHand, now, now), Next::Load));
    if entry.download_cancel().is_some() {
        assert_eq!(entry.finish_download(), Ok(true));
    }
    let mut unload = Box::pin(manager.unload_model(&name));
    assert!(futures::poll!(unload.as_mut()).is_pending());
    drop(unload);
    let (reason, kind) = ("no".to_owned(), FailureKind::Model);
    let failure = Failure { reason, kind, failed_at: now, retry_at: now, permanent: true };
    entry.finish_load(Err(failure)).expect("it was loading");
    let forgotten = async {
        while entry.status().phase != Phase::Unloaded {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), forgotten).await.expect("its failure is forgotten");
}

#[tokio::test]
async fn a_stop_goes_on_with_what_is_here_of_a_hub_and_begins_no_download() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let write = |path: String, content: &str| {
        let path = folder.path().join(path);
        fs_err::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs_err::write(path, content).expect("written");
    };
    write("library".to_owned(), "");
    let commit = "a".repeat(40);
    for file in ["onnx/model.onnx", "tokenizer.json"] {
        write(format!("hub/models--a--here/snapshots/{commit}/{file}"), "no model");
    }
    let lock = format!(
        r#"[[model]]
        repository = "a/here"
        revision = "main"
        file = "onnx/model.onnx"
        commit = "{commit}"
        files = {{ "onnx/model.onnx" = "", "tokenizer.json" = "" }}"#
    );
    write("models.lock".to_owned(), &lock);
    let manager = manager_in(folder.path()).await;
    manager.shutdown.begin();
    let known = manager.status(&manager.active()).expect("it is known").info;
    let lease = async |repository: &str| {
        let source = serde_json::from_value(serde_json::json!({"repository": repository})).expect("a source");
        let entry = Arc::new(Entry::new(ModelInfo { source: ModelSource::Hub(source), ..ModelInfo::clone(&known) }));
        manager.lease_entry(&entry, Eagerness::Request).await.map(drop)
    };
    let here = lease("a/here").await;
    assert!(matches!(here, Err(ModelError::Failed { .. })), "its load was tried, and it is no model: {here:?}");
    let elsewhere = lease("a/elsewhere").await;
    assert!(matches!(elsewhere, Err(ModelError::Stopping { .. })), "{elsewhere:?}");
}

#[tokio::test]
async fn who_waits_for_vectors_learns_that_they_do_not_come() {
    let manager = manager().await;
    let name = manager.active();
    let mut waiting = std::pin::pin!(manager.found_stuck(&name));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    assert!(manager.check_answers(&name).is_ok());
    manager.entry(&name).expect("it is known").get_stuck();
    assert!(matches!(manager.check_answers(&name), Err(ModelError::Stuck { .. })));
    let found = tokio::time::timeout(Duration::from_mins(1), waiting).await.expect("it is woken").to_string();
    assert!(found.contains("does not embed") && found.contains("Start the server anew"), "{found}");
    let endless = manager.unless_stuck(&name, std::future::pending::<Result<(), ModelError>>());
    let ended = tokio::time::timeout(Duration::from_mins(1), endless).await.expect("it is given up");
    assert!(matches!(ended, Err(ModelError::Stuck { .. })), "{ended:?}");
    let unknown = ModelName::parse("unknown").expect("a name");
    assert!(matches!(manager.found_stuck(&unknown).await, ModelError::NotFound { .. }));
}

#[tokio::test]
async fn a_deleted_model_whose_inference_ends_after_all_is_forgotten() {
    let manager = manager().await;
    let entry = manager.entry(&manager.active()).expect("it is known");
    entry.get_stuck();
    entry.delete();
    manager.leaving.write().push(Arc::clone(&entry));
    assert!(!entry.has_gone(), "it is in memory");
    manager.watch_memory();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(manager.leaving.read().len(), 1, "it has not gone");
    entry.finish_drain().expect("it was draining");
    let forgotten = async {
        while !manager.leaving.read().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), forgotten).await.expect("it has gone");
}

#[tokio::test]
async fn what_is_to_replace_a_model_leaves_another_that_has_become_active_meanwhile() {
    let manager = manager().await;
    let before = manager.active();
    let mut others: Vec<ModelName> = manager.list().iter().map(|status| status.info.name.clone()).collect();
    others.retain(|name| *name != before);
    let [previous, chosen, ..] = &others[..] else { panic!("there are more built-in models: {others:?}") };
    // A change is under way, and ends when the other one waits behind it.
    let turn = manager.turn_to_change().await;
    let mut change = std::pin::pin!(manager.set_active_if(previous, &before));
    assert!(futures::poll!(change.as_mut()).is_pending());
    tokio::task::yield_now().await;
    *manager.active.write() = chosen.clone();
    drop(turn);
    assert_eq!(change.await.expect("no model is loaded"), None);
    assert_eq!(manager.active(), *chosen);
}

#[tokio::test]
async fn of_several_makers_of_a_space_one_is_asked_that_can_be_had() {
    let manager = manager().await;
    let space = SpaceId::parse("0123456789abcdef").expect("16 digits");
    let names: Vec<ModelName> = manager.list().iter().take(3).map(|status| status.info.name.clone()).collect();
    for name in &names {
        manager.ledger.accept_space(name, &space).await.expect("it is in memory");
    }
    let maker = || manager.maker_of(&space);
    assert_eq!(maker().await.expect("it is in memory").as_ref(), Some(&names[0]));

    manager.entry(&names[0]).expect("it is known").set_disabled(true);
    assert_eq!(maker().await.expect("it is in memory").as_ref(), Some(&names[1]));

    let entry = manager.entry(&names[1]).expect("it is known");
    let now = Instant::now();
    assert!(matches!(entry.lease_or_claim_load(Eagerness::ByHand, now, now), Next::Load));
    assert_eq!(maker().await.expect("it is in memory").as_ref(), Some(&names[1]), "nothing stands against it");
    let (reason, kind) = ("no".to_owned(), FailureKind::Model);
    let failure = Failure { reason, kind, failed_at: now, retry_at: now, permanent: true };
    entry.finish_load(Err(failure)).expect("it was loading");
    assert_eq!(maker().await.expect("it is in memory").as_ref(), Some(&names[2]));

    manager.entry(&names[2]).expect("it is known").get_stuck();
    assert_eq!(maker().await.expect("it is in memory").as_ref(), Some(&names[0]), "the first where none can be had");
}
