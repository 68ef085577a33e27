#!/usr/bin/env python3
"""Writes a BERT-architecture encoder as a plain ONNX model folder.

The weights come from a Hugging Face folder (`--from FOLDER`, safetensors, or one that this tool wrote) or are drawn from a
seed (`--random bert-base`, `--random tiny`: a true architecture whose vectors mean nothing, for tests). The folder written is
the ordinary Hugging Face layout: `onnx/model.onnx`, its weights beside it in `model.onnx_data`, `tokenizer.json`,
`config.json`, `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`, and the folders of dense layers behind
pooling.

The graph holds standard operators of opset 17 only, unfused: ONNX Runtime's CPU kernels and the OpenVINO execution provider
each fuse what they like, and measured the same within noise for every hand-made variation tried (merged QKV, Gemm, the Gelu
operator, decomposed LayerNormalization, the attention scale folded into the query weights). Its output is the last hidden
state; pooling and normalisation belong to the server, which reads them from the folder. Batch and sequence are dynamic.

The same arguments give the same bytes on every machine: tensors are written in a fixed order, nothing depends on the time,
the path or the processor, and random weights use integer arithmetic and one rounding.
"""

import argparse
import json
import math
import shutil
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors import safe_open
from safetensors.numpy import save as as_safetensors

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # the one that came with opset 17: any runtime since 2022 reads it

# Added to the attention score of a padding token. The lowest half-precision number: finite in every type a provider may
# compute in, where the usual float32 minimum rounds to minus infinity in bf16, and a softmax over those is NaN.
MASKED_SCORE = -65504.0

# Tensors of at least this size go to model.onnx_data, where the runtime maps them; the others stay in model.onnx.
EXTERNAL_MIN_BYTES = 64 * 1024
PAGE_BYTES = 4096  # external tensors start on a page, so that they can be mapped

# What a model folder holds besides weights; copied where the source has it. The README is the model card with the licence.
SIDE_FILES = [
    "README.md", "config.json", "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json",
]  # fmt: skip

POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
}

ARCHITECTURES = {
    "bert-base": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 512, "vocab_size": 30522,
    },
    "tiny": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
        "max_position_embeddings": 128, "vocab_size": 0,  # taken from TINY_VOCABULARY
    },
}  # fmt: skip

TINY_WORDS = """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what all
were we when your can said there use an each which she do how their if will up other about out many then them these so some
her would make like him into time has look two more write go see number no way could people my than first water been call who
oil its now find long down day did get come made may part hello world text model vector search query document cat dog house
tree river city music book light night green red blue old new good bad small large fast slow quick brown fox jumps over lazy
grain granary store seed field bread bank money price market rain sun snow wind engine machine learn question answer error
""".split()
TINY_ENDINGS = "s es ed ing er ers est ly al ion tion ness ment able ful en on an in re th st".split()


class Refusal(Exception):
    """An input or a combination of options that cannot be written, as one sentence."""


# --- weights -------------------------------------------------------------------------------------------------------------


class FolderWeights:
    """The float32 tensors of `model.safetensors`, read one at a time, or else of an `onnx/model.onnx` that this tool wrote."""

    def __init__(self, folder):
        path, written = folder / "model.safetensors", folder / "onnx/model.onnx"
        if path.is_file():
            self._file = safe_open(path, framework="np")
            # A model saved with a task's head keeps its encoder under `bert.`.
            names = {name.removeprefix("bert."): name for name in self._file.keys()}
            self._read = {name: partial(self._file.get_tensor, saved) for name, saved in names.items()}
        elif written.is_file():
            # onnx itself refuses to read data of which there is a hard link, as scripts/setup-bench makes.
            tensors = onnx.load(written, load_external_data=False).graph.initializer
            self._read = {tensor.name: partial(self._of_graph, tensor, written.parent) for tensor in tensors}
        else:
            raise Refusal(f"{folder} has neither model.safetensors nor onnx/model.onnx to read weights from.")

    @staticmethod
    def _of_graph(tensor, folder):
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            count, offset = math.prod(tensor.dims), int(place["offset"])
            array = np.fromfile(folder / place["location"], "<f4", count, offset=offset).reshape(tensor.dims)
        else:
            array = onnx.numpy_helper.to_array(tensor)
        # `linear` stores matrices as [in][out]; the tables of embeddings stand as they are.
        return array.T if array.ndim == 2 and tensor.name.startswith("encoder.") else array

    def get(self, name, shape):
        if name not in self._read:
            raise Refusal(f"the weights have no tensor `{name}`: it is not a BERT encoder.")
        array = self._read[name]()
        # A table may have more rows than are asked for (--vocab-rows); nothing else may differ.
        if array.shape[1:] != shape[1:] or array.shape[0] < shape[0]:
            raise Refusal(f"tensor `{name}` has shape {list(array.shape)}; config.json makes it {list(shape)}.")
        return array[: shape[0]].astype(np.float32, copy=False)


class WithBrokenToken:
    """Weights in which the embedding of one token is not a number, so that no text with the token can be embedded."""

    def __init__(self, weights, token_id):
        self._weights, self._token_id = weights, token_id

    def get(self, name, shape):
        array = self._weights.get(name, shape)
        if name.endswith("word_embeddings.weight"):
            array = array.copy()
            array[self._token_id] = np.nan
        return array


class RandomWeights:
    """Tensors drawn from a seed; one depends on the seed, its name and its shape alone, so a cut model keeps its layers.

    The spread keeps activations near unit size (1/sqrt(inputs) for a matrix) and lets words outweigh what all texts share
    (positions, types, biases): vectors of different texts stay well apart after twelve layers.
    """

    def __init__(self, seed):
        self._seed = seed

    def get(self, name, shape):
        if name.endswith("LayerNorm.weight"):
            return self._uniform(name, shape, 0.1) + np.float32(1.0)
        if name.endswith("word_embeddings.weight"):
            return self._uniform(name, shape, 1.0)
        if name.endswith("position_embeddings.weight"):
            return self._uniform(name, shape, 0.2)
        if name.endswith(("token_type_embeddings.weight", "bias")):
            return self._uniform(name, shape, 0.05)
        return self._uniform(name, shape, 1.0 / math.sqrt(shape[1]))

    def _uniform(self, name, shape, deviation):
        # PCG64's raw stream is fixed for all versions and machines; the distributions NumPy derives from it are not.
        source = np.random.PCG64(np.random.SeedSequence([self._seed, zlib.crc32(name.encode())]))
        count = math.prod(shape)
        bits = source.random_raw((count + 1) // 2).view(np.uint32)[:count]
        bits >>= 8
        values = bits.astype(np.float32)
        values -= np.float32(2**23)
        values *= np.float32(deviation * math.sqrt(3.0) / 2**23)
        return values.reshape(shape)


# --- the graph -----------------------------------------------------------------------------------------------------------


class Graph:
    """Collects nodes and tensors; large tensors go straight to `data_file` (None: all stay in the model)."""

    def __init__(self, data_file):
        self.nodes, self.tensors = [], []
        self._data_file = data_file
        self._known = set()
        self.scope = ""

    def op(self, kind, *inputs, **attributes):
        """Adds a node with one output and returns the output's name."""
        output = f"{self.scope}.{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, values, dtype):
        array = np.array(values, dtype)
        name = f"constant.{array.dtype.name}.{'x'.join(map(str, array.flat))}.{array.ndim}"
        return self.tensor(name, array)

    def tensor(self, name, array):
        """Adds an initializer, once under each name, and returns the name."""
        if name in self._known:
            return name
        self._known.add(name)
        proto = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        if self._data_file is not None and array.nbytes >= EXTERNAL_MIN_BYTES:
            self._data_file.write(b"\0" * (-self._data_file.tell() % PAGE_BYTES))
            proto.data_location = TensorProto.EXTERNAL
            location = Path(self._data_file.name).name
            for key, value in (("location", location), ("offset", self._data_file.tell()), ("length", array.nbytes)):
                proto.external_data.add(key=key, value=str(value))
            self._data_file.write(array.data)
        else:
            proto.raw_data = array.tobytes()
        self.tensors.append(proto)
        return name


def add_encoder(graph, config, weights, with_types):
    """Adds the encoder; returns the name of its hidden state, `[batch][sequence][hidden_size]`."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_size = hidden // heads

    def norm(x, name):
        scale = graph.tensor(f"{name}.weight", weights.get(f"{name}.weight", (hidden,)))
        bias = graph.tensor(f"{name}.bias", weights.get(f"{name}.bias", (hidden,)))
        return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=config["layer_norm_eps"])

    def linear(x, name, size_in, size_out):
        # Stored as [in][out], the order MatMul multiplies in.
        weight = graph.tensor(f"{name}.weight", weights.get(f"{name}.weight", (size_out, size_in)).T)
        bias = graph.tensor(f"{name}.bias", weights.get(f"{name}.bias", (size_out,)))
        return graph.op("Add", graph.op("MatMul", x, weight), bias)

    split = graph.constant([0, 0, heads, head_size], np.int64)  # 0 keeps a dimension
    join = graph.constant([0, 0, hidden], np.int64)

    def by_head(x, name, order):
        return graph.op("Transpose", graph.op("Reshape", linear(x, name, hidden, hidden), split), perm=order)

    def gelu(x):
        erf = graph.op("Erf", graph.op("Div", x, graph.constant(math.sqrt(2.0), np.float32)))
        gate = graph.op("Add", erf, graph.constant(1.0, np.float32))
        return graph.op("Mul", graph.op("Mul", x, gate), graph.constant(0.5, np.float32))

    graph.scope = "embeddings"
    table = {
        name: graph.tensor(f"embeddings.{name}.weight", weights.get(f"embeddings.{name}.weight", (config[rows], hidden)))
        for name, rows in [
            ("word_embeddings", "vocab_size"),
            ("position_embeddings", "max_position_embeddings"),
            ("token_type_embeddings", "type_vocab_size"),
        ]
    }
    zero, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
    length = graph.op("Gather", graph.op("Shape", "input_ids"), one, axis=0)
    positions = graph.op("Slice", table["position_embeddings"], zero, length, zero)
    # A graph without the input adds the row that an input of zeros would choose.
    types = graph.op("Gather", table["token_type_embeddings"], "token_type_ids" if with_types else zero, axis=0)
    words = graph.op("Gather", table["word_embeddings"], "input_ids", axis=0)
    x = norm(graph.op("Add", graph.op("Add", words, types), positions), "embeddings.LayerNorm")

    graph.scope = "mask"  # [batch][1][1][sequence]: 0 for a token, MASKED_SCORE for padding
    kept = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    kept = graph.op("Unsqueeze", kept, graph.constant([1, 2], np.int64))
    dropped = graph.op("Sub", graph.constant(1.0, np.float32), kept)
    mask = graph.op("Mul", dropped, graph.constant(MASKED_SCORE, np.float32))

    for layer in range(config["num_hidden_layers"]):
        graph.scope = name = f"encoder.layer.{layer}"
        query = by_head(x, f"{name}.attention.self.query", [0, 2, 1, 3])
        key = by_head(x, f"{name}.attention.self.key", [0, 2, 3, 1])
        value = by_head(x, f"{name}.attention.self.value", [0, 2, 1, 3])
        scores = graph.op("MatMul", query, key)
        scores = graph.op("Div", scores, graph.constant(math.sqrt(head_size), np.float32))
        shares = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
        y = graph.op("Transpose", graph.op("MatMul", shares, value), perm=[0, 2, 1, 3])
        y = graph.op("Reshape", y, join)
        y = linear(y, f"{name}.attention.output.dense", hidden, hidden)
        x = norm(graph.op("Add", y, x), f"{name}.attention.output.LayerNorm")

        y = gelu(linear(x, f"{name}.intermediate.dense", hidden, config["intermediate_size"]))
        y = linear(y, f"{name}.output.dense", config["intermediate_size"], hidden)
        x = norm(graph.op("Add", y, x), f"{name}.output.LayerNorm")
    return x


def add_sentence_embedding(graph, x, normalize):
    """Adds mean pooling and, if asked, L2 normalisation; returns the name of the `[batch][hidden_size]` result."""
    graph.scope = "pooling"
    axis = graph.constant([1], np.int64)
    mask = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    kept = graph.op("Mul", x, graph.op("Unsqueeze", mask, graph.constant([2], np.int64)))
    total = graph.op("ReduceSum", kept, axis, keepdims=0)
    count = graph.op("Max", graph.op("ReduceSum", mask, axis, keepdims=1), graph.constant(1e-9, np.float32))
    mean = graph.op("Div", total, count)
    if not normalize:
        return mean
    norm = graph.op("ReduceL2", mean, axes=[1], keepdims=1)
    return graph.op("Div", mean, graph.op("Max", norm, graph.constant(1e-12, np.float32)))


def write_model(path, config, weights, options):
    """Writes `path` (a `.onnx` file) and, unless `options.inline`, the `.onnx_data` file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data_file = None if options.inline else open(path.with_name(path.name + "_data"), "wb")
    graph = Graph(data_file)
    result = add_encoder(graph, config, weights, with_types=options.token_type_ids)
    shape, name = ["batch", "sequence", config["hidden_size"]], options.output
    if options.logits:
        graph.scope, name, shape[2] = "head", "logits", config["vocab_size"]
        result = graph.op("MatMul", result, graph.op("Transpose", "embeddings.word_embeddings.weight", perm=[1, 0]))
    elif options.output == "sentence_embedding":
        result, shape = add_sentence_embedding(graph, result, options.normalize), ["batch", config["hidden_size"]]
    graph.nodes[-1].output[0] = name  # the result is the last node's
    if data_file is not None:
        data_file.close()

    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * options.token_type_ids
    proto = helper.make_graph(
        graph.nodes,
        "encoder",
        [helper.make_tensor_value_info(input, TensorProto.INT64, ["batch", "sequence"]) for input in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        initializer=graph.tensors,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, producer_name="granary", ir_version=IR_VERSION, opset_imports=opsets)
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))  # by path, so that it finds the external data


# --- the files around it -------------------------------------------------------------------------------------------------


def tiny_vocabulary():
    """Special tokens, every printable ASCII character and its `##` form, so that ASCII text always has tokens, and words."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *("##" + c for c in characters)]
    tokens += [*TINY_WORDS, *("##" + ending for ending in TINY_ENDINGS)]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def tiny_tokenizer():
    """A word-piece `tokenizer.json` over `tiny_vocabulary`, with the rules of bert-base-uncased."""
    vocabulary = tiny_vocabulary()
    special = [token for token in vocabulary if token.startswith("[") and len(token) > 1]

    def piece(name, type_id):
        kind = "SpecialToken" if name in special else "Sequence"
        return {kind: {"id": name, "type_id": type_id}}

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for token in special
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[CLS]", 0), piece("A", 0), piece("[SEP]", 0)],
            "pair": [piece("[CLS]", 0), piece("A", 0), piece("[SEP]", 0), piece("B", 1), piece("[SEP]", 1)],
            "special_tokens": {t: {"id": t, "ids": [vocabulary[t]], "tokens": [t]} for t in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    }  # fmt: skip


def random_config(name):
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2, **ARCHITECTURES[name],
    }  # fmt: skip
    if name == "tiny":
        config["vocab_size"] = len(tiny_vocabulary())
    return config


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_modules(folder, dimensions, options, weights):
    """Writes what sentence-transformers reads: the list of modules, and the files of the pooling and the dense ones."""
    flags = {flag: mode == options.pooling for mode, flag in POOLING_FLAGS.items()}
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": dimensions, **flags})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for size, activation in options.dense:
        name = f"{len(modules)}_Dense"
        tensors = {
            "linear.weight": weights.get(f"{name}.linear.weight", (size, dimensions)),
            "linear.bias": weights.get(f"{name}.linear.bias", (size,)),
        }
        write_dense(folder / name, tensors, activation)
        modules.append((name, "Dense"))
        dimensions = size
    if options.dense_from:
        tensors = {name: read_tensor(options.dense_from, name) for name in ("linear.weight", "linear.bias")}
        if tensors["linear.weight"].shape[1:] != (dimensions,):
            raise Refusal(f"{options.dense_from} holds no layer that takes {dimensions} numbers.")
        name = f"{len(modules)}_Dense"
        write_dense(folder / name, tensors, "identity")
        modules.append((name, "Dense"))
    if options.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
    )


def write_dense(folder, tensors, activation):
    """Writes a dense layer with a bias; `linear.weight` is `[out][in]`."""
    size_out, size_in = tensors["linear.weight"].shape
    config = {"in_features": size_in, "out_features": size_out, "bias": True}
    write_json(folder / "config.json", {**config, "activation_function": ACTIVATIONS[activation]})
    (folder / "model.safetensors").write_bytes(as_safetensors(tensors))


def read_tensor(path, name):
    with safe_open(path, framework="np") as file:
        return file.get_tensor(name)


def dense_layer(text):
    """Reads `OUT[:ACTIVATION]`."""
    size, _, activation = text.partition(":")
    activation = activation.lower() or "identity"
    if not size.isdecimal() or int(size) == 0 or activation not in ACTIVATIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is not OUT[:ACTIVATION], with one of {', '.join(ACTIVATIONS)}")
    return int(size), activation


def parse(arguments):
    parser = argparse.ArgumentParser(description="Writes a BERT-architecture encoder as a plain ONNX model folder.")
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="the model folder to write; made if it is not there")

    source = parser.add_mutually_exclusive_group(required=True).add_argument
    source("--from", dest="source", type=Path, metavar="FOLDER",
           help="a folder with config.json and model.safetensors, or else one that this tool wrote")
    source("--random", choices=sorted(ARCHITECTURES), help="draw the weights of this architecture")
    add("--seed", type=int, default=0, help="the seed of --random (default 0)")
    add("--tokenizer", type=Path, help="the tokenizer.json to copy; --random bert-base needs it")

    add("--layers", type=int, metavar="N", help="keep the first N layers only")
    add("--vocab-rows", type=int, metavar="N",
        help="keep the first N word vectors, but all of the tokenizer: a model that does not fit its tokenizer")
    add("--pooling", choices=[*POOLING_FLAGS, "none"],
        help="what 1_Pooling says; none leaves out it and modules.json (default: the source's, or mean)")
    add("--normalize", action="store_true",
        help="with a pooling, list a Normalize module; with --output sentence_embedding, normalise in the graph too")
    add("--dense", action="append", type=dense_layer, default=[], metavar="OUT[:ACTIVATION]",
        help="with --random, put a dense layer behind pooling; may be repeated (default activation: identity)")
    add("--dense-from", type=Path, metavar="FILE",
        help="put the dense layer of this safetensors file (linear.weight, linear.bias) behind pooling; needs --pooling")
    add("--output", default="last_hidden_state", metavar="NAME",
        help="the output's name; sentence_embedding is pooled (mean) in the graph (default last_hidden_state)")
    add("--broken-token", metavar="TOKEN", help="make the embedding of this token not a number, to try what fails then")
    add("--logits", action="store_true", help="output vocabulary logits, and nothing else")
    add("--no-token-type-ids", dest="token_type_ids", action="store_false", help="leave out the input token_type_ids")

    place = parser.add_mutually_exclusive_group().add_argument
    place("--external-data", dest="inline", action="store_false", default=False,
          help="large weights in model.onnx_data, mapped at load (default)")
    place("--inline", action="store_true", help="all weights inside model.onnx")
    add("--flat", action="store_true", help="model.onnx at the folder's root instead of onnx/")
    return parser.parse_args(arguments)  # fmt: skip


def main(arguments=None):
    options = parse(arguments)
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)

    if options.dense and (options.source or options.pooling == "none"):
        raise Refusal("--dense draws weights and stands behind pooling: it needs --random and a --pooling.")
    if options.dense_from and options.pooling in (None, "none"):
        raise Refusal("--dense-from stands behind pooling: it needs a --pooling.")
    if options.source:
        for name in SIDE_FILES:
            if (options.source / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(options.source / name, folder / name)
        config = json.loads((options.source / "config.json").read_text(encoding="utf-8"))
        weights = FolderWeights(options.source)
    else:
        config = random_config(options.random)
        weights = RandomWeights(options.seed)
        options.pooling = options.pooling or "mean"
        length = {"do_lower_case": False, "max_seq_length": config["max_position_embeddings"]}
        write_json(folder / "sentence_bert_config.json", length)
        if options.random == "tiny":
            write_json(folder / "tokenizer.json", tiny_tokenizer())
    if options.tokenizer:
        shutil.copyfile(options.tokenizer, folder / "tokenizer.json")
    elif options.random == "bert-base":
        raise Refusal("--random bert-base needs --tokenizer, a tokenizer.json of bert-base-uncased.")

    if options.broken_token:
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        if options.broken_token not in vocabulary:
            raise Refusal(f"the tokenizer has no token {options.broken_token!r}.")
        weights = WithBrokenToken(weights, vocabulary[options.broken_token])

    for key, wanted in [("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")]:
        if config.get(key, wanted) != wanted:
            raise Refusal(f"config.json says {key} = {config[key]!r}; only {wanted!r} can be written.")
    changed = dict(config)
    for key, value in [("num_hidden_layers", options.layers), ("vocab_size", options.vocab_rows)]:
        if value is not None:
            if not 1 <= value <= config[key]:
                raise Refusal(f"{value} was asked for, but {key} is {config[key]}.")
            changed[key] = value
    if options.random or changed != config:
        write_json(folder / "config.json", changed)
    if options.pooling == "none":
        for name in ("modules.json", "1_Pooling/config.json"):
            (folder / name).unlink(missing_ok=True)
    elif options.pooling:
        write_modules(folder, config["hidden_size"], options, weights)

    write_model(folder / ("model.onnx" if options.flat else "onnx/model.onnx"), changed, weights, options)


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        sys.exit(f"write_onnx: {refusal}")
