"""The settings and their sources.

Every package may import this one; it imports only `shared.errors` and `shared.plans`.
"""

from shared.settings.engine_fields import (
    QuantizationName,
    ReasoningParserName,
    SpeculationMode,
    WatermarkAlgorithm,
)
from shared.settings.fields import NO_MODEL, Settings, user_folder
from shared.settings.observability_fields import MetricsNames
from shared.settings.repository_fields import ModelControl, parse_memory
from shared.settings.routing_fields import PolicyName, RoutingKey
from shared.settings.runtime_fields import RuntimeName, UpstreamResume
from shared.settings.sources import CONFIG_FILE, ENV_PREFIX, Loaded, load, to_environment

__all__ = [
    "CONFIG_FILE",
    "ENV_PREFIX",
    "NO_MODEL",
    "Loaded",
    "MetricsNames",
    "ModelControl",
    "PolicyName",
    "QuantizationName",
    "ReasoningParserName",
    "RoutingKey",
    "RuntimeName",
    "Settings",
    "SpeculationMode",
    "UpstreamResume",
    "WatermarkAlgorithm",
    "load",
    "parse_memory",
    "to_environment",
    "user_folder",
]
