"""Errors of bodies in the words of the API: pydantic's findings, without its names of validators and branches.

The location of a finding mixes names of fields with those of a union's branches (`tool_choice.literal['none',…]`).
So it is followed through the body: a part that the body does not have there is no field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from shared.schemas.field_paths import field_path

# types of OpenAI's APIs that are not supported; an error quotes no other text of the client
KNOWN_TAGS = frozenset(
    (
        *(
            "image_url",
            "input_image",
            "input_audio",
            "input_file",
            "input_video",
            "video_url",
            "audio_url",
            "audio",
        ),
        *(
            "image",
            "file",
            "document",
            "tool_use",
            "tool_result",
            "custom",
            "function",
            "grammar",
            "structural_tag",
        ),
        *("web_search", "file_search", "code_interpreter", "image_generation", "mcp", "web_search_call"),
    )
)
# by pydantic's type of error, filled with its context
TEXTS: Mapping[str, str] = {
    "missing": "is required",
    "none_required": "must be null",
    "bool_type": "must be true or false",
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing", "int_parsing_size"), "must be an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the regular expression {pattern}",
    "literal_error": "must be {expected}",
    **dict.fromkeys(("list_type", "tuple_type", "is_instance_of"), "must be an array"),
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be an object"),
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
}
OTHER = "has a value that is not allowed"
_WRONG_TYPES = {kind for kind in get_args(ErrorType) if kind.endswith("_type")} | {"literal_error"}
_PYDANTICS = frozenset(get_args(ErrorType))
_KEY = "[key]"  # the last part of the location of a wrong key
Place = tuple[int | str, ...]


def wrong_fields(error: ValidationError, body: Any) -> Sequence[tuple[str, str]]:
    """Return the path of each wrong field of a parsed JSON `body`, with what is wrong.

    Of a union, only the branch that the body follows farthest counts.
    """
    found: dict[Place, list[str]] = {}
    of_type: dict[Place, list[str]] = {}  # only reported where nothing else is wrong
    for item in error.errors(include_url=False, include_input=False):
        place, text = _finding(item, body)
        found.setdefault(place, [])
        (of_type if item["type"] in _WRONG_TYPES else found).setdefault(place, []).append(text)
    outer = {place[:size] for place in found for size in range(len(place))}
    inner = {place: texts for place, texts in found.items() if place not in outer}
    return [(field_path(place), _joined(texts or of_type[place])) for place, texts in inner.items()]


def _finding(item: ErrorDetails, body: Any) -> tuple[Place, str]:
    loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
    if loc and loc[-1] == _KEY:
        return _place(loc[:-1], body), f"has a name that {_text(item)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = context["discriminator"].strip("'")
        name = "type" if name.endswith("()") else name  # a function that looks at the type
        place = (*_place(loc, body), name)
        return place, _wrong_tag(context) if kind == "union_tag_invalid" else "is required"
    return _place(loc, body, missing=kind.startswith("missing")), _text(item)


def _place(loc: Sequence[int | str], body: Any, *, missing: bool = False) -> Place:
    """Return the parts of a location that are fields and indexes of `body`; the last one may be missing in it."""
    place: list[int | str] = []
    value = body
    for i, part in enumerate(loc):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            place.append(part)
            value = value[part]  # type: ignore[index]
        elif missing and i == len(loc) - 1:
            place.append(part)
    return tuple(place)


def _text(item: ErrorDetails) -> str:
    """Return what is wrong, in our words; validators of our own speak for themselves."""
    if item["type"] not in _PYDANTICS:
        return item["msg"]
    return TEXTS.get(item["type"], OTHER).format(**item.get("ctx", {}))


def _wrong_tag(context: Mapping[str, Any]) -> str:
    text, tag = f"must be one of {context['expected_tags']}", str(context["tag"])
    return f"{text}, got {tag}" if tag in KNOWN_TAGS else text


def _joined(texts: Iterable[str]) -> str:
    """Return "must be a string or an array" for what two branches of a union say."""
    first, *others = dict.fromkeys(texts)
    more = [text.removeprefix("must be ") for text in others if text.startswith("must be ")]
    return " or ".join([first, *more]) if first.startswith("must be ") else first


def sentence(param: str, text: str) -> str:
    """Return a field and what is wrong with it as one sentence."""
    if not param:
        return f"the body {text}"
    return f"{param} {text}" if text.startswith(("must ", "is ", "has ")) else f"{param}: {text}"
