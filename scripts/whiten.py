#!/usr/bin/env python3
"""Writes a dense layer that whitens a model's vectors, for `write_onnx.py --dense-from`.

    whiten.py MODEL TEXTS OUT --dimensions 256

MODEL is a model folder that write_onnx.py wrote, with mean pooling. TEXTS is a folder of installed Python packages: the first
paragraphs of their docstrings are real English, and pinned as the packages are. OUT is a safetensors file.

The vectors of the texts, pooled and not normalised, have their mean taken away, are turned to their principal components and
divided by the spread along each; the components of the least spread are left out (Su et al. 2021, "Whitening Sentence
Representations for Better Semantics and Faster Retrieval"). The spread is shrunk towards the average of all components, as a
few thousand texts say little about the smallest.

The encoder is run in NumPy, with the Gelu function's tanh form: exact enough for a covariance. The last bits of the result
depend on the machine's linear algebra, so two machines may differ in the model's space, though not in what it is good for.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save as as_safetensors

sys.dont_write_bytecode = True  # no __pycache__ beside the scripts
from write_onnx import FolderWeights

DOCSTRING = re.compile(r'^ *"""(.+?)(?:\n\s*\n|""")', re.MULTILINE | re.DOTALL)
WORDS = (5, 24)  # of a text
BATCH = 64
SHRINKAGE = 0.1


def texts_of(folder, count):
    """`count` first paragraphs of docstrings, plain ASCII: those whose hashes are smallest, the same on every machine."""
    found = set()
    for path in sorted(folder.rglob("*.py")):
        for match in DOCSTRING.finditer(path.read_text(encoding="utf-8", errors="replace")):
            text = " ".join(match[1].split())
            if text.isascii() and WORDS[0] <= len(text.split()) <= WORDS[1]:
                found.add(text)
    if len(found) < count:
        raise SystemExit(f"whiten: {folder} has {len(found)} texts, and {count} are needed.")
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())[:count]


def token_ids(text, vocabulary):
    """The tokens of an ASCII text as bert-base-uncased's tokenizer has them."""
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", text.lower()):
        pieces, start = [], 0
        while start < len(word) and pieces is not None:
            end = len(word)
            while end > start and ("##" * (start > 0) + word[start:end]) not in vocabulary:
                end -= 1
            pieces = None if end == start else [*pieces, vocabulary["##" * (start > 0) + word[start:end]]]
            start = end
        ids += pieces or [vocabulary["[UNK]"]]
    return [*ids, vocabulary["[SEP]"]]


class Encoder:
    """A BERT encoder in NumPy for batches of one length, which need no mask."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = FolderWeights(folder)
        self.cache = {}

    def tensor(self, name, shape):
        if name not in self.cache:
            self.cache[name] = self.weights.get(name, shape)
        return self.cache[name]

    def linear(self, x, name, size_in, size_out):
        return x @ self.tensor(f"{name}.weight", (size_out, size_in)).T + self.tensor(f"{name}.bias", (size_out,))

    def norm(self, x, name):
        size = self.config["hidden_size"]
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.config["layer_norm_eps"]))
        return x * self.tensor(f"{name}.weight", (size,)) + self.tensor(f"{name}.bias", (size,))

    def pooled(self, ids):
        """The mean of the last hidden state over the tokens: `[n_texts][hidden_size]` of `[n_texts][n_tokens]`."""
        config = self.config
        hidden, heads, inner = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
        table = lambda name, rows: self.tensor(f"embeddings.{name}.weight", (config[rows], hidden))  # noqa: E731
        x = table("word_embeddings", "vocab_size")[ids] + table("token_type_embeddings", "type_vocab_size")[0]
        x = self.norm(x + table("position_embeddings", "max_position_embeddings")[: ids.shape[1]], "embeddings.LayerNorm")
        for layer in range(config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}"
            split = lambda part: (  # noqa: E731
                self.linear(x, f"{name}.attention.self.{part}", hidden, hidden)
                .reshape(*ids.shape, heads, hidden // heads)
                .transpose(0, 2, 1, 3)
            )
            scores = split("query") @ split("key").transpose(0, 1, 3, 2) / np.float32(np.sqrt(hidden // heads))
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            shares /= shares.sum(axis=-1, keepdims=True)
            y = (shares @ split("value")).transpose(0, 2, 1, 3).reshape(*ids.shape, hidden)
            y = self.linear(y, f"{name}.attention.output.dense", hidden, hidden)
            x = self.norm(x + y, f"{name}.attention.output.LayerNorm")
            y = self.linear(x, f"{name}.intermediate.dense", hidden, inner)
            y *= np.float32(0.5) * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (y + np.float32(0.044715) * y * y * y)))
            x = self.norm(x + self.linear(y, f"{name}.output.dense", inner, hidden), f"{name}.output.LayerNorm")
        return x.mean(axis=1)


def vectors_of(folder, texts):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    encoder, by_length = Encoder(folder), {}
    for text in texts:
        ids = token_ids(text, tokenizer["model"]["vocab"])
        by_length.setdefault(len(ids), []).append(ids)
    batches = [group[start : start + BATCH] for _, group in sorted(by_length.items()) for start in range(0, len(group), BATCH)]
    return np.concatenate([encoder.pooled(np.array(batch)) for batch in batches])


def whitening(vectors, dimensions):
    """The layer's weight, `[dimensions][size]`, and its bias."""
    vectors = vectors.astype(np.float64)
    mean = vectors.mean(axis=0)
    spread, components = np.linalg.eigh(np.cov(vectors, rowvar=False))  # ascending
    spread, components = spread[::-1][:dimensions], components[:, ::-1][:, :dimensions]
    # An eigenvector's sign is anyone's choice: make its largest number positive.
    components = components * np.sign(components[np.abs(components).argmax(axis=0), range(dimensions)])
    spread = (1 - SHRINKAGE) * spread + SHRINKAGE * spread.mean()
    weight = (components / np.sqrt(spread)).T
    return weight.astype(np.float32), (-weight @ mean).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description="Writes a dense layer that whitens a model's vectors.")
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--count", type=int, default=2500, help="how many texts to embed")
    options = parser.parse_args()
    vectors = vectors_of(options.model, texts_of(options.texts, options.count))
    weight, bias = whitening(vectors, options.dimensions)
    options.out.write_bytes(as_safetensors({"linear.weight": np.ascontiguousarray(weight), "linear.bias": bias}))


if __name__ == "__main__":
    main()
