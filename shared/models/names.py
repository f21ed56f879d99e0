"""Names and versions of served models."""

from __future__ import annotations

import re

MAX_MODEL_NAME_CHARS = 128
MODEL_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{MAX_MODEL_NAME_CHARS - 1}}}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")  # fits an int64
