# A real PD, built from its Go module. It takes flags only.
FROM drillyard/base:local
COPY run-server pd-server /
# A PD that was linked on a newer Linux would not start here; better to learn it now.
RUN ["/pd-server", "--version"]
WORKDIR /
LABEL drillyard.kind="real"
ENTRYPOINT ["/run-server", "/pd-server"]
