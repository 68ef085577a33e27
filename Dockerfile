# The container image: `make image` builds it, docs/deploying.md tells how to run it.
#
# BUILD_IMAGE needs Rust, a C compiler and apt; RUNTIME_IMAGE only glibc 2.28 or later with libstdc++. Nothing is run in the
# latter. Behind mirrors, give pip and cargo their settings as secrets, which stay out of the image:
#   --secret id=pip,src=/etc/pip.conf --secret id=cargo,src=$HOME/.cargo/config.toml
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

# What set-up fetches, pinned and checked: the runtime library and the default model. Before the code, which changes more often.
FROM ${BUILD_IMAGE} AS fetched
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY scripts/setup scripts/provision.py scripts/write_onnx.py scripts/requirements-setup.txt scripts/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    GRANARY_MODELS__DATA_DIR=/opt/granary scripts/setup \
    && cd /opt/granary && rm -rf .gitignore .lock .setup python stamps

FROM ${BUILD_IMAGE} AS built
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs LICENSE ./
COPY .cargo .cargo
COPY benches benches
COPY migrations migrations
COPY scripts/sbom scripts/setup scripts/provision.py scripts/
COPY src src
ARG COMMIT=
# The registry and what was compiled are kept between builds, and are no part of the stage.
RUN --mount=type=secret,id=cargo,target=/usr/local/cargo/config.toml \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    GRANARY_COMMIT=${COMMIT} cargo build --release --locked --bin granary \
    && install -D target/release/granary /out/usr/local/bin/granary \
    && scripts/sbom /out/usr/share/doc/granary
RUN cd /out/usr && install -D --mode=644 --target-directory=share/doc/granary /build/LICENSE \
    && local/bin/granary man --into share/man/man1 \
    && mkdir -p share/bash-completion/completions \
    && local/bin/granary completions bash > share/bash-completion/completions/granary \
    && mkdir /empty

FROM ${RUNTIME_IMAGE}
ARG COMMIT=
ARG VERSION=
LABEL org.opencontainers.image.title="Granary" \
      org.opencontainers.image.description="Text embeddings from several models, and a store that knows which model made each vector" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=fetched /opt/granary /opt/granary
# For downloads from a hub.
COPY --from=built /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# Nobody owns files but root, and this user the data.
COPY --from=built --chown=10001:10001 /empty /data
COPY --from=built /out /
# All that is written goes to /data: the database with its indexes and snapshots, keys, and models of a hub.
ENV GRANARY_SERVER__HOST=0.0.0.0 \
    GRANARY_MODELS__DATA_DIR=/data \
    GRANARY_MODELS__SYSTEM_DIR=/opt/granary \
    HF_HOME=/data/huggingface \
    SQLITE_TMPDIR=/data
# A number, so that a cluster can see that it is not root.
USER 10001:10001
# `granary.toml` is looked for here.
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
# Upgrading a large database, or making its indexes again, comes before the first answer, which ends the start period. As in
# docker/k8s, nobody is to stop that: it would begin anew.
HEALTHCHECK --interval=10s --timeout=6s --start-period=24h --retries=3 CMD ["granary", "health"]
ENTRYPOINT ["granary"]
CMD ["serve"]
