"""The golden vectors, and how near a client's vectors must come to them."""

import base64
import json
import math
import struct
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent.parent / "tests/golden/all-MiniLM-L6-v2.ndjson"
LEAST_COSINE = 0.9999


def golden(count):
    """The first `count` texts with their vectors."""
    lines = [json.loads(line) for line in GOLDEN.read_text().splitlines()[:count]]
    vectors = [struct.unpack("<384f", base64.b64decode(line["vector"])) for line in lines]
    return [line["text"] for line in lines], vectors


def check_near(found, expected):
    """Fails unless each vector found is where the golden one is."""
    assert len(found) == len(expected), f"{len(found)} vectors for {len(expected)} texts"
    for index, (left, right) in enumerate(zip(found, expected)):
        assert len(left) == len(right), f"vector {index} has {len(left)} numbers, not {len(right)}"
        cosine = sum(a * b for a, b in zip(left, right)) / (math.hypot(*left) * math.hypot(*right))
        assert cosine >= LEAST_COSINE, f"vector {index} is off: cosine {cosine}"
