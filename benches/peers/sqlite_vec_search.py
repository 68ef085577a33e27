#!/usr/bin/env python3
"""sqlite-vec over a file of vectors: how long the nearest take, and which they are. Prints JSON."""

import argparse
import json
import time
from pathlib import Path

import apsw
import sqlite_vec


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--dimensions", type=int, required=True)
    parser.add_argument("--hits", type=int, required=True)
    arguments = parser.parse_args()
    size = 4 * arguments.dimensions
    # Python's own sqlite3 may have been built without extensions.
    connection = apsw.Connection(str(arguments.rows.with_suffix(".db")))
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    connection.execute(f"CREATE VIRTUAL TABLE vectors USING vec0 (embedding float[{arguments.dimensions}] distance_metric=cosine)")
    rows = arguments.rows.read_bytes()
    started = time.perf_counter()
    numbered = ((at // size + 1, rows[at : at + size]) for at in range(0, len(rows), size))
    with connection:
        connection.executemany("INSERT INTO vectors (rowid, embedding) VALUES (?, ?)", numbered)
    inserting = time.perf_counter() - started
    queries = arguments.queries.read_bytes()
    found, times = [], []
    for at in range(0, len(queries), size):
        started = time.perf_counter()
        hits = connection.execute(
            "SELECT rowid FROM vectors WHERE embedding MATCH ? AND k = ? ORDER BY distance",
            (queries[at : at + size], arguments.hits),
        ).fetchall()
        times.append(1000 * (time.perf_counter() - started))
        found.append([number for (number,) in hits])
    times.sort()
    rank = lambda percent: times[max(0, -(-len(times) * percent // 100) - 1)]
    version = connection.execute("SELECT vec_version()").fetchone()[0]
    inserts_per_s = len(rows) / size / inserting
    print(json.dumps({"version": version, "p50_ms": rank(50), "p99_ms": rank(99), "inserts_per_s": inserts_per_s, "found": found}))


if __name__ == "__main__":
    main()
