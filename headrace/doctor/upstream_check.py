"""Check of the upstream server that executes requests."""

from __future__ import annotations

from headrace.doctor.finding import Finding
from shared.errors import ConfigError, Unavailable
from shared.models.upstream import UpstreamAddress, find_model
from shared.settings import Settings


def examine_upstream(settings: Settings) -> Finding:
    """Ask the server for its models once."""
    try:
        model = find_model(UpstreamAddress.from_settings(settings), settings.upstream_model)
    except Unavailable as error:
        return Finding("upstream", "failed", error.message, "start the server, or correct upstream_url")
    except ConfigError as error:
        return Finding("upstream", "failed", error.message, f"correct {error.param or 'upstream_url'}")
    context = "unknown context" if model.max_model_len is None else f"context of {model.max_model_len} tokens"
    return Finding("upstream", "ok", f"{settings.upstream_url}: {model.name}, {context}, server {model.kind}")
