#!/usr/bin/env python3
"""Draws what `make bench` measured: for each workload a bar for each server, as long as its texts per second are many
times fastembed's.

    python3 benches/chart.py [RESULTS.json] [CHART.svg]

The drawing follows the reader's light or dark theme. Its caption says machine, commit and date.
"""

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

RESULTS = Path(__file__).resolve().parent / "results"
BASELINE = "fastembed"
TITLES = {"query": "query", "passage": "passage", "mixed": "32 mixed texts", "zipf": "repeated queries"}

WIDTH, LEFT, BARS, TOP = 860, 190, 430, 60
BAR, GAP, GROUP_GAP = 15, 3, 14

# The second of each pair is for dark themes.
INK, FAINT = ("#1f2328", "#e6edf3"), ("#d1d9e0", "#3d444d")
FILLS = {
    "granary": ("#0969da", "#4493f8"),
    "granary-cpu": ("#80b3f0", "#2a5ea8"),
    "granary-openvino": ("#54aeff", "#388bfd"),
    "fastembed": ("#818b98", "#656c76"),
    "fastembed-b1": ("#6e7781", "#848d97"),
    "infinity": ("#b7bdc8", "#9198a1"),
    "tei": ("#bf8700", "#d29922"),
}


def style(dark):
    fills = "".join(f".{server}{{fill:{pair[dark]}}}" for server, pair in FILLS.items())
    return f"text{{fill:{INK[dark]}}}.line{{stroke:{FAINT[dark]}}}.base{{stroke:{INK[dark]}}}{fills}"


def text(x, y, words, **attributes):
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>'


def title(workload):
    clients = workload["clients"]
    name = TITLES.get(workload["workload"].split("-")[0], workload["workload"])
    return f"{name}, {clients} client{'s' if clients > 1 else ''}"


def step_of(longest):
    """The distance of the lines behind the bars: at most eight of them."""
    return next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if longest / step <= 8)


def draw(results):
    workloads = results["workloads"]
    if not all(server.get("to_fastembed") for workload in workloads for server in workload["servers"]):
        sys.exit(f"chart.py: the results have no ratios to {BASELINE}: run the benchmark with it")
    longest = max(server["to_fastembed"]["texts_per_s"] for workload in workloads for server in workload["servers"])
    scale = BARS / longest
    body, y = [], TOP
    for workload in workloads:
        servers = workload["servers"]
        height = len(servers) * (BAR + GAP) - GAP
        body.append(text(LEFT - 12, y + height / 2 + 4, title(workload), text_anchor="end"))
        for server in servers:
            name, ratio = server["server"], server["to_fastembed"]["texts_per_s"]
            median = server["median"]
            label = f"{median['texts_per_s']:,.0f} texts/s" + ("" if name == BASELINE else f" · {ratio:.1f}×")
            label += f" · p50 {median['p50_ms']:,.1f} ms"
            width = ratio * scale
            body.append(f'<rect class="{name}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>')
            body.append(text(LEFT + width + 6, y + BAR - 3.5, label, font_size=11))
            y += BAR + GAP
        y += GROUP_GAP
    bottom = y - GROUP_GAP
    return head(results, bottom + 66) + lines(longest, scale, bottom) + body + caption(results, bottom + 26) + ["</svg>"]


def head(results, height):
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>Texts per second, {BASELINE} = 1</title>",
        f"<style>{style(0)}@media (prefers-color-scheme: dark){{{style(1)}}}</style>",
    ]
    x = LEFT
    for server in (facts["server"] for facts in results["servers"]):
        parts.append(f'<rect class="{server}" x="{x}" y="10" width="12" height="12" rx="2"/>')
        parts.append(text(x + 17, 20.5, server))
        x += 45 + 7 * len(server)
    return parts


def lines(longest, scale, bottom):
    step, parts, ratio = step_of(longest), [], 0.0
    while ratio <= longest:
        x = LEFT + ratio * scale
        parts.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom + 4}"/>')
        parts.append(text(x, TOP - 13, f"{ratio:g}×", text_anchor="middle", font_size=11))
        ratio += step
    x = LEFT + scale
    parts.append(f'<line class="base" stroke-dasharray="3 3" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom + 4}"/>')
    return parts


def caption(results, y):
    machine = results["machine"]
    versions = {facts["server"]: facts["versions"] for facts in results["servers"]}
    peer = versions[BASELINE]
    provider = versions.get("granary", {}).get("provider")
    rows = [
        f"Texts per second, fastembed {peer['fastembed']} (ONNX Runtime {peer['onnxruntime']}) = 1; "
        f"medians of {results['rounds']} rounds" + (f"; granary took provider {provider}" if provider else ""),
        f"{machine['cpu']}, {machine['cores']} cores, {machine['bf16']}; commit {results['commit']}, {results['date'][:10]}",
    ]
    return [text(20, y + 18 * row, words, font_size=12) for row, words in enumerate(rows)]


if __name__ == "__main__":
    arguments = sys.argv[1:]
    source = Path(arguments[0]) if arguments else RESULTS / "serving.json"
    target = Path(arguments[1]) if arguments[1:] else source.with_suffix(".svg")
    target.write_text("\n".join(draw(json.loads(source.read_text()))) + "\n")
    print(target)
