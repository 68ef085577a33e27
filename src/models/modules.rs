//! `modules.json` of sentence-transformers: what becomes of token vectors, in the order listed.
//!
//! Start at [`read`] for what the files say, and at [`open`] for the weights of dense layers. A module, an activation or a
//! file that Granary does not know is refused by name: a vector without it would be another one.

use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::folder::{FolderError, read_json};
use super::pooling_file::read_pooling;
use crate::domain::{Activation, DenseShape, HashedModule, Pooling, hex_digits};
use crate::engine::{Dense, Module};

/// The file of a dense layer's weights.
const WEIGHTS: &str = "model.safetensors";

/// What older releases wrote instead: a Python program that makes the weights when it is run.
const PICKLED_WEIGHTS: &str = "pytorch_model.bin";

/// What the names of sentence-transformers' own classes begin with. Those of others may do anything.
const PACKAGE: &str = "sentence_transformers.";

/// What a dense layer of a text's vector reads and writes, where its file says it at all.
const TEXT_VECTOR: &str = "sentence_embedding";

/// What `modules.json` decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModulesSaid {
    /// The folder of the module that makes token vectors; `None` where no list names it.
    pub transformer: Option<PathBuf>,
    /// How token vectors become one.
    pub pooling: Option<Pooling>,
    /// Whether the last module scales the vector to length 1; `None` without `modules.json`.
    pub normalize: Option<bool>,
    /// What is done in between; the last one is a dense layer.
    pub between: Vec<ModuleFile>,
}

/// A module behind pooling, with its weights still in their file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleFile {
    /// A dense layer.
    Dense {
        /// Where its weights are.
        weights: PathBuf,
        /// Its sizes and its activation.
        shape: DenseShape,
    },
    /// Scaling to length 1.
    Normalize,
}

impl ModuleFile {
    /// The file of its weights.
    #[must_use]
    pub fn weights(&self) -> Option<&Path> {
        match self {
            Self::Dense { weights, .. } => Some(weights),
            Self::Normalize => None,
        }
    }
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// What `modules.json` and the modules' own files say. Without the first, the usual place of the pooling's is read.
/// `configured` is the pooling that the operator has set.
///
/// # Errors
/// [`FolderError`], naming the module.
pub fn read(folder: &Path, configured: Option<Pooling>) -> Result<ModulesSaid, FolderError> {
    let list_path = folder.join("modules.json");
    let Some(modules) = read_json::<Vec<Listed>>(&list_path)? else {
        let pooling = read_pooling(&folder.join("1_Pooling/config.json"), configured)?;
        return Ok(ModulesSaid { pooling, ..ModulesSaid::default() });
    };
    let mut said = ModulesSaid { normalize: Some(false), ..ModulesSaid::default() };
    let mut pools = false;
    for module in &modules {
        // The class moved between packages from release to release; its own name did not.
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        let is_foreign = !module.kind.starts_with(PACKAGE);
        let unsupported = |what| Err(FolderError::Unsupported { path: list_path.clone(), what });
        if !Path::new(&module.path).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(FolderError::OutsideFolder { path: list_path, location: module.path.clone() });
        }
        let place = folder.join(&module.path);
        match kind {
            // The graph stands for it, whoever wrote the class.
            "Transformer" => {
                said.transformer = said.transformer.take().or(Some(place));
            }
            "Pooling" if is_foreign && configured.is_some() && !pools && said.between.is_empty() => {
                pools = true;
                said.pooling = configured;
            }
            _ if is_foreign => return unsupported(named(&module.path, &module.kind)),
            "Pooling" if !pools && said.between.is_empty() => {
                pools = true;
                said.pooling = read_pooling(&place.join("config.json"), configured)?;
            }
            "Normalize" => {
                // Scaling twice in a row is scaling once.
                if said.between.last() != Some(&ModuleFile::Normalize) {
                    said.between.push(ModuleFile::Normalize);
                }
            }
            "Dense" if pools => said.between.push(read_dense(&place)?),
            "Pooling" | "Dense" => {
                return unsupported(format!("{} at this place in the list", named(&module.path, kind)));
            }
            _ => return unsupported(named(&module.path, kind)),
        }
    }
    // The one at the end is the model's `normalize`, which settings and requests may change.
    if said.between.pop_if(|last| *last == ModuleFile::Normalize).is_some() {
        said.normalize = Some(true);
    }
    check_chain(&list_path, &said.between)?;
    Ok(said)
}

/// A module as refusals name it. Some have the model's own folder.
fn named(path: &str, class: &str) -> String {
    if path.is_empty() { format!("the module `{class}`") } else { format!("the module `{path}` ({class})") }
}

/// Each dense layer must take the vectors that the one before it makes.
fn check_chain(list_path: &Path, modules: &[ModuleFile]) -> Result<(), FolderError> {
    let shapes: Vec<&DenseShape> = modules
        .iter()
        .filter_map(|module| match module {
            ModuleFile::Dense { shape, .. } => Some(shape),
            ModuleFile::Normalize => None,
        })
        .collect();
    match shapes.windows(2).find(|pair| pair[0].out_features != pair[1].in_features) {
        Some(pair) => Err(FolderError::Misfit {
            path: list_path.to_owned(),
            reason: format!(
                "a Dense module makes vectors of {} numbers, and the next one takes {}",
                pair[0].out_features, pair[1].in_features
            ),
        }),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: u32,
    out_features: u32,
    /// `PyTorch`'s own default.
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default = "tanh")]
    activation_function: String,
    /// Whether what it takes is added to what it makes.
    #[serde(default)]
    use_residual: bool,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

fn yes() -> bool {
    true
}

/// The activation of a layer whose file names none, as in sentence-transformers.
fn tanh() -> String {
    "torch.nn.modules.activation.Tanh".to_owned()
}

fn read_dense(place: &Path) -> Result<ModuleFile, FolderError> {
    let config_path = place.join("config.json");
    let missing = |what, path: PathBuf| FolderError::Missing { what, looked_for: vec![path] };
    let Some(config) = read_json::<DenseConfig>(&config_path)? else {
        return Err(missing("the file of a Dense module's settings", config_path));
    };
    let unsupported = |what| FolderError::Unsupported { path: config_path.clone(), what };
    for name in [&config.module_input_name, &config.module_output_name].into_iter().flatten() {
        if name != TEXT_VECTOR {
            return Err(unsupported(format!("a Dense module on `{name}`")));
        }
    }
    if config.use_residual {
        return Err(unsupported("a Dense module that adds what it takes to what it makes (`use_residual`)".to_owned()));
    }
    let activation = Activation::of_torch(&config.activation_function)
        .ok_or_else(|| unsupported(format!("the activation `{}`", config.activation_function)))?;
    let weights = place.join(WEIGHTS);
    if !weights.is_file() {
        let pickled = place.join(PICKLED_WEIGHTS);
        if pickled.is_file() {
            return Err(FolderError::Pickled { path: pickled });
        }
        return Err(missing("the file of a Dense module's weights", weights));
    }
    let DenseConfig { in_features, out_features, bias, .. } = config;
    Ok(ModuleFile::Dense { weights, shape: DenseShape { in_features, out_features, bias, activation } })
}

/// Reads the weights of the modules, and what names their space. Both come from one reading of each file.
///
/// # Errors
/// When a file cannot be read or does not hold what its layer needs.
pub fn open(modules: &[ModuleFile]) -> Result<(Vec<Module>, Vec<HashedModule>), FolderError> {
    let mut opened = (Vec::with_capacity(modules.len()), Vec::with_capacity(modules.len()));
    for module in modules {
        let (module, hashed) = match module {
            ModuleFile::Normalize => (Module::Normalize, HashedModule::Normalize),
            ModuleFile::Dense { weights, shape } => {
                let bytes = fs_err::read(weights).map_err(FolderError::Read)?;
                let sha256 = hex_digits(&Sha256::digest(&bytes));
                (Module::Dense(open_dense(weights, &bytes, *shape)?), HashedModule::Dense { sha256, shape: *shape })
            }
        };
        opened.0.push(module);
        opened.1.push(hashed);
    }
    Ok(opened)
}

fn open_dense(path: &Path, bytes: &[u8], shape: DenseShape) -> Result<Dense, FolderError> {
    let misfit = |reason| FolderError::Misfit { path: path.to_owned(), reason };
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|source| FolderError::NotSafetensors { path: path.to_owned(), source })?;
    let (n_in, n_out) = (shape.in_features as usize, shape.out_features as usize);
    let tensor = |name: &str, sizes: &[usize]| {
        let tensor = tensors.tensor(name).map_err(|_| misfit(format!("it has no tensor `{name}`")))?;
        if tensor.shape() != sizes {
            let found = tensor.shape();
            return Err(misfit(format!(
                "its tensor `{name}` has the shape {found:?}, and config.json makes it {sizes:?}"
            )));
        }
        floats(tensor.dtype(), tensor.data()).ok_or_else(|| {
            misfit(format!("its tensor `{name}` holds {:?}, and Granary reads F32, F16 and BF16", tensor.dtype()))
        })
    };
    let weights = tensor("linear.weight", &[n_out, n_in])?;
    let bias = if shape.bias { tensor("linear.bias", &[n_out])? } else { Vec::new() };
    if !shape.bias && tensors.tensor("linear.bias").is_ok() {
        return Err(misfit("it has a tensor `linear.bias`, and config.json says that there is no bias".to_owned()));
    }
    Dense::new(shape, weights, bias).map_err(|error| misfit(error.to_string()))
}

/// Little-endian numbers as f32; `None` for a type that no dense layer is saved in.
fn floats(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    match dtype {
        Dtype::F32 => Some(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::F16 => Some(data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()),
        Dtype::BF16 => Some(data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;
    use tempfile::TempDir;

    use super::*;

    /// A folder of these files, with `1_Pooling` and the `modules.json` that lists these modules at these paths.
    fn folder(modules: &[(&str, &str)], files: &[(&str, &[u8])]) -> TempDir {
        let folder = TempDir::new().expect("a folder");
        let listed: Vec<_> = modules
            .iter()
            .map(|(path, kind)| serde_json::json!({"path": path, "type": format!("sentence_transformers.models.{kind}")}))
            .collect();
        let list = serde_json::to_vec(&listed).expect("JSON");
        let pooling = br#"{"pooling_mode_mean_tokens": true}"#.as_slice();
        for (name, content) in
            files.iter().copied().chain([("modules.json", &list[..]), ("1_Pooling/config.json", pooling)])
        {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs_err::write(path, content).expect("written");
        }
        folder
    }

    const POOLED: [(&str, &str); 2] = [("", "Transformer"), ("1_Pooling", "Pooling")];

    fn config(in_features: u32, out_features: u32, activation: &str) -> Vec<u8> {
        let sizes = format!(r#""in_features": {in_features}, "out_features": {out_features}"#);
        format!(r#"{{{sizes}, "bias": true, "activation_function": "torch.nn.modules.{activation}"}}"#).into_bytes()
    }

    fn tensors(dtype: Dtype, weights: &[u8], bias: &[u8]) -> Vec<u8> {
        let n_out = bias.len() * 8 / dtype.bitsize();
        let shape = vec![n_out, weights.len() / bias.len()];
        let views = [
            ("linear.weight", TensorView::new(dtype, shape, weights).expect("a view")),
            ("linear.bias", TensorView::new(dtype, vec![n_out], bias).expect("a view")),
        ];
        safetensors::serialize(views, None).expect("serialized")
    }

    fn refusal(folder: &TempDir) -> String {
        let opened = read(folder.path(), None).and_then(|said| open(&said.between));
        opened.expect_err("refused").to_string()
    }

    /// Two rows of two numbers and a bias of two, each of `n_bytes`.
    fn zeros(dtype: Dtype, n_bytes: usize) -> Vec<u8> {
        tensors(dtype, &vec![0; 4 * n_bytes], &vec![0; 2 * n_bytes])
    }

    #[test]
    fn modules_come_in_the_order_listed() {
        let (tanh, gelu, weights) = (config(2, 3, "activation.Tanh"), config(3, 2, "activation.GELU"), vec![]);
        let files: [(&str, &[u8]); 4] = [
            ("2_Dense/config.json", &tanh),
            ("2_Dense/model.safetensors", &weights),
            ("4_Dense/config.json", &gelu),
            ("4_Dense/model.safetensors", &weights),
        ];
        let rest =
            [("2_Dense", "Dense"), ("3_Normalize", "Normalize"), ("4_Dense", "Dense"), ("5_Normalize", "Normalize")];
        let folder = folder(&[&POOLED[..], &rest].concat(), &files);
        let said = read(folder.path(), None).expect("well formed");
        let dense = |name: &str, in_features, out_features, activation| ModuleFile::Dense {
            weights: folder.path().join(name).join(WEIGHTS),
            shape: DenseShape { in_features, out_features, bias: true, activation },
        };
        assert_eq!((said.pooling, said.normalize), (Some(Pooling::Mean), Some(true)));
        let (first, last) = (dense("2_Dense", 2, 3, Activation::Tanh), dense("4_Dense", 3, 2, Activation::Gelu));
        assert_eq!(said.between, [first, ModuleFile::Normalize, last]);
    }

    #[test]
    fn a_dense_layer_that_names_no_activation_has_the_hyperbolic_tangent() {
        let config = br#"{"in_features": 2, "out_features": 3, "use_residual": false}"#;
        let files: [(&str, &[u8]); 2] = [("2_Dense/config.json", config), ("2_Dense/model.safetensors", b"")];
        let folder = folder(&[&POOLED[..], &[("2_Dense", "Dense")]].concat(), &files);
        let said = read(folder.path(), None).expect("well formed");
        let shape = DenseShape { in_features: 2, out_features: 3, bias: true, activation: Activation::Tanh };
        let weights = folder.path().join("2_Dense").join(WEIGHTS);
        assert_eq!(said.between, [ModuleFile::Dense { weights, shape }]);
    }

    #[test]
    fn weights_are_read_in_each_precision() {
        // 1, 2, -0.5, 0 and a bias of 1 and -1: exact in every one of them.
        let (weights, bias) = ([1.0_f32, 2.0, -0.5, 0.0], [1.0_f32, -1.0]);
        let config = config(2, 2, "linear.Identity");
        let bytes = |dtype, numbers: &[f32]| -> Vec<u8> {
            let bytes_of = |x: &f32| match dtype {
                Dtype::F32 => x.to_le_bytes().to_vec(),
                Dtype::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
                _ => bf16::from_f32(*x).to_le_bytes().to_vec(),
            };
            numbers.iter().flat_map(bytes_of).collect()
        };
        let mut seen = Vec::new();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let file = tensors(dtype, &bytes(dtype, &weights), &bytes(dtype, &bias));
            let files: [(&str, &[u8]); 2] = [("2_Dense/config.json", &config), ("2_Dense/model.safetensors", &file)];
            let folder = folder(&[&POOLED[..], &[("2_Dense", "Dense")]].concat(), &files);
            let (opened, hashed) = open(&read(folder.path(), None).expect("well formed").between).expect("opened");
            let [Module::Dense(dense)] = &opened[..] else { panic!("{opened:?}") };
            assert_eq!(dense.apply(&[10.0, 3.0]), [17.0, -6.0], "{dtype:?}");
            seen.push(hashed);
        }
        assert!(seen[0] != seen[1] && seen[1] != seen[2], "{seen:?}");
    }

    #[test]
    fn what_granary_does_not_have_is_refused_by_name() {
        let with = |path: &str, kind: &str| folder(&[&POOLED[..], &[(path, kind)]].concat(), &[]);
        assert!(refusal(&with("", "Router")).contains("the module `Router`, "));
        assert!(refusal(&with("2_LSTM", "LSTM")).contains("`2_LSTM` (LSTM)"));
        assert!(refusal(&with("2_Pooling", "Pooling")).contains("`2_Pooling` (Pooling) at this place"));
        assert!(refusal(&with("../2_Dense", "Dense")).contains("outside its folder"));
        assert!(refusal(&folder(&[("", "Transformer"), ("1_Dense", "Dense")], &[])).contains("at this place"));
        for (pooling, named) in [
            (r#"{"pooling_mode_weightedmean_tokens": true}"#, "weightedmean"),
            (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}"#, "mean + max"),
            (r#"{"pooling_mode": ["cls", "mean"]}"#, "cls + mean"),
            (r#"{"pooling_mode": "mean", "include_prompt": false}"#, "`include_prompt`"),
            (r#"{"pooling_mode_cls_token": true, "include_prompt": false}"#, "`include_prompt`"),
            (r#"{"include_prompt": false}"#, "`include_prompt`"),
            (r#"{"pooling_mode": 7}"#, "cannot be understood"),
        ] {
            let folder = folder(&POOLED, &[]);
            fs_err::write(folder.path().join("1_Pooling/config.json"), pooling).expect("written");
            assert!(refusal(&folder).contains(named));
        }
    }

    #[test]
    fn a_class_of_others_is_refused_by_name_whatever_its_last_word_is() {
        let listed = |kinds: &[&str]| {
            let folder = folder(&POOLED, &[]);
            let list: Vec<_> =
                kinds.iter().map(|kind| serde_json::json!({"path": "1_Pooling", "type": kind})).collect();
            fs_err::write(folder.path().join("modules.json"), serde_json::json!(list).to_string()).expect("written");
            folder
        };
        let (own, other) = ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "custom_st.Pooling");
        assert_eq!(
            read(listed(&["custom_st.Transformer", own]).path(), None).expect("known").pooling,
            Some(Pooling::Mean)
        );
        assert!(refusal(&listed(&["custom_st.Transformer", other])).contains("`1_Pooling` (custom_st.Pooling)"));
        assert!(refusal(&listed(&[own, "custom_st.Normalize"])).contains("(custom_st.Normalize)"));
        assert!(refusal(&listed(&[own, "custom_st.Dense"])).contains("(custom_st.Dense)"));
        let said = read(listed(&["custom_st.Transformer", other]).path(), Some(Pooling::Cls)).expect("it is set");
        assert_eq!(said.pooling, Some(Pooling::Cls));
    }

    #[test]
    fn a_pooling_that_is_set_stands_for_one_that_granary_does_not_have() {
        for config in [
            r#"{"pooling_mode": "weightedmean"}"#,
            r#"{"pooling_mode": ["cls", "mean"]}"#,
            r#"{"pooling_mode": "mean", "include_prompt": false}"#,
            r#"{"include_prompt": false}"#,
        ] {
            for modules in [POOLED.as_slice(), &[]] {
                let folder = folder(modules, &[]);
                if modules.is_empty() {
                    fs_err::remove_file(folder.path().join("modules.json")).expect("removed");
                }
                fs_err::write(folder.path().join("1_Pooling/config.json"), config).expect("written");
                assert!(read(folder.path(), None).is_err(), "{config}");
                let said = read(folder.path(), Some(Pooling::Max)).expect(config);
                assert_eq!(said.pooling, Some(Pooling::Max), "{config}");
            }
        }
    }

    #[test]
    fn a_pooling_has_its_name_in_each_spelling() {
        for (config, pooling) in [
            (r#"{"pooling_mode": "mean", "include_prompt": true}"#, Some(Pooling::Mean)),
            (r#"{"pooling_mode": ["max"], "include_prompt": null}"#, Some(Pooling::Max)),
            (r#"{"pooling_mode": "mean_sqrt_len_tokens"}"#, Some(Pooling::MeanSqrtLen)),
            (r#"{"pooling_mode_mean_sqrt_len_tokens": true}"#, Some(Pooling::MeanSqrtLen)),
            (r#"{"pooling_mode": "lasttoken", "include_prompt": false}"#, Some(Pooling::LastToken)),
            (r#"{"pooling_mode": null, "pooling_mode_cls_token": true}"#, Some(Pooling::Cls)),
            (r#"{"pooling_mode_mean_tokens": 0, "pooling_mode_cls_token": 1}"#, Some(Pooling::Cls)),
            (r#"{"pooling_mode_mean_tokens": "", "pooling_mode_max_tokens": "yes"}"#, Some(Pooling::Max)),
            ("{}", Some(Pooling::Mean)),
            (r#"{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": false}"#, Some(Pooling::Mean)),
        ] {
            let folder = folder(&POOLED, &[]);
            fs_err::write(folder.path().join("1_Pooling/config.json"), config).expect("written");
            assert_eq!(read(folder.path(), None).expect("well formed").pooling, pooling, "{config}");
        }
    }

    #[test]
    fn dense_layers_that_cannot_be_used_are_refused_with_the_reason() {
        let (good, softmax) = (config(2, 2, "linear.Identity"), config(2, 2, "activation.Softmax"));
        let (zeros, integers) = (zeros(Dtype::F32, 4), zeros(Dtype::I64, 8));
        let of_tokens = br#"{"in_features": 2, "out_features": 2, "activation_function": "x.Tanh", "module_input_name": "token_embeddings"}"#;
        let no_bias = br#"{"in_features": 2, "out_features": 2, "bias": false, "activation_function": "x.Tanh"}"#;
        let wide = config(3, 2, "linear.Identity");
        let residual = br#"{"in_features": 2, "out_features": 2, "use_residual": true}"#;
        let cases: [(&[u8], &str, &[u8], &str); 10] = [
            (residual, WEIGHTS, &zeros, "`use_residual`"),
            (&softmax, WEIGHTS, &zeros, "the activation `torch.nn.modules.activation.Softmax`"),
            (of_tokens, WEIGHTS, &zeros, "a Dense module on `token_embeddings`"),
            (&good, PICKLED_WEIGHTS, &zeros, "Python pickle"),
            (&good, "other.bin", &zeros, "weights is missing"),
            (&good, WEIGHTS, b"none", "not a whole safetensors file"),
            (&good, WEIGHTS, &zeros[..zeros.len() - 1], "not a whole safetensors file"),
            (&good, WEIGHTS, &integers, "holds I64"),
            (&wide, WEIGHTS, &zeros, "has the shape [2, 2], and config.json makes it [2, 3]"),
            (no_bias, WEIGHTS, &zeros, "config.json says that there is no bias"),
        ];
        for (config, file, content, named) in cases {
            let weights = format!("2_Dense/{file}");
            let files = [("2_Dense/config.json", config), (&weights, content)];
            let refused = refusal(&folder(&[&POOLED[..], &[("2_Dense", "Dense")]].concat(), &files));
            assert!(refused.contains(named) && refused.contains("2_Dense"), "{refused}");
        }
        let files: [(&str, &[u8]); 2] = [("2_Dense/config.json", &wide), ("2_Dense/model.safetensors", &zeros)];
        let twice = [&POOLED[..], &[("2_Dense", "Dense"), ("2_Dense", "Dense")]].concat();
        assert!(refusal(&folder(&twice, &files)).contains("makes vectors of 2 numbers, and the next one takes 3"));
    }
}
