# The image of meshd: `docker build -t REGISTRY/meshd:0.1.0 .`
#
# Built as on any machine (`cargo xtask build` installs what it needs), on the Debian whose C library the image has. What is left
# is two programs, glibc and libgcc: no shell, no package manager. Not linked statically: glibc looks names up by modules that it
# loads, and a build for musl has not been tried. This file has not been built where it was written, for want of an engine.
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
RUN cargo xtask build && strip target/release/meshd target/release/meshctl

FROM gcr.io/distroless/cc-debian12
COPY --from=build /src/target/release/meshd /src/target/release/meshctl /usr/bin/
ENTRYPOINT ["/usr/bin/meshd"]
