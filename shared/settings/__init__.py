"""The settings and their sources.

Every package may import this one; it imports only `shared.errors` and `shared.plans`.
"""

from shared.settings.engine_fields import QuantizationName, ReasoningParserName
from shared.settings.fields import Settings, user_folder
from shared.settings.sources import CONFIG_FILE, ENV_PREFIX, Loaded, load, to_environment

__all__ = [
    "CONFIG_FILE",
    "ENV_PREFIX",
    "Loaded",
    "QuantizationName",
    "ReasoningParserName",
    "Settings",
    "load",
    "to_environment",
    "user_folder",
]
