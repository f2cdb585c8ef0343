# One image with every DES program. Build: docker build -t des .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist -p des -p des-coordinator -p des-worker -p des-retriever \
 && install -D -t /out target/dist/des target/dist/des-pack \
      target/dist/des-coordinator target/dist/des-worker target/dist/des-retriever

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin des \
 && install -d -o des -g des /data /sources
COPY --from=build /out/ /usr/local/bin/
USER 10001:10001
WORKDIR /data
CMD ["des", "--help"]
