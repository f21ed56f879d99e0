# Three targets: `api` and `tasks` (without torch) and `worker`. All run as an unprivileged user.
#   docker build --target api -t headrace-api .
#   docker build --target tasks -t headrace-tasks .
#   docker build --target worker -t headrace-worker .
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 headrace \
    && mkdir -p /data/files /cache && chown -R headrace:headrace /data /cache
ENV HEADRACE_DATA_DIR=/data HEADRACE_CACHE_DIR=/cache HEADRACE_LOG_FORMAT=json
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY headrace headrace
COPY shared shared
COPY producer_api producer_api
COPY workers workers

FROM base AS api
RUN pip install -c constraints.txt ".[grpc]"
USER headrace
# run `headrace keys create` in this container to create the first key; see docs/security.md
ENV HEADRACE_HOST=0.0.0.0 HEADRACE_AUTH=true
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/live', timeout=2)"]
CMD ["headrace", "api"]

FROM base AS tasks
RUN pip install -c constraints.txt ".[tasks]"
USER headrace
# it listens on no port, so the check is whether it can reach Redis
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s \
    CMD ["headrace", "doctor"]
STOPSIGNAL SIGTERM
CMD ["headrace", "tasks"]

FROM base AS worker
# g++ builds the engine's kernels at the first start; without it the engine falls back to plain torch, which is slower
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install -c constraints.txt ".[worker,convert]"
USER headrace
ENV HEADRACE_HOST=0.0.0.0 HEADRACE_METRICS_PORT=9100
VOLUME /cache
EXPOSE 9100
# the first start converts the model, which takes a while; /metrics responds from the beginning
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9100/metrics', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["headrace", "worker"]
