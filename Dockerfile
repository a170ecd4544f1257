# syntax=docker/dockerfile:1
# The configuration goes to /etc/twinspan/twinspan.toml; ports below 1024 need
# `--sysctl net.ipv4.ip_unprivileged_port_start=0` or CAP_NET_BIND_SERVICE.
# Any final image with glibc 2.36 or later will do; a distroless one (cc, nonroot) has no shell and is a third of the size.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG FINAL_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin twinspan

FROM ${FINAL_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twinspan" \
      org.opencontainers.image.description="Layer-4 cross-cloud traffic proxy" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /src/target/release/twinspan /usr/local/bin/twinspan
COPY --from=build /src/LICENSE-APACHE /src/LICENSE-MIT /usr/share/doc/twinspan/
USER 65532:65532
# Health and metrics. Listeners are the config's own.
EXPOSE 9798
# SIGTERM drains; give the container longer than `drain_timeout` (25 s) before it is killed.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/twinspan", "health"]
ENTRYPOINT ["/usr/local/bin/twinspan"]
CMD ["run", "-c", "/etc/twinspan/twinspan.toml"]
