"""LoRA adapters of `headrace.LLM`, with vLLM's names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from workers.engine.lora.interface import AdapterReader
    from workers.engine.lora.weights import AdapterWeights

PARAM = "lora_request"


@dataclass(frozen=True)
class LoRARequest:
    """An adapter to answer with.

    Attributes:
        lora_name: a name of the caller's choice.
        lora_int_id: at least 1. The same name, id and path mean the adapter that was loaded before, also if its
            files have changed since; another id loads it again.
        lora_path: its folder, absolute or relative to `lora_dir`, in which it must lie.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str | PathLike[str]


class LoadedAdapters:
    """Adapters of an engine, loaded when they are first used.

    Args:
        reader: loads them; None if the engine computes none.
        most: maximum adapters in memory, and in one call. Those used longest ago give way.
    """

    def __init__(self, reader: AdapterReader | None, most: int) -> None:
        self._reader = reader
        self._most = most
        self._loaded: OrderedDict[LoRARequest, AdapterWeights] = OrderedDict()

    def for_prompts(self, given: Any, count: int) -> list[AdapterWeights | None]:
        """Return the adapter of each of `count` prompts, given one request for all, one for each, or None.

        Raises InvalidRequest; ConfigError for an adapter that cannot be used, with the file and the reason.
        """
        wanted = _by_prompt(given, count)
        distinct = dict.fromkeys(each for each in wanted if each is not None)
        if len(distinct) > self._most:
            raise InvalidRequest(
                f"{PARAM} may name at most {self._most} adapters in one call (max_loras), got {len(distinct)}",
                param=PARAM,
            )
        found = {each: self._load(each) for each in distinct}
        return [None if each is None else found[each] for each in wanted]

    def _load(self, wanted: LoRARequest) -> AdapterWeights:
        if self._reader is None:
            raise InvalidRequest(f"{PARAM} needs lora_dir, the folder that holds the adapters", param=PARAM)
        if wanted not in self._loaded:
            self._loaded[wanted] = self._reader.load(fspath(wanted.lora_path))
        self._loaded.move_to_end(wanted)
        while len(self._loaded) > self._most:
            self._loaded.popitem(last=False)
        return self._loaded[wanted]


def _by_prompt(given: Any, count: int) -> list[LoRARequest | None]:
    each = list(given) if isinstance(given, Sequence) else [given] * count
    if len(each) != count:
        raise InvalidRequest(
            f"{PARAM} must be one, or one for each of the {count} prompts, got {len(each)}", param=PARAM
        )
    for wanted in each:
        if wanted is not None:
            _check(wanted)
    return each


def _check(wanted: object) -> None:
    """Raise InvalidRequest for a request whose fields have other types or values than they may."""
    if not isinstance(wanted, LoRARequest):
        raise InvalidRequest(f"{PARAM} must be a LoRARequest, got {type(wanted).__name__}", param=PARAM)
    for name, kinds in (("lora_name", str), ("lora_int_id", int), ("lora_path", str | PathLike)):
        if not isinstance(value := getattr(wanted, name), kinds):
            raise InvalidRequest(f"{name} has the wrong type {type(value).__name__}", param=PARAM)
    if wanted.lora_int_id < 1:
        raise InvalidRequest(f"lora_int_id must be at least 1, got {wanted.lora_int_id}", param=PARAM)
