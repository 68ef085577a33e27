#!/usr/bin/env python3
"""Writes a tiny decoder with random weights as an ONNX model folder, in the forms in which decoders that embed are exported.

The architecture is that of Qwen3: rotary positions, fewer heads of keys than of queries, a norm over each head, and gated
layers behind attention. A token sees those before it, and the last one stands for the text. Exporters of such models leave
it to the caller to say where a token stands (`--positions`) and what came before the first one (`--past`); some compute in
half precision (`--half`) or give vectors in it (`--bfloat16-output`), and some merge attention into one operator of ONNX Runtime's own (`--fused`). All forms of one
seed make the same vectors but for rounding.

The same arguments give the same bytes on every machine, as those of write_onnx.py do.
"""

import argparse
import math
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # no __pycache__ beside the scripts
import numpy as np
import onnx
from onnx import TensorProto, helper
from write_onnx import IR_VERSION, MASKED_SCORE, OPSET, Graph, RandomWeights, tiny_tokenizer, tiny_vocabulary, write_json

CONFIG = {
    "architectures": ["Qwen3Model"], "model_type": "qwen3", "hidden_act": "silu", "hidden_size": 32, "head_dim": 16,
    "intermediate_size": 64, "max_position_embeddings": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": len(tiny_vocabulary()),
}  # fmt: skip


class Decoder:
    """The graph of a decoder, written node by node."""

    def __init__(self, weights, options):
        self.graph, self.weights, self.options = Graph(None), weights, options
        self.kind = np.float16 if options.half else np.float32
        self.onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.kind))

    def op(self, kind, *inputs, **attributes):
        return self.graph.op(kind, *inputs, **attributes)

    def number(self, value):
        return self.graph.constant(value, self.kind)

    def sizes(self, *values):
        return self.graph.constant(values, np.int64)

    def weight(self, name, shape, turned=False):
        array = self.weights.get(f"{name}.weight", shape).astype(self.kind)
        return self.graph.tensor(f"{name}.weight", array.T if turned else array)

    def norm(self, x, name, size):
        mean = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.number(CONFIG["rms_norm_eps"])))
        weight = self.graph.tensor(f"{name}.weight", norm_weight(self.weights, name, size).astype(self.kind))
        return self.op("Mul", self.op("Div", x, root), weight)

    def linear(self, x, name, size_in, size_out):
        return self.op("MatMul", x, self.weight(name, (size_out, size_in), turned=True))

    def by_head(self, x, n_heads):
        return self.op("Reshape", x, self.sizes(0, 0, n_heads, CONFIG["head_dim"]))

    def rotate(self, x, cosines, sines):
        """`x` is `[batch][heads][sequence][head]`; one half of a head is turned against the other."""
        half = CONFIG["head_dim"] // 2
        first = self.op("Slice", x, self.sizes(0), self.sizes(half), self.sizes(3))
        second = self.op("Slice", x, self.sizes(half), self.sizes(2 * half), self.sizes(3))
        left = self.op("Sub", self.op("Mul", first, cosines), self.op("Mul", second, sines))
        right = self.op("Add", self.op("Mul", second, cosines), self.op("Mul", first, sines))
        return self.op("Concat", left, right, axis=3)

    def repeat(self, x):
        """Each head of keys or values serves several of queries."""
        times = CONFIG["num_attention_heads"] // CONFIG["num_key_value_heads"]
        wide = self.op("Concat", *[self.op("Unsqueeze", x, self.sizes(2))] * times, axis=2)
        return self.op("Reshape", wide, self.sizes(0, CONFIG["num_attention_heads"], -1, CONFIG["head_dim"]))

    def tables(self):
        """The cosine and the sine of each position's angles, `[positions][head / 2]`."""
        half = CONFIG["head_dim"] // 2
        angles = np.arange(CONFIG["max_position_embeddings"])[:, None] / CONFIG["rope_theta"] ** (np.arange(half) / half)
        cosines, sines = (np.round(f(angles), 6).astype(self.kind) for f in (np.cos, np.sin))
        return self.graph.tensor("cosines", cosines), self.graph.tensor("sines", sines)

    def length(self, name, axis):
        return self.op("Gather", self.op("Shape", name), self.graph.constant(axis, np.int64), axis=0)

    def mask(self):
        """`[batch][1][sequence][all]`: 0 where a token is seen."""
        length, total = self.length("input_ids", 1), self.length("attention_mask", 1)
        zero, one = self.graph.constant(0, np.int64), self.graph.constant(1, np.int64)
        rows = self.op("Unsqueeze", self.op("Range", self.op("Sub", total, length), total, one), self.sizes(1))
        columns = self.op("Unsqueeze", self.op("Range", zero, total, one), self.sizes(0))
        seen = self.op("LessOrEqual", columns, rows)
        kept = self.op("Cast", self.op("Unsqueeze", "attention_mask", self.sizes(1, 2)), to=TensorProto.BOOL)
        return self.op("Where", self.op("And", seen, kept), self.number(0.0), self.number(MASKED_SCORE))

    def attention(self, name, query, key, value, shared):
        """Unfused; all are `[batch][sequence][heads][head]`. Returns what comes of it, and all keys and values."""
        cosines, sines, mask, past = shared
        query, key, value = (self.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (query, key, value))
        query, key = self.rotate(query, cosines, sines), self.rotate(key, cosines, sines)
        if past:
            key, value = self.op("Concat", past[0], key, axis=2), self.op("Concat", past[1], value, axis=2)
        turned = self.op("Transpose", self.repeat(key), perm=[0, 1, 3, 2])
        scores = self.op("Div", self.op("MatMul", query, turned), self.number(math.sqrt(CONFIG["head_dim"])))
        shares = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        y = self.op("Transpose", self.op("MatMul", shares, self.repeat(value)), perm=[0, 2, 1, 3])
        return self.op("Reshape", y, self.sizes(0, 0, -1)), key, value

    def fused_attention(self, name, query, key, value, shared):
        cosines, sines, (last, total), past = shared
        joined = [self.op("Reshape", x, self.sizes(0, 0, -1)) for x in (query, key, value)]
        outputs = [f"{name}.{part}" for part in ("attention", "key", "value")]
        node = helper.make_node(
            "GroupQueryAttention", [*joined, *past, last, total, cosines, sines], outputs, name=f"{name}.attention",
            domain="com.microsoft", num_heads=CONFIG["num_attention_heads"], kv_num_heads=CONFIG["num_key_value_heads"],
            do_rotary=1,
        )  # fmt: skip
        self.graph.nodes.append(node)
        return outputs

    def add(self, past):
        """Adds everything; returns the hidden state and all keys and values of each layer."""
        hidden, heads, key_heads = (CONFIG[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
        head = CONFIG["head_dim"]
        self.graph.scope = "shared"
        cosines, sines = self.tables()
        attend = self.fused_attention if self.options.fused else self.attention
        if self.options.fused:
            counts = self.op("Cast", self.op("ReduceSum", "attention_mask", self.sizes(1), keepdims=0), to=TensorProto.INT32)
            last = self.op("Sub", counts, self.graph.constant(1, np.int32))
            shared = (last, self.op("Cast", self.length("attention_mask", 1), to=TensorProto.INT32))
        else:
            if self.options.positions:
                places = "position_ids"
            else:
                total = self.length("input_ids", 1)
                places = self.op("Range", self.graph.constant(0, np.int64), total, self.graph.constant(1, np.int64))
                places = self.op("Unsqueeze", places, self.sizes(0))
            cosines, sines = (self.op("Unsqueeze", self.op("Gather", t, places), self.sizes(1)) for t in (cosines, sines))
            shared = self.mask()
        x = self.op("Gather", self.weight("embed_tokens", (CONFIG["vocab_size"], hidden)), "input_ids", axis=0)
        present = []
        for layer in range(CONFIG["num_hidden_layers"]):
            self.graph.scope = name = f"layers.{layer}"
            y = self.norm(x, f"{name}.input_layernorm", hidden)
            part = f"{name}.self_attn"
            query = self.by_head(self.linear(y, f"{part}.q_proj", hidden, heads * head), heads)
            key = self.by_head(self.linear(y, f"{part}.k_proj", hidden, key_heads * head), key_heads)
            value = self.by_head(self.linear(y, f"{part}.v_proj", hidden, key_heads * head), key_heads)
            query, key = self.norm(query, f"{part}.q_norm", head), self.norm(key, f"{part}.k_norm", head)
            of_layer = past[2 * layer : 2 * layer + 2]
            y, key, value = attend(name, query, key, value, (cosines, sines, shared, of_layer))
            present += [key, value]
            x = self.op("Add", x, self.linear(y, f"{part}.o_proj", heads * head, hidden))
            y = self.norm(x, f"{name}.post_attention_layernorm", hidden)
            gate = self.linear(y, f"{name}.mlp.gate_proj", hidden, CONFIG["intermediate_size"])
            gate = self.op("Mul", gate, self.op("Sigmoid", gate))
            y = self.op("Mul", gate, self.linear(y, f"{name}.mlp.up_proj", hidden, CONFIG["intermediate_size"]))
            x = self.op("Add", x, self.linear(y, f"{name}.mlp.down_proj", CONFIG["intermediate_size"], hidden))
        self.graph.scope = "end"
        return self.norm(x, "norm", hidden), present


def norm_weight(weights, name, size):
    """Near 1, and another for each place."""
    return weights.get(f"{name}.LayerNorm.weight", (size,))


def write_model(path, weights, options):
    path.parent.mkdir(parents=True, exist_ok=True)
    decoder = Decoder(weights, options)
    layers = [f"{layer}.{part}" for layer in range(CONFIG["num_hidden_layers"]) for part in ("key", "value")]
    past = [f"past_key_values.{name}" for name in layers] if options.past else []
    hidden, present = decoder.add(past)
    output_kind = TensorProto.BFLOAT16 if options.bfloat16_output else decoder.onnx_kind
    if output_kind != decoder.onnx_kind:
        hidden = decoder.op("Cast", hidden, to=output_kind)

    def info(name, kind, *shape):
        return helper.make_tensor_value_info(name, kind, ["batch_size", *shape])

    names = ["input_ids", "attention_mask", *["position_ids"] * options.positions]
    lengths = {"attention_mask": "past_sequence_length + sequence_length"} if past else {}
    inputs = [info(name, TensorProto.INT64, lengths.get(name, "sequence_length")) for name in names]
    sizes = [CONFIG["num_key_value_heads"], "past_sequence_length", CONFIG["head_dim"]]
    inputs += [info(name, decoder.onnx_kind, *sizes) for name in past]
    outputs = [info("last_hidden_state", output_kind, "sequence_length", CONFIG["hidden_size"])]
    renamed = {hidden: "last_hidden_state"}
    if past:
        sizes[1] = "past_sequence_length + sequence_length"
        outputs += [info(f"present.{name}", decoder.onnx_kind, *sizes) for name in layers]
        renamed |= dict(zip(present, (f"present.{name}" for name in layers)))
    for node in decoder.graph.nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    proto = helper.make_graph(decoder.graph.nodes, "decoder", inputs, outputs, initializer=decoder.graph.tensors)
    opsets = [helper.make_opsetid("", OPSET), *[helper.make_opsetid("com.microsoft", 1)] * options.fused]
    model = helper.make_model(proto, producer_name="granary", ir_version=IR_VERSION, opset_imports=opsets)
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Writes a tiny decoder with random weights as an ONNX model folder.")
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="the model folder to write; made if it is not there")
    add("--seed", type=int, default=0, help="the seed of the weights (default 0)")
    add("--positions", action="store_true", help="take position_ids instead of counting tokens in the graph")
    add("--past", action="store_true", help="take the keys and values of earlier tokens, past_key_values.N.key and .value")
    add("--half", action="store_true", help="weights, keys, values and the output in float16")
    add("--bfloat16-output", action="store_true", help="the output in bfloat16")
    add("--fused", action="store_true", help="attention as the operator GroupQueryAttention; needs --past")
    options = parser.parse_args(arguments)
    if options.fused and not options.past:
        sys.exit("write_decoder: --fused needs --past.")
    folder = options.out
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer.json", tiny_tokenizer())
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": CONFIG["max_position_embeddings"]})
    write_json(folder / "1_Pooling/config.json", {"embedding_dimension": CONFIG["hidden_size"], "pooling_mode": "lasttoken"})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    write_json(folder / "modules.json", listed)
    write_model(folder / "onnx/model.onnx", RandomWeights(options.seed), options)


if __name__ == "__main__":
    main()
