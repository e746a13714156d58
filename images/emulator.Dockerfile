# The emulated servers: one set of files, and a target for each server. They take flags only.
FROM drillyard/base:local AS files
ENV PYTHONPATH=/drillyard/src:/drillyard/lib PYTHONDONTWRITEBYTECODE=1
# Compiled here, by the very Python that runs them; unchecked, because an image does not change under its files.
COPY lib /drillyard/lib
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /drillyard/lib
COPY src /drillyard/src
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /drillyard/src
# Packages of another platform would not load here; better to learn it now.
RUN ["python3", "-P", "-c", "import drillyard.emulator.pd.server, drillyard.emulator.tikv.server"]
COPY run-server /
WORKDIR /
LABEL drillyard.kind="emulated"

FROM files AS tikv-emulator
ENTRYPOINT ["/run-server", "python3", "-P", "-m", "drillyard.emulator.tikv.server"]

FROM files AS pd-emulator
ENTRYPOINT ["/run-server", "python3", "-P", "-m", "drillyard.emulator.pd.server"]
