# Three targets: `api` and `tasks` (without torch) and `worker`. All run as an unprivileged user, with a read-only root.
#   docker build --target api -t headrace-api:0.1.0 .
#   docker build --target tasks -t headrace-tasks:0.1.0 .
#   docker build --target worker -t headrace-worker:0.1.0 .
# With SOURCE_DATE_EPOCH and BuildKit's rewrite-timestamp=true, two builds of one commit have equal layers: packages are
# pinned by constraints.txt, and byte code holds hashes instead of times.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# the wheel is built once; its source stays out of the images
FROM ${PYTHON_IMAGE} AS wheel
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE THIRD_PARTY.md ./
COPY headrace headrace
COPY shared shared
COPY producer_api producer_api
COPY workers workers
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS packages
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/headrace/bin:$PATH
COPY constraints.txt /
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/headrace

FROM packages AS api-packages
RUN pip install --no-compile --constraint /constraints.txt "$(ls /wheels/headrace-*.whl)[grpc,kafka,postgres,otel]" \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/headrace

FROM packages AS tasks-packages
RUN pip install --no-compile --constraint /constraints.txt "$(ls /wheels/headrace-*.whl)[tasks,postgres,otel]" \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/headrace

FROM packages AS worker-packages
RUN pip install --no-compile --constraint /constraints.txt "$(ls /wheels/headrace-*.whl)[worker,convert,kafka,otel]" \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/headrace

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/headrace/bin:$PATH \
    HOME=/tmp HEADRACE_DATA_DIR=/data HEADRACE_CACHE_DIR=/cache HEADRACE_LOG_FORMAT=json
RUN useradd --no-create-home --home-dir /tmp --uid 10001 headrace \
    && mkdir -p /data/files /cache \
    && chown -R headrace:headrace /data /cache
WORKDIR /data
STOPSIGNAL SIGTERM

FROM base AS api
COPY --from=api-packages /opt/headrace /opt/headrace
USER 10001:10001
# run `headrace keys create` in this container to create the first key; see docs/security.md
ENV HEADRACE_HOST=0.0.0.0 HEADRACE_AUTH=true
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/live', timeout=2)"]
CMD ["headrace", "api"]

FROM base AS tasks
COPY --from=tasks-packages /opt/headrace /opt/headrace
USER 10001:10001
ENV HEADRACE_HOST=0.0.0.0 HEADRACE_TASKS_METRICS_PORT=9402
EXPOSE 9402
# it serves metrics only, which do not depend on Redis, so the check is whether it can reach Redis
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s \
    CMD ["headrace", "doctor"]
CMD ["headrace", "tasks"]

FROM base AS worker
# g++ builds the engine's kernels at the first start, and Triton's launchers; without it, the engine runs plain torch
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig/aux-cache
COPY --from=worker-packages /opt/headrace /opt/headrace
USER 10001:10001
ENV HEADRACE_HOST=0.0.0.0 HEADRACE_METRICS_PORT=9401 \
    HF_HOME=/cache/huggingface TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor
VOLUME /cache
EXPOSE 9401
# the first start converts the model, which takes a while; /metrics responds from the beginning
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9401/metrics', timeout=2)"]
CMD ["headrace", "worker"]
