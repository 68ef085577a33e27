// Calls every operation of the server with openapi-fetch and the types that openapi-typescript made of the OpenAPI document.
//
// `node drive.js URL KEY`, run by scripts/check-generated, which also counts on the server that no operation is left out.
// What is read of an answer is of the type that the document gives it, or this does not compile; a few values show that it
// is the right answer. It follows drive.py step by step.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import createClient, { type Client } from "openapi-fetch";
import type { paths } from "./schema.js";

type Granary = Client<paths>;

const MINILM = "all-MiniLM-L6-v2";
const TINY = "tiny";
const WAIT_MS = 120_000;
const MANY = 200;

// The body of an answer with this status.
function ok<T>(answer: { data?: T; error?: unknown; response: Response }, status = 200): NonNullable<T> {
  assert.equal(answer.response.status, status, JSON.stringify(answer.error));
  assert(answer.data !== undefined && answer.data !== null, "an answer without a body");
  return answer.data;
}

// The error that an answer with this status is.
function refused<E>(answer: { error?: E; response: Response }, status: number): NonNullable<E> {
  assert.equal(answer.response.status, status);
  assert(answer.error !== undefined && answer.error !== null, "an error without a body");
  return answer.error;
}

function empty(answer: { error?: unknown; response: Response }, status: number): void {
  assert.equal(answer.response.status, status, JSON.stringify(answer.error));
}

// Asks until the answer is as wanted.
async function until<T>(ask: () => Promise<T>, reached: (answer: T) => boolean): Promise<T> {
  const deadline = performance.now() + WAIT_MS;
  for (;;) {
    const answer = await ask();
    if (reached(answer)) return answer;
    assert(performance.now() < deadline, `after ${WAIT_MS} ms still ${JSON.stringify(answer)}`);
    await sleep(100);
  }
}

function lines(text: string): Record<string, Record<string, unknown>>[] {
  return text.trim().split("\n").map((line) => JSON.parse(line) as Record<string, Record<string, unknown>>);
}

async function driveOperations(client: Granary): Promise<void> {
  assert(ok(await client.GET("/health/live")).version);
  assert.equal(ok(await client.GET("/health/ready")).model, MINILM);
  assert.match(ok(await client.GET("/metrics", { parseAs: "text" })), /granary_http_requests_total/);
  assert(ok(await client.GET("/hardware")).models.length > 0);
}

async function driveModels(client: Granary): Promise<void> {
  const tiny = { params: { path: { name: TINY } } };
  assert.equal(ok(await client.GET("/models")).active, MINILM);
  assert.equal(ok(await client.GET("/models/active")).name, MINILM);
  assert.equal(ok(await client.POST("/models/{name}/load", tiny)).state, "ready");
  const events = ok(await client.GET("/models/{name}/events", { ...tiny, parseAs: "text" }));
  assert.match(events, /event: model\n/);
  assert.match(events, /"state":"ready"/);
  assert.equal(ok(await client.GET("/models/{name}", tiny)).dimensions, 32);
  assert.equal(ok(await client.POST("/models/{name}/accept", { ...tiny, body: {} })).name, TINY);
  const registered = await client.POST("/models", { body: { name: "another", path: MINILM } });
  assert.equal(ok(registered, 201).name, "another");
  empty(await client.DELETE("/models/{name}", { params: { path: { name: "another" } } }), 204);
  assert.equal(ok(await client.POST("/models/{name}/unload", { ...tiny, body: { disable: false } })).state, "unloaded");
  const switched = ok(await client.PUT("/models/active", { body: { name: TINY } }));
  assert.deepEqual([switched.name, switched.previous], [TINY, MINILM]);
  const unknown = await client.GET("/models/{name}", { params: { path: { name: "nope" } } });
  assert.equal(refused(unknown, 404).code, "model_not_found");
}

async function driveTei(client: Granary): Promise<void> {
  const tiny = { params: { path: { name: TINY } } };
  const minilm = { params: { path: { name: MINILM } } };
  empty(await client.GET("/health"), 200);
  empty(await client.GET("/"), 200);
  empty(await client.GET("/ping"), 200);
  empty(await client.GET("/models/{name}/health", tiny), 200);
  assert.equal(ok(await client.GET("/info")).served_model_name, TINY);
  assert.equal(ok(await client.GET("/models/{name}/info", minilm)).served_model_name, MINILM);
  const texts = { inputs: ["wheat", "rye"] };
  const vectors = ok(await client.POST("/embed", { body: texts }));
  assert.deepEqual(vectors.map((vector) => vector.length), [32, 32]);
  assert.equal(ok(await client.POST("/models/{name}/embed", { ...minilm, body: texts }))[0]?.length, 384);
  const pair = { source_sentence: "wheat", sentences: ["rye", "wheat"] };
  assert.equal(ok(await client.POST("/", { body: { inputs: pair } })).length, 2);
  assert.equal(ok(await client.POST("/invocations", { body: { inputs: pair } })).length, 2);
  assert.equal(ok(await client.POST("/models/{name}", { ...minilm, body: { inputs: "rye" } })).length, 1);
  const scores = [
    ok(await client.POST("/similarity", { body: { inputs: pair } })),
    ok(await client.POST("/models/{name}/similarity", { ...minilm, body: { inputs: pair } })),
  ];
  for (const [other = 1, same = 0] of scores) assert(other < same && same > 0.99, `${other}, ${same}`);
  const [tokens = []] = ok(await client.POST("/tokenize", { body: { inputs: "wheat", add_special_tokens: false } }));
  assert.equal(tokens[0]?.start, 0);
  assert(ok(await client.POST("/models/{name}/tokenize", { ...minilm, body: { inputs: ["wheat"] } })).length === 1);
  assert(ok(await client.POST("/decode", { body: { ids: tokens.map((token) => token.id) } })).length === 1);
  assert.deepEqual(ok(await client.POST("/models/{name}/decode", { ...minilm, body: { ids: [[7592]] } })), ["hello"]);
  const unknown = await client.POST("/models/{name}/embed", { params: { path: { name: "nope" } }, body: texts });
  assert.equal(refused(unknown, 404).error_type, "NotFound");
}

async function driveOpenAi(client: Granary): Promise<void> {
  const numbers = ok(await client.POST("/v1/embeddings", { body: { input: ["wheat", "rye"], model: TINY } }));
  assert.equal(numbers.data[0]?.embedding.length, 32);
  const text = ok(await client.POST("/v1/embeddings", { body: { input: "wheat", encoding_format: "base64" } }));
  assert.equal(typeof text.data[0]?.embedding, "string");
  const named = { input: "wheat", model: TINY };
  assert.equal(ok(await client.POST("/embeddings", { body: named })).model, TINY);
  const minilm = { params: { path: { name: MINILM } } };
  assert.equal(ok(await client.POST("/models/{name}/v1/embeddings", { ...minilm, body: named })).model, MINILM);
  assert.equal(ok(await client.POST("/models/{name}/embeddings", { ...minilm, body: named })).model, MINILM);
  assert.deepEqual(ok(await client.GET("/models/{name}/v1/models", minilm)).data.map((model) => model.id), [MINILM]);
  assert(ok(await client.GET("/v1/models")).data.some((model) => model.id === TINY));
  assert.equal(ok(await client.GET("/v1/models/{name}", { params: { path: { name: TINY } } })).id, TINY);
  const unknown = await client.GET("/v1/models/{name}", { params: { path: { name: "nope" } } });
  assert.equal(refused(unknown, 404).error.code, "model_not_found");
}

async function driveGrains(client: Granary): Promise<void> {
  const at = (id: string) => ({ params: { path: { id } } });
  const oats = { id: "oats", text: "Oats grow in wet summers.", source: "almanac", tags: ["cereals"], attributes: { year: 2024 } };
  const once = { params: { header: { "idempotency-key": "once" } }, body: oats };
  const one = ok(await client.POST("/grains", once), 201);
  assert("id" in one && one.id === "oats");
  const two = { grains: [{ id: "rye", text: "Rye." }, { id: "maize", text: "Maize wants warmth." }] };
  const many = ok(await client.POST("/grains", { body: two }), 201);
  assert("grains" in many && many.grains.length === 2);
  const partly = ok(await client.POST("/grains", { params: { query: { partial: true } }, body: two }), 207);
  assert("results" in partly);
  assert.deepEqual(partly.results.map((result) => result.status), [409, 409]);
  const withVector = { params: { path: { id: "oats" }, query: { include: "vector" } } };
  const grain = ok(await client.GET("/grains/{id}", withVector));
  assert.equal(grain.vector?.length, 32);
  assert.equal(grain.meta.attributes["year"], 2024);
  const seen = { params: { path: { id: "oats" }, header: { "if-match": `"${grain.version}"` } }, body: oats };
  assert.equal(ok(await client.PUT("/grains/{id}", seen)).id, "oats");
  assert.equal(ok(await client.PUT("/grains/{id}", { ...at("new"), body: { text: "Millet." } }), 201).text, "Millet.");
  const patched = ok(await client.PATCH("/grains/{id}", { ...at("oats"), body: { tags: ["fodder"] } }));
  assert.deepEqual([patched.meta.tags, patched.meta.source], [["fodder"], "almanac"]);
  const stale = { params: { path: { id: "oats" }, header: { "if-match": '"77"' } }, body: { text: "Oats." } };
  assert.equal(refused(await client.PATCH("/grains/{id}", stale), 412).code, "version_mismatch");
  const newest = { limit: 2, sort: "-created_at" };
  const page = ok(await client.GET("/grains", { params: { query: newest } }));
  assert(page.next);
  const rest = ok(await client.GET("/grains", { params: { query: { ...newest, cursor: page.next } } }));
  const ids = [...page.grains, ...rest.grains].map((grain) => grain.id);
  assert.deepEqual(ids.sort(), ["maize", "new", "oats", "rye"]);
  assert.equal(ok(await client.POST("/grains/count", { body: { facets: ["source"] } })).count, 4);
  const filter = { tags: { any: ["fodder"] } };
  const search = { query: "oats", mode: "lexical" as const, filter, highlights: true };
  const found = ok(await client.POST("/grains/search", { body: search }));
  assert.deepEqual(found.hits.map((hit) => hit.grain.id), ["oats"]);
  empty(await client.DELETE("/grains/{id}", at("new")), 204);
  const chosen = { include: ["vector" as const], filter: { ids: ["rye", "maize"] } };
  const exported = ok(await client.POST("/grains/export", { body: chosen, parseAs: "text" }));
  assert.deepEqual(lines(exported).at(-1), { end: { grains: 2 } });
  const imported = await client.POST("/grains/import", {
    params: { query: { on_conflict: "skip" } },
    headers: { "content-type": "application/x-ndjson" },
    body: exported,
    bodySerializer: (body) => body,
    parseAs: "text",
  });
  const end = lines(ok(imported)).at(-1)?.["end"];
  assert.deepEqual([end?.["skipped"], end?.["complete"]], [2, true]);
  assert.equal(ok(await client.POST("/grains/delete", { body: { filter, expected_count: 1 } })).deleted, 1);
}

async function driveSpaces(client: Granary): Promise<void> {
  const declared = ok(await client.POST("/spaces", { body: { name: "ours", dimensions: 32 } }), 201);
  assert(ok(await client.GET("/spaces")).spaces.some((space) => space.id === declared.id));
  const tiny = { params: { path: { name: TINY } } };
  const [vector = []] = ok(await client.POST("/models/{name}/embed", { ...tiny, body: { inputs: "Barley." } }));
  const body = { id: "barley", text: "Barley.", space: declared.id, vector };
  const grain = ok(await client.POST("/grains", { body }), 201);
  assert("meta" in grain && grain.meta.space === declared.id);
  const adopted = await client.POST("/spaces/adopt", { body: { model: TINY, from: declared.id }, parseAs: "text" });
  assert.equal(lines(ok(adopted)).at(-1)?.["end"]?.["adopted"], 1);
}

async function driveComparisons(client: Granary): Promise<void> {
  const body = { to: MINILM, queries: ["what grows where it rains"], k: 3 };
  const { id } = ok(await client.POST("/comparisons", { body }), 202);
  const it = { params: { path: { id } } };
  assert(ok(await client.GET("/comparisons")).comparisons.some((one) => one.id === id));
  const ask = async () => ok(await client.GET("/comparisons/{id}", it));
  const done = await until(ask, ({ state }) => state === "completed" || state === "failed");
  assert(done.state === "completed" && done.result, JSON.stringify(done));
  assert.match(ok(await client.GET("/comparisons/{id}/report", { ...it, parseAs: "text" })), /<html/);
  empty(await client.DELETE("/comparisons/{id}", it), 204);
}

async function writeFields(client: Granary, source: string, nGrains: number): Promise<{ source: string }> {
  const grains = Array.from({ length: nGrains }, (_, n) => ({ id: `${source}-${n}`, text: `Field ${n} has oats.`, source }));
  ok(await client.POST("/grains", { body: { grains } }), 201);
  return { source };
}

async function driveReembeddings(client: Granary): Promise<void> {
  const few = { to: MINILM, filter: await writeFields(client, "few", 3) };
  const { id } = ok(await client.POST("/reembeddings", { body: few }), 202);
  const job = { params: { path: { id } } };
  const events = ok(await client.GET("/reembeddings/{id}/events", { ...job, parseAs: "text" }));
  assert.match(events, /event: reembedding\n/);
  assert.match(events, /"state":"completed"/);
  const ask = async () => ok(await client.GET("/reembeddings/{id}", job));
  assert.equal((await ask()).done, 3);
  ok(await client.POST("/reembeddings/{id}/rollback", job));
  await until(ask, ({ state }) => state === "rolled_back");
  ok(await client.POST("/reembeddings/{id}/purge", job));
  await until(ask, ({ old_vectors }) => old_vectors === "purged");

  // After each batch, of at most 64 grains, it rests for about a hundred times as long: it is there to be held.
  const many = { to: MINILM, filter: await writeFields(client, "many", MANY), throttle: 0.01 };
  const held = ok(await client.POST("/reembeddings", { body: many }), 202);
  const it = { params: { path: { id: held.id } } };
  assert.equal(ok(await client.POST("/reembeddings/{id}/pause", it)).state, "paused");
  assert(ok(await client.GET("/reembeddings")).reembeddings.some((job) => job.id === held.id));
  assert(["queued", "running"].includes(ok(await client.POST("/reembeddings/{id}/resume", it)).state));
  assert.equal(ok(await client.POST("/reembeddings/{id}/cancel", it)).state, "cancelled");
  assert.equal(ok(await client.GET("/reembeddings/{id}/failures", it)).total, 0);
}

async function driveSnapshots(client: Granary): Promise<void> {
  const made = ok(await client.POST("/snapshots"), 201);
  assert(ok(await client.GET("/snapshots")).snapshots.some((one) => one.name === made.name));
  const it = { params: { path: { name: made.name } } };
  const content = Buffer.from(ok(await client.GET("/snapshots/{name}", { ...it, parseAs: "arrayBuffer" })));
  assert.equal(content.length, made.size_bytes);
  assert.equal(content.subarray(0, 16).toString(), "SQLite format 3\0");
  empty(await client.DELETE("/snapshots/{name}", it), 204);
}

async function main(): Promise<void> {
  const [baseUrl, key] = process.argv.slice(2);
  assert(baseUrl && key, "usage: node drive.js URL KEY");
  const stranger = createClient<paths>({ baseUrl, headers: { authorization: `Bearer ${key}-wrong` } });
  assert.equal(refused(await stranger.GET("/models"), 401).code, "unauthorized");
  const client = createClient<paths>({ baseUrl, headers: { authorization: `Bearer ${key}` } });
  await driveOperations(client);
  await driveModels(client);
  await driveTei(client);
  await driveOpenAi(client);
  await driveGrains(client);
  await driveSpaces(client);
  await driveComparisons(client);
  await driveReembeddings(client);
  await driveSnapshots(client);
}

await main();
