# `make serve` and `make test` need nothing but what README.md lists: their set-up installs the rest, without root.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help serve setup setup-test setup-generated setup-bench test test-generated test-schema test-v03 grain-model grain-crash grain-contention chaos test-proxy reembed-crash reembed-load reembed-cut-over bench bench-engine bench-overload bench-index bench-search bench-quality bench-spaces soak soak-proxy cycles budget fuzz lint fmt openapi docs image test-image sbom audit clean

TARGET := "$(or $(CARGO_TARGET_DIR),target)"
# The binary that the checks of a running server use. Tests build it anyway.
DEV_BINARY := $(TARGET)/debug/granary
TOOLS := "$(or $(GRANARY_MODELS__DATA_DIR),.granary)"/tools
# What `make bench` writes; the chart goes beside it.
RESULTS := benches/results/serving.json

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: setup ## install what is missing, build in release mode, serve on 127.0.0.1:8080
	cargo build --release --locked
	exec $(TARGET)/release/granary serve

setup: ## the runtime library and the default model, into .granary/; nothing if they are there
	@scripts/setup

setup-test: setup # what tests need beyond that: nextest and cargo-deny, models with random weights, Python clients
	@scripts/setup-tools
	@scripts/setup-test

setup-generated: setup-test # what generated clients need beyond that: their generators, type checkers, Node.js, a linter
	@scripts/setup-generated

test: setup-generated ## every test, the requests of the documentation, the real Python clients, generated requests and clients
	$(TOOLS)/cargo-nextest nextest run --locked
	scripts/check-clients $(DEV_BINARY)
	scripts/check-schema $(DEV_BINARY) --requests 400
	scripts/check-generated $(DEV_BINARY)
	scripts/check-deploy

test-generated: setup-generated ## Python and TypeScript clients made from the OpenAPI document call every operation; a linter reads it
	cargo build --locked
	scripts/check-generated $(DEV_BINARY)

test-schema: setup-test ## 10,000 requests generated from the OpenAPI document, against the release build
	cargo build --release --locked
	scripts/check-schema $(TARGET)/release/granary --requests 10000

# Tests that `make test` runs for a few seconds each, for as long as they deserve.
LONG_TEST := $(TOOLS)/cargo-nextest nextest run --locked --no-capture --test it

test-v03: setup-test ## a file of version 0.3 with 10,000 grains: upgraded, read back and adopted
	GRANARY_TEST_V03_GRAINS=$${GRANARY_TEST_V03_GRAINS:-10000} $(LONG_TEST) adoption::

grain-model: setup-test ## 10,000 random operations on grains, compared with a map; GRAIN_MODEL_SEED chooses others
	GRAIN_MODEL_OPERATIONS=$${GRAIN_MODEL_OPERATIONS:-10000} $(LONG_TEST) grain_model::

grain-crash: setup-test ## a server that writes grains is killed 50 times: is everything there that it said it wrote?
	GRAIN_CRASH_KILLS=$${GRAIN_CRASH_KILLS:-50} $(LONG_TEST) grain_crash::kill

grain-contention: setup-test ## readers and a writer of grains for a minute: does one stand in another's way?
	GRAIN_CONTENTION_SECONDS=$${GRAIN_CONTENTION_SECONDS:-60} $(LONG_TEST) grain_crash::readers

chaos: setup-test ## the server stopped for 10 s, its files replaced, taken away or read-only, no file left to open
	CHAOS_SECONDS=$${CHAOS_SECONDS:-10} $(LONG_TEST) chaos::

test-proxy: setup-test ## behind real nginx, Caddy and HAProxy: restarts, smuggling, slow connections; 10 minutes
	@scripts/setup-proxies
	$(LONG_TEST) --run-ignored all -E 'test(/^proxies::/)'

reembed-crash: setup-test ## a server that re-embeds is killed 20 times: does it go on by itself, and is everything there?
	REEMBED_CRASH_KILLS=$${REEMBED_CRASH_KILLS:-20} $(LONG_TEST) reembedding_crash::

reembed-load: setup-test setup-bench ## 20,000 real grains re-embedded beside ten callers, in release mode; 20 minutes
	REEMBED_LOAD_GRAINS=$${REEMBED_LOAD_GRAINS:-20000} $(LONG_TEST) --release reembedding_load::nobody

reembed-cut-over: setup-test ## the cut-over of 1,000,000 grains, in release mode; 15 minutes
	REEMBED_CUT_OVER_GRAINS=$${REEMBED_CUT_OVER_GRAINS:-1000000} $(LONG_TEST) --release reembedding_load::a_cut_over

setup-bench: setup # what the benchmarks need beyond that: fastembed behind FastAPI, and texts
	@scripts/setup-bench

bench: setup-bench ## Granary beside its peers over HTTP, some minutes on a quiet machine; ARGS="--only query" and the like
	cargo bench --locked --bench serving -- --output $(RESULTS) $(ARGS)
	python3 benches/chart.py $(RESULTS)

bench-engine: setup-bench ## the engine alone: tokens per second by length and batch, and how far from the machine's matrix peak
	cargo bench --locked --bench engine -- $(ARGS)

bench-overload: setup-bench ## Granary at twice the load it can serve
	cargo bench --locked --bench overload -- $(ARGS)

bench-index: ## the index of vectors alone: speed, recall and memory by size, and what its constants were chosen by
	cargo bench --locked --bench index -- $(ARGS)

bench-search: setup-bench ## grains over HTTP at 10,000, 100,000 and 1,000,000, beside sqlite-vec; ten minutes
	cargo bench --locked --bench search -- growth $(ARGS)

bench-quality: setup-bench ## how well 50,000 package descriptions are found, and how fast they are written; ten minutes
	cargo bench --locked --bench search -- quality $(ARGS)

bench-spaces: setup-bench setup-test ## how well they are found when two models have them, split three ways; half an hour
	cargo bench --locked --bench search -- spaces $(ARGS)

soak: setup-test ## three models under load while they come and go: vectors, failures, memory; 12 minutes, ARGS="--seconds 60"
	cargo bench --locked --bench soak -- soak $(ARGS)

soak-proxy: setup-test ## everything at once behind nginx for 15 minutes, then a stop under load; ARGS="--seconds 60"
	@scripts/setup-proxies
	cargo bench --locked --bench soak -- proxy $(ARGS)

cycles: setup-test ## a model of 440 MB loaded and unloaded 20 times: does memory come back?
	cargo bench --locked --bench soak -- cycles $(ARGS)

budget: setup-test ## 200 requests to three models in a memory budget that holds any two
	cargo bench --locked --bench soak -- budget $(ARGS)

fuzz: ## what reads requests, filters, imports and model folders, FUZZ_SECONDS (600) each; TARGETS="filters" for one
	scripts/fuzz $${FUZZ_SECONDS:-600} $(TARGETS)

# The fuzzers have a lock file of their own, which must follow Granary's dependencies.
lint: ## formatting, clippy with warnings denied, documentation, and the dependencies' licences, sources and bans
	@scripts/setup-tools
	cargo fmt --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo metadata --locked --manifest-path fuzz/Cargo.toml --format-version 1 > /dev/null
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	$(TOOLS)/cargo-deny --locked check bans licenses sources

fmt: ## format the code
	cargo fmt

openapi: ## write openapi/openapi.json anew
	cargo run --locked --quiet -- openapi > openapi/openapi.json.new
	mv openapi/openapi.json.new openapi/openapi.json

docs: ## the code's documentation, in target/doc/granary/
	cargo doc --locked --no-deps --document-private-items

image: ## the container image granary:latest, with docker, podman or buildah
	scripts/build-image

test-image: ## a container of granary:latest, closed as far as can be, answers the documentation's requests
	scripts/test-image

sbom: ## what the binary is made of (CycloneDX) and all licences, in target/sbom/
	scripts/sbom target/sbom

audit: ## known vulnerabilities of the dependencies; fetches the advisory database
	@scripts/setup-tools
	$(TOOLS)/cargo-deny --locked check advisories

clean: ## remove what was built; .granary/ stays
	cargo clean
