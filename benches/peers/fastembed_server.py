"""The peer of `make bench`: fastembed behind FastAPI, as one would write it who wants it fast.

    python fastembed_server.py --port PORT --model FOLDER [--batch-size TEXTS]

`POST /embed {"inputs": str | [str]}` answers `[[float]]`, as Granary does; `GET /` names the versions. benches/README.md
says what was tried to make it faster.
"""

import argparse
from importlib.metadata import version

import orjson
import uvicorn
from fastapi import FastAPI, Response
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from pydantic import BaseModel

PACKAGES = ("fastembed", "onnxruntime", "fastapi", "uvicorn")


class EmbedBody(BaseModel):
    inputs: str | list[str]


def load(folder):
    TextEmbedding.add_custom_model(
        model="all-MiniLM-L6-v2",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="not/fetched"),
        dim=384,
        model_file="model.onnx",
        additional_files=["model.onnx_data"],
    )
    return TextEmbedding("all-MiniLM-L6-v2", specific_model_path=folder, local_files_only=True)


def build(model, options):
    app = FastAPI(openapi_url=None)

    @app.get("/")
    def versions() -> dict[str, str]:
        return {package: version(package) for package in PACKAGES}

    @app.post("/embed")
    def embed(body: EmbedBody) -> Response:  # not `async`: FastAPI runs it in a thread, and the event loop stays free
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        vectors = list(model.embed(texts, **options))
        return Response(orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, help="texts that are padded to one length and run together [256]")
    arguments = parser.parse_args()
    options = {"batch_size": arguments.batch_size} if arguments.batch_size else {}
    uvicorn.run(build(load(arguments.model), options), host="127.0.0.1", port=arguments.port, log_level="warning")
