"""Commands of `headrace models` for traffic: aliases, splits, shadow copies and what these showed."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from headrace.cli.options import AdminUrl, ApiKey, Json, client_at, plain_table, print_json
from headrace.terminal import Terminal, print_text
from shared.errors import ConfigError
from shared.repository.traffic.rules import KeyKind

Name = Annotated[str, typer.Argument(help="Name that requests ask for.")]
Target = Annotated[str | None, typer.Argument(help="MODEL, or MODEL@VERSION.")]
Remove = Annotated[bool, typer.Option("--remove", help="Remove the rule.")]


def alias(
    name: Name,
    target: Target = None,
    *,
    url: AdminUrl,
    remove: Remove = False,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Send the requests for a name to a model, or remove the alias."""
    body = None if target is None else {"branches": [_target(target)]}
    _set(name, "split", body, remove=remove, url=url, api_key=api_key, as_json=as_json)


def split(
    name: Name,
    branches: Annotated[
        list[str] | None, typer.Argument(help="MODEL=WEIGHT or MODEL@VERSION=WEIGHT; a canary comes last.")
    ] = None,
    *,
    url: AdminUrl,
    by: Annotated[
        str, typer.Option(help=f"What decides on the branch: {', '.join(get_args(KeyKind))}.")
    ] = "request",
    remove: Remove = False,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Split the requests for a name between models or versions, or remove the split."""
    body = {"branches": [_branch(each) for each in branches], "by": by} if branches else None
    _set(name, "split", body, remove=remove, url=url, api_key=api_key, as_json=as_json)


def shadow(
    name: Name,
    target: Target = None,
    *,
    url: AdminUrl,
    share: Annotated[float, typer.Option(help="Share of the requests that are copied, up to 1.")] = 1.0,
    remove: Remove = False,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Send copies of the requests for a name to another model, or stop it. Their answers go to no client."""
    body = None if target is None else {**_target(target), "share": share}
    _set(name, "shadow", body, remove=remove, url=url, api_key=api_key, as_json=as_json)


def compare(name: Name, url: AdminUrl, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Compare the outputs and latencies of requests and their shadow copies."""
    from headrace.client.operations import segment

    with client_at(url, api_key) as client:
        found = client.administer("GET", f"/admin/models/{segment(name)}/comparison")
    if as_json:
        print_json(found)
        return
    print_text(f"{found['pairs']} pairs, {found['compared']} compared")
    print(f"same output: {_percent(found['exact'])}, same label: {_percent(found['labels_agree'])}")
    print(f"largest difference: {_number(found['max_difference'])}")
    table = plain_table("", "median", "p95", "failed")
    for title in ("original", "shadow"):
        latency = found[f"{title}_latency"]
        times = (_milliseconds(latency[each]) for each in ("median", "p95"))
        table.add_row(title, *times, str(found[f"{title}_failed"]))
    Terminal().print(table)


def _set(
    name: str,
    rule: str,
    body: dict[str, Any] | None,
    *,
    remove: bool,
    url: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Set or remove a rule, and print the server's answer."""
    from headrace.client.operations import segment

    if (body is None) is not remove:
        raise ConfigError("either a model or --remove must be given")
    with client_at(url, api_key) as client:
        method = "DELETE" if remove else "POST"
        found = client.administer(method, f"/admin/models/{segment(name)}/{rule}", body)
    if as_json:
        print_json(found)
    elif remove:
        print(f"{name}: {'removed' if found['removed'] else f'there was no {rule}'}")
    else:
        print(f"{name}: {rule} is set")


def _target(text: str) -> dict[str, Any]:
    """Parse MODEL or MODEL@VERSION."""
    model, _, version = text.partition("@")
    return {"model": model, "version": version}


def _branch(text: str) -> dict[str, Any]:
    """Parse MODEL=WEIGHT or MODEL@VERSION=WEIGHT."""
    target, _, weight = text.rpartition("=")
    try:
        return {**_target(target), "weight": float(weight)}
    except ValueError:
        raise ConfigError(f"a branch must be MODEL=WEIGHT or MODEL@VERSION=WEIGHT, got {text!r}") from None


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f} ms"
