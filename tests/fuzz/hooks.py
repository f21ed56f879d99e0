"""Values that schemathesis cannot guess, model names and ids, and its check for faults of the server.

It loads this module through SCHEMATHESIS_HOOKS.
"""

from __future__ import annotations

import json
import os
from typing import Any

import schemathesis
from schemathesis.checks import CheckContext, not_a_server_error

KNOWN: dict[str, list[str]] = json.loads(os.environ["HEADRACE_FUZZ"])  # by the name of the field or parameter


def _known(fields: Any) -> Any:
    """Replace three of four strings in known fields by known values."""
    if not isinstance(fields, dict):
        return fields
    found = dict(fields)
    for name, values in KNOWN.items():
        given = found.get(name)
        if isinstance(given, str) and len(given) % 4:
            found[name] = values[len(given) % len(values)]
    return found


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    return _known(body)


@schemathesis.hook
def map_path_parameters(context: schemathesis.HookContext, path_parameters: Any) -> Any:
    return _known(path_parameters)


@schemathesis.check
def no_fault_of_the_server(
    ctx: CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """Fail for a server error, except for the refusal of a target that a slow machine cannot meet."""
    if response.status_code == 503 and b"later than the target" in response.content:
        return None
    return not_a_server_error(ctx, response, case)
