"""How well words find in other languages: questions and the paragraphs that answer them.

Takes a running server without grains and files in the form of SQuAD (https://rajpurkar.github.io/SQuAD-explorer/):
XQuAD, CMRC 2018, JSQuAD and KorQuAD are public. The paragraphs of each file become grains with a vector that says nothing,
each question is searched for with `mode` `lexical`, and the paragraph that it was asked of is looked for among the first
ten. Answers of 2 to 12 characters are searched for too, as people type them; more paragraphs than one may have them.
"""

import argparse
import json
import pathlib
import urllib.request

BATCH = 200


def call(url, method, path, body):
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def read(path):
    """Distinct paragraphs, and what is asked of them: (question, answer, place of the paragraph)."""
    paragraphs, asked = {}, []
    for article in json.loads(path.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            # JSQuAD puts the title before the text.
            text = paragraph["context"].split("[SEP]")[-1].strip()
            place = paragraphs.setdefault(text, len(paragraphs))
            for qa in paragraph["qas"]:
                answers = [answer["text"] for answer in qa.get("answers", [])]
                asked.append((qa["question"], answers[0] if answers else "", place))
    return list(paragraphs), asked


def places(url, queries):
    """The place of the right paragraph among the first ten of each query, from 1; 0 where it is not there."""
    found = []
    for query, right in queries:
        hits = call(url, "POST", "/grains/search", {"query": query, "mode": "lexical", "limit": 10})["hits"]
        ids = [hit["grain"]["id"] for hit in hits]
        found.append(ids.index(str(right)) + 1 if str(right) in ids else 0)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="the server's address; its grains are deleted between two files")
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="questions in the form of SQuAD")
    parser.add_argument("--questions", type=int, default=1200, help="at most so many of each file, evenly spread")
    arguments = parser.parse_args()
    if call(arguments.url, "POST", "/grains/count", {})["count"] != 0:
        parser.error("the server has grains, and they would be deleted: start one with an empty data folder")
    space = call(arguments.url, "POST", "/spaces", {"name": "nothing", "dimensions": 2})["id"]
    print("| file | paragraphs | questions: MRR@10 | recall@10 | answers: recall@10 |")
    print("|---|---|---|---|---|")
    for path in arguments.files:
        paragraphs, asked = read(path)
        for start in range(0, len(paragraphs), BATCH):
            texts = enumerate(paragraphs[start : start + BATCH], start)
            grains = [{"id": str(n), "text": text, "vector": [1, 0], "space": space} for n, text in texts]
            call(arguments.url, "POST", "/grains", {"grains": grains})
        asked = asked[:: max(1, len(asked) // arguments.questions)]
        of_questions = places(arguments.url, [(question, right) for question, _, right in asked])
        short = [(answer, right) for _, answer, right in asked if 2 <= len(answer) <= 12]
        of_answers = places(arguments.url, short)
        mrr = sum(1 / place for place in of_questions if place) / len(of_questions)
        shares = [sum(map(bool, found)) / max(len(found), 1) for found in (of_questions, of_answers)]
        print(f"| {path.stem} | {len(paragraphs)} | {mrr:.3f} | {shares[0]:.3f} | {shares[1]:.3f} |", flush=True)
        call(arguments.url, "POST", "/grains/delete", {"filter": {}, "expected_count": len(paragraphs)})


if __name__ == "__main__":
    main()
