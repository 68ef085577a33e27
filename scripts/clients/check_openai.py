"""openai-python against a running server: `check_openai.py URL`."""

import sys

import openai
from golden import check_near, golden

MODEL = "all-MiniLM-L6-v2"


def main(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    texts, expected = golden(8)

    # Without a format the client asks for base64 and decodes it itself.
    for options in [{}, {"encoding_format": "float"}]:
        answer = client.embeddings.create(model=MODEL, input=texts, **options)
        check_near([item.embedding for item in answer.data], expected)
        assert [item.index for item in answer.data] == list(range(8))
    assert client.embeddings.create(model=MODEL, input="hello world").usage.prompt_tokens == 4

    assert client.embeddings.create(model="text-embeddings-inference", input="hello world").model == MODEL

    for base in [url, f"{url}/models/{MODEL}/v1"]:
        elsewhere = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
        answer = elsewhere.embeddings.create(model=MODEL, input=texts)
        check_near([item.embedding for item in answer.data], expected)

    raw = client.embeddings.with_raw_response.create(model="text-embedding-3-small", input="hello")
    assert raw.headers["x-model"] == MODEL and len(raw.headers["x-space"]) == 16
    assert raw.parse().model == MODEL

    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL

    refused = expect(openai.NotFoundError, lambda: client.embeddings.create(model="nothing", input="a"))
    assert refused.code == "model_not_found", refused.code
    refused = expect(openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input="a", dimensions=7))
    assert (refused.code, refused.param) == ("dimensions", "dimensions"), (refused.code, refused.param)
    refused = expect(openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input=[[1, 2]]))
    assert refused.code == "token_ids", refused.code
    space = {"expect_space": "0123456789abcdef"}
    refused = expect(openai.APIStatusError, lambda: client.embeddings.create(model=MODEL, input="a", extra_body=space))
    assert refused.status_code == 412, refused.status_code


def expect(error, call):
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"no {error.__name__}")


if __name__ == "__main__":
    main(sys.argv[1])
    print("check_openai: ok")
