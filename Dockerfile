# The image of meshd: `docker build -t REGISTRY/meshd:0.1.0 .`
#
# The same image as `cargo xtask image` makes without a container engine: two programs linked statically and the root
# certificates, no shell, no package manager, no C library. This file itself has not been built where it was written, for want of
# an engine; the command has.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock deny.toml ./
COPY .cargo .cargo
COPY bench bench
COPY mesh-common mesh-common
COPY mesh-ebpf mesh-ebpf
COPY mesh-user mesh-user
COPY xtask xtask
COPY docs docs
COPY deploy deploy
RUN cargo xtask image

FROM scratch
COPY --from=build /src/target/image/root /
ENV PATH=/usr/bin
ENTRYPOINT ["/usr/bin/meshd"]
