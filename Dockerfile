# One image with every DES program. Build: docker build -t des .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    scripts/build-dist /out

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin des \
 && install -d -o des -g des /data /sources
COPY --from=build /out/bin/ /usr/local/bin/
USER 10001:10001
WORKDIR /data
CMD ["des", "--help"]
