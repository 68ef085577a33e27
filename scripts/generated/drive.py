"""Calls every operation of the server with the Python client that was generated from the OpenAPI document.

`drive.py URL KEY`, run by scripts/check-generated, which also counts on the server that no operation is left out. Every
answer must have its status and be of its type, as the generated client reads it; a few values show that it is the right one.
"""

import json
import sys
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

import httpx
from granary_client import AuthenticatedClient
from granary_client.api.comparisons import create_comparison, delete_comparison, get_comparison, get_comparison_report
from granary_client.api.comparisons import list_comparisons
from granary_client.api.grains import count_grains, create_grains, delete_grain, delete_grains, export_grains, get_grain
from granary_client.api.grains import import_grains, list_grains, patch_grain, put_grain, search_grains
from granary_client.api.models import delete_model, follow_model, get_active_model, get_model, hardware, list_models
from granary_client.api.models import load_model, register_model, set_active_model, unload_model
from granary_client.api.openai import create_embedding, create_embedding_with_model, create_embedding_without_version
from granary_client.api.openai import create_embedding_without_version_with_model, get_openai_model, list_openai_models
from granary_client.api.openai import list_openai_models_with_model
from granary_client.api.operations import live, metrics, ready
from granary_client.api.reembeddings import begin_reembedding, cancel_reembedding, follow_reembedding, get_reembedding
from granary_client.api.reembeddings import list_reembedding_failures, list_reembeddings, pause_reembedding
from granary_client.api.reembeddings import purge_reembedding, resume_reembedding, roll_back_reembedding
from granary_client.api.snapshots import create_snapshot, delete_snapshot, get_snapshot, list_snapshots
from granary_client.api.spaces import accept_space, adopt_space, declare_space, list_spaces
from granary_client.api.tei import decode, decode_with_model, embed, embed_with_model, health, health_at_root
from granary_client.api.tei import health_of_model, infer, infer_with_model, info, info_of_model, invocations, ping
from granary_client.api.tei import similarity, similarity_with_model, tokenize, tokenize_with_model
from granary_client.models import AcceptBody, ActiveBody, AdoptBody, CompareBody, Comparison, ComparisonList, Count
from granary_client.models import CountBody, CreatedGrains, DeclareBody, DecodeBody, DeleteBody, Deleted, EmbedBodyInputs
from granary_client.models import EmbedBodyRootInputs, EmbeddingList, EmbeddingsBody, EncodingFormat, ExportBody
from granary_client.models import ExportInclude, Facet, Filter, Grain, GrainDraft, GrainDraftAttributesType0, GrainDrafts, GrainPage, GrainPatch
from granary_client.models import GrainResults, Hardware, ImportGrainsOnConflict, Info, Live, Model, ModelList, OpenAiError, OpenAiModel
from granary_client.models import OpenAiModelList, Problem, Ready, Reembedding, ReembeddingBody, ReembeddingFailureList
from granary_client.models import ReembeddingList, RegistrationBody, SearchAnswer, SearchBody, SearchMode, SentencePair
from granary_client.models import SimilarityBody, Snapshot, SnapshotList, SpaceList, SpaceObject, SwitchAnswer, TagsCondition
from granary_client.models import TeiError, TokenizeBody, UnloadBody
from granary_client.types import File, Response

T = TypeVar("T")
MINILM, TINY = "all-MiniLM-L6-v2", "tiny"
WAIT_SECONDS = 120
MANY = 200


def ok(answer: Response[Any], kind: type[T], status: int = 200) -> T:
    """The parsed body of an answer with this status, which is of this type."""
    assert answer.status_code == status, f"{answer.status_code}, and not {status}: {answer.content[:500]!r}"
    assert isinstance(answer.parsed, kind), f"{type(answer.parsed)}, and not {kind}: {answer.content[:500]!r}"
    return answer.parsed


def empty(answer: Response[Any], status: int) -> None:
    assert (answer.status_code, answer.content) == (status, b""), answer


def until(ask: Callable[[], T], reached: Callable[[T], bool]) -> T:
    """Asks until the answer is as wanted."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached(answer := ask()):
        assert time.monotonic() < deadline, f"after {WAIT_SECONDS} s still {answer}"
        time.sleep(0.1)
    return answer


def lines(file: File) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.payload.read().splitlines()]


def drive_operations(client: AuthenticatedClient) -> None:
    assert ok(live.sync_detailed(client=client), Live).version
    assert ok(ready.sync_detailed(client=client), Ready).model == MINILM
    assert "granary_http_requests_total" in ok(metrics.sync_detailed(client=client), str)
    assert ok(hardware.sync_detailed(client=client), Hardware).models


def drive_models(client: AuthenticatedClient) -> None:
    assert ok(list_models.sync_detailed(client=client), ModelList).active == MINILM
    assert ok(get_active_model.sync_detailed(client=client), Model).name == MINILM
    assert ok(load_model.sync_detailed(TINY, client=client), Model).state == "ready"
    events = ok(follow_model.sync_detailed(TINY, client=client), File).payload.read()
    assert b"event: model\n" in events and b'"state":"ready"' in events, events
    assert ok(get_model.sync_detailed(TINY, client=client), Model).dimensions == 32
    assert ok(accept_space.sync_detailed(TINY, client=client, body=AcceptBody()), Model).name == TINY
    registration = RegistrationBody(name="another", path=MINILM)
    assert ok(register_model.sync_detailed(client=client, body=registration), Model, 201).name == "another"
    empty(delete_model.sync_detailed("another", client=client), 204)
    assert ok(unload_model.sync_detailed(TINY, client=client, body=UnloadBody(disable=False)), Model).state == "unloaded"
    switched = ok(set_active_model.sync_detailed(client=client, body=ActiveBody(name=TINY)), SwitchAnswer)
    assert (switched.name, switched.previous) == (TINY, MINILM)
    unknown = ok(get_model.sync_detailed("nope", client=client), Problem, 404)
    assert unknown.code == "model_not_found"


def drive_tei(client: AuthenticatedClient) -> None:
    empty(health.sync_detailed(client=client), 200)
    empty(health_at_root.sync_detailed(client=client), 200)
    empty(ping.sync_detailed(client=client), 200)
    empty(health_of_model.sync_detailed(TINY, client=client), 200)
    assert ok(info.sync_detailed(client=client), Info).served_model_name == TINY
    assert ok(info_of_model.sync_detailed(MINILM, client=client), Info).served_model_name == MINILM
    texts = EmbedBodyInputs(inputs=["wheat", "rye"])
    vectors = ok(embed.sync_detailed(client=client, body=texts), list)
    assert [len(vector) for vector in vectors] == [32, 32]
    assert len(ok(embed_with_model.sync_detailed(MINILM, client=client, body=texts), list)[0]) == 384
    pair = SentencePair(source_sentence="wheat", sentences=["rye", "wheat"])
    root = EmbedBodyRootInputs(inputs=pair)
    assert len(ok(infer.sync_detailed(client=client, body=root), list)) == 2
    assert len(ok(invocations.sync_detailed(client=client, body=root), list)) == 2
    assert len(ok(infer_with_model.sync_detailed(MINILM, client=client, body=EmbedBodyRootInputs(inputs="rye")), list)[0]) == 384
    for scores in [
        ok(similarity.sync_detailed(client=client, body=SimilarityBody(inputs=pair)), list),
        ok(similarity_with_model.sync_detailed(MINILM, client=client, body=SimilarityBody(inputs=pair)), list),
    ]:
        assert scores[0] < scores[1] and scores[1] > 0.99, scores
    (tokens,) = ok(tokenize.sync_detailed(client=client, body=TokenizeBody(inputs="wheat", add_special_tokens=False)), list)
    assert tokens[0].start == 0
    assert ok(tokenize_with_model.sync_detailed(MINILM, client=client, body=TokenizeBody(inputs=["wheat"])), list)
    ids = DecodeBody(ids=[token.id for token in tokens])
    assert ok(decode.sync_detailed(client=client, body=ids), list)
    assert ok(decode_with_model.sync_detailed(MINILM, client=client, body=DecodeBody(ids=[[7592]])), list) == ["hello"]
    unknown = ok(embed_with_model.sync_detailed("nope", client=client, body=texts), TeiError, 404)
    assert unknown.error_type == "NotFound"


def drive_openai(client: AuthenticatedClient) -> None:
    as_numbers = EmbeddingsBody(input_=["wheat", "rye"], model=TINY)
    answer = ok(create_embedding.sync_detailed(client=client, body=as_numbers), EmbeddingList)
    assert isinstance(answer.data[0].embedding, list) and len(answer.data[0].embedding) == 32
    as_text = EmbeddingsBody(input_="wheat", encoding_format=EncodingFormat.BASE64)
    answer = ok(create_embedding.sync_detailed(client=client, body=as_text), EmbeddingList)
    assert isinstance(answer.data[0].embedding, str)
    assert ok(create_embedding_without_version.sync_detailed(client=client, body=as_numbers), EmbeddingList).model == TINY
    of_path = ok(create_embedding_with_model.sync_detailed(MINILM, client=client, body=as_numbers), EmbeddingList)
    assert of_path.model == MINILM
    of_path = ok(create_embedding_without_version_with_model.sync_detailed(MINILM, client=client, body=as_numbers), EmbeddingList)
    assert of_path.model == MINILM
    (below,) = ok(list_openai_models_with_model.sync_detailed(TINY, client=client), OpenAiModelList).data
    assert below.id == TINY
    assert TINY in [model.id for model in ok(list_openai_models.sync_detailed(client=client), OpenAiModelList).data]
    assert ok(get_openai_model.sync_detailed(TINY, client=client), OpenAiModel).id == TINY
    assert ok(get_openai_model.sync_detailed("nope", client=client), OpenAiError, 404).error.code == "model_not_found"


def drive_grains(client: AuthenticatedClient) -> None:
    year = GrainDraftAttributesType0.from_dict({"year": 2024})
    oats = GrainDraft(id="oats", text="Oats grow in wet summers.", source="almanac", tags=["cereals"], attributes=year)
    assert ok(create_grains.sync_detailed(client=client, body=oats, idempotency_key="once"), Grain, 201).id == "oats"
    two = GrainDrafts(grains=[GrainDraft(id="rye", text="Rye."), GrainDraft(id="maize", text="Maize wants warmth.")])
    assert len(ok(create_grains.sync_detailed(client=client, body=two), CreatedGrains, 201).grains) == 2
    results = ok(create_grains.sync_detailed(client=client, body=two, partial=True), GrainResults, 207).results
    assert [result.status for result in results] == [409, 409]
    grain = ok(get_grain.sync_detailed("oats", client=client, include="vector"), Grain)
    assert isinstance(grain.vector, list) and len(grain.vector) == 32 and grain.meta.attributes["year"] == 2024
    assert ok(put_grain.sync_detailed("oats", client=client, body=oats, if_match=f'"{grain.version}"'), Grain).id == "oats"
    assert ok(put_grain.sync_detailed("new", client=client, body=GrainDraft(text="Millet.")), Grain, 201).text == "Millet."
    patched = ok(patch_grain.sync_detailed("oats", client=client, body=GrainPatch(tags=["fodder"])), Grain)
    assert patched.meta.tags == ["fodder"] and patched.meta.source == "almanac"
    stale = patch_grain.sync_detailed("oats", client=client, body=GrainPatch(text="Oats."), if_match='"77"')
    assert ok(stale, Problem, 412).code == "version_mismatch"
    page = ok(list_grains.sync_detailed(client=client, limit=2, sort="-created_at"), GrainPage)
    assert len(page.grains) == 2 and isinstance(page.next_, str)
    rest = ok(list_grains.sync_detailed(client=client, limit=2, sort="-created_at", cursor=page.next_), GrainPage)
    assert {grain.id for grain in page.grains + rest.grains} == {"oats", "rye", "maize", "new"}
    counted = ok(count_grains.sync_detailed(client=client, body=CountBody(facets=[Facet.SOURCE])), Count)
    assert counted.count == 4
    wanted = Filter(tags=TagsCondition(any_=["fodder"]))
    body = SearchBody(query="oats", mode=SearchMode.LEXICAL, filter_=wanted, highlights=True)
    found = ok(search_grains.sync_detailed(client=client, body=body), SearchAnswer)
    assert [hit.grain.id for hit in found.hits] == ["oats"]
    empty(delete_grain.sync_detailed("new", client=client), 204)
    chosen = ExportBody(include=[ExportInclude.VECTOR], filter_=Filter(ids=["rye", "maize"]))
    exported = ok(export_grains.sync_detailed(client=client, body=chosen), File).payload.read()
    assert lines(File(BytesIO(exported)))[-1] == {"end": {"grains": 2}}
    again = ok(import_grains.sync_detailed(client=client, body=File(BytesIO(exported)), on_conflict=ImportGrainsOnConflict.SKIP), File)
    end = lines(again)[-1]["end"]
    assert (end["skipped"], end["complete"]) == (2, True), end
    deleted = delete_grains.sync_detailed(client=client, body=DeleteBody(filter_=wanted, expected_count=1))
    assert ok(deleted, Deleted).deleted == 1


def drive_spaces(client: AuthenticatedClient) -> None:
    declared = ok(declare_space.sync_detailed(client=client, body=DeclareBody(name="ours", dimensions=32)), SpaceObject, 201)
    assert declared.id in [space.id for space in ok(list_spaces.sync_detailed(client=client), SpaceList).spaces]
    (vector,) = ok(embed_with_model.sync_detailed(TINY, client=client, body=EmbedBodyInputs(inputs="Barley.")), list)
    grain = GrainDraft(id="barley", text="Barley.", space=declared.id, vector=vector)
    assert ok(create_grains.sync_detailed(client=client, body=grain), Grain, 201).meta.space == declared.id
    adopted = ok(adopt_space.sync_detailed(client=client, body=AdoptBody(model=TINY, from_=declared.id)), File)
    assert lines(adopted)[-1]["end"]["adopted"] == 1


def drive_comparisons(client: AuthenticatedClient) -> None:
    body = CompareBody(to=MINILM, queries=["what grows where it rains"], k=3)
    begun = ok(create_comparison.sync_detailed(client=client, body=body), Comparison, 202)
    assert begun.id in [one.id for one in ok(list_comparisons.sync_detailed(client=client), ComparisonList).comparisons]

    def ask() -> Comparison:
        return ok(get_comparison.sync_detailed(begun.id, client=client), Comparison)

    done = until(ask, lambda one: one.state in ("completed", "failed"))
    assert done.state == "completed" and done.result, done
    assert b"<html" in ok(get_comparison_report.sync_detailed(begun.id, client=client), File).payload.read()
    empty(delete_comparison.sync_detailed(begun.id, client=client), 204)


def write_fields(client: AuthenticatedClient, source: str, n_grains: int) -> Filter:
    drafts = [GrainDraft(id=f"{source}-{n}", text=f"Field {n} has oats.", source=source) for n in range(n_grains)]
    ok(create_grains.sync_detailed(client=client, body=GrainDrafts(grains=drafts)), CreatedGrains, 201)
    return Filter(source=source)


def drive_reembeddings(client: AuthenticatedClient) -> None:
    body = ReembeddingBody(to=MINILM, filter_=write_fields(client, "few", 3))
    job = ok(begin_reembedding.sync_detailed(client=client, body=body), Reembedding, 202)
    events = ok(follow_reembedding.sync_detailed(job.id, client=client), File).payload.read()
    assert b"event: reembedding\n" in events and b'"state":"completed"' in events, events

    def ask() -> Reembedding:
        return ok(get_reembedding.sync_detailed(job.id, client=client), Reembedding)

    assert ask().done == 3
    ok(roll_back_reembedding.sync_detailed(job.id, client=client), Reembedding)
    until(ask, lambda job: job.state == "rolled_back")
    ok(purge_reembedding.sync_detailed(job.id, client=client), Reembedding)
    until(ask, lambda job: job.old_vectors == "purged")

    # After each batch, of at most 64 grains, it rests for about a hundred times as long: it is there to be held.
    body = ReembeddingBody(to=MINILM, filter_=write_fields(client, "many", MANY), throttle=0.01)
    held = ok(begin_reembedding.sync_detailed(client=client, body=body), Reembedding, 202)
    assert ok(pause_reembedding.sync_detailed(held.id, client=client), Reembedding).state == "paused"
    assert held.id in [job.id for job in ok(list_reembeddings.sync_detailed(client=client), ReembeddingList).reembeddings]
    assert ok(resume_reembedding.sync_detailed(held.id, client=client), Reembedding).state in ("queued", "running")
    assert ok(cancel_reembedding.sync_detailed(held.id, client=client), Reembedding).state == "cancelled"
    assert ok(list_reembedding_failures.sync_detailed(held.id, client=client), ReembeddingFailureList).total == 0


def drive_snapshots(client: AuthenticatedClient) -> None:
    made = ok(create_snapshot.sync_detailed(client=client), Snapshot, 201)
    assert made.name in [one.name for one in ok(list_snapshots.sync_detailed(client=client), SnapshotList).snapshots]
    content = ok(get_snapshot.sync_detailed(made.name, client=client), File).payload.read()
    assert len(content) == made.size_bytes and content.startswith(b"SQLite format 3\0")
    empty(delete_snapshot.sync_detailed(made.name, client=client), 204)


def main() -> None:
    url, key = sys.argv[1:]
    # The server is on this machine, whatever proxy there is.
    own: dict[str, Any] = {"base_url": url, "timeout": httpx.Timeout(WAIT_SECONDS), "httpx_args": {"trust_env": False}}
    stranger = AuthenticatedClient(token=f"{key}-wrong", **own)
    assert ok(list_models.sync_detailed(client=stranger), Problem, 401).code == "unauthorized"
    with AuthenticatedClient(token=key, raise_on_unexpected_status=True, **own) as client:
        drive_operations(client)
        drive_models(client)
        drive_tei(client)
        drive_openai(client)
        drive_grains(client)
        drive_spaces(client)
        drive_comparisons(client)
        drive_reembeddings(client)
        drive_snapshots(client)


if __name__ == "__main__":
    main()
