"""huggingface_hub's InferenceClient against a running server: `check_huggingface.py URL`."""

import sys

from golden import check_near, golden
from huggingface_hub import InferenceClient


def main(url):
    texts, expected = golden(3)
    # The server's own URL means the active model; a model's URL means that model.
    for base in [url, f"{url}/models/all-MiniLM-L6-v2", f"{url}/models/all-MiniLM-L6-v2/", f"{url}/embed"]:
        client = InferenceClient(model=base)
        for text, vector in zip(texts, expected):
            check_near(client.feature_extraction(text), [vector])
    for base in [url, f"{url}/models/all-MiniLM-L6-v2", f"{url}/similarity"]:
        others = ["A dog runs on the beach.", "The invoice is due on Friday."]
        near, far = InferenceClient(model=base).sentence_similarity("A puppy plays by the sea.", other_sentences=others)
        assert near > far + 0.2, (near, far)


if __name__ == "__main__":
    main(sys.argv[1])
    print("check_huggingface: ok")
