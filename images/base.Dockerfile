# The base on top of a Debian bookworm image of a registry; without one, images/debian-root makes the same.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
# An image that has everything already needs no network.
RUN command -v python3 && command -v curl && command -v ip && command -v iptables || { \
      apt-get update \
      && apt-get install -y --no-install-recommends python3 curl ca-certificates iproute2 iptables \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc/* /usr/share/man/*; \
    }
WORKDIR /
ENTRYPOINT []
CMD ["/bin/sh"]
