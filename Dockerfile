# Mailkey in a container: built in one stage, run in another that holds the program, glibc and the system's
# root certificates, and nothing else: no shell, no package manager. `podman build` or `docker build` does it.
#
#   docker build -t mailkey .
#   docker run --read-only --cap-drop ALL -v ./proxy.yaml:/etc/mailkey/proxy.yaml:ro -p 127.0.0.1:1143:1143 mailkey
ARG RUST=docker.io/library/rust:1.95-slim-bookworm
FROM ${RUST} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake ca-certificates \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock proxy.yaml ./
COPY .cargo .cargo
COPY src src
# the tests are not built, but named in Cargo.toml
RUN mkdir -p tests && echo 'fn main() {}' > tests/main.rs \
    && cargo install --locked cargo-auditable@0.7.7 \
    && cargo auditable build --release --locked \
    && cp target/release/mailkey /mailkey

# What the program needs of the system, and no more.
FROM ${RUST} AS root
COPY --from=build /mailkey /root-of-image/usr/bin/mailkey
RUN set -eu; root=/root-of-image; \
    mkdir -p $root/etc/ssl/certs $root/etc/mailkey $root/tmp $root/var/lib/mailkey; \
    chmod 1777 $root/tmp; chown 65532:65532 $root/var/lib/mailkey; chmod 700 $root/var/lib/mailkey; \
    ldd /root-of-image/usr/bin/mailkey | grep -o '/[^ ]*' | sort -u | while read -r library; do \
        mkdir -p "$root$(dirname "$library")"; cp -L "$library" "$root$library"; done; \
    for name in libnss_dns libnss_files libresolv; do \
        for library in /lib/*/$name.so.2; do \
            if [ -e "$library" ]; then mkdir -p "$root$(dirname "$library")"; cp -L "$library" "$root$library"; fi; done; done; \
    cp -L /etc/ssl/certs/ca-certificates.crt $root/etc/ssl/certs/ca-certificates.crt; \
    echo 'mailkey:x:65532:65532::/var/lib/mailkey:/nonexistent' > $root/etc/passwd; \
    echo 'mailkey:x:65532:' > $root/etc/group; \
    echo 'hosts: files dns' > $root/etc/nsswitch.conf

FROM scratch
COPY --from=root /root-of-image/ /
ENV MAILKEY_CONFIG=/etc/mailkey/proxy.yaml
USER 65532:65532
WORKDIR /var/lib/mailkey
EXPOSE 1143 1110 1587 1080 9143
HEALTHCHECK --interval=15s --timeout=6s --start-period=10s CMD ["/usr/bin/mailkey", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/mailkey"]
CMD ["run"]
