"""langchain-openai against a running server: `check_langchain.py URL`."""

import sys

from golden import check_near, golden
from langchain_openai import OpenAIEmbeddings


def main(url):
    texts, expected = golden(8)
    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model="all-MiniLM-L6-v2", check_embedding_ctx_length=False, max_retries=0
    )
    check_near(embeddings.embed_documents(texts), expected)
    check_near([embeddings.embed_query(texts[0])], expected[:1])


if __name__ == "__main__":
    main(sys.argv[1])
    print("check_langchain: ok")
