"""`python -m headrace.cli.mock_kafka …`: the headrace command line, adapted to librdkafka's mock cluster."""

from __future__ import annotations

from headrace.bench.kafka.mock_kafka import adapt
from headrace.cli.main import main
from shared.settings import load

if __name__ == "__main__":
    adapt(load().settings.redis_url.get_secret_value())
    main()
