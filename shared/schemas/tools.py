"""Tools that a model may call, and its calls, in the form of OpenAI's chat completions.

Reference: OpenAI API, "Function calling". The worker parses the model's own notation of calls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import CallDelta, Function, Token, ToolCall, Tools
from shared.schemas.base import Body
from shared.schemas.neutral_fields import Unused
from shared.schemas.openapi_bounds import LIMITS, Items, Short
from shared.validation.json_text import fault

Word = Literal["none", "auto", "required"]


NULLABLE = ("const", "default")  # keywords of a JSON schema for which null is a value, not absence


class FunctionDefinition(Body):
    name: str = Field(description="1 to 128 letters, digits, or . _ : / -")
    description: str | None = Field(None, description="purpose of the function, for the model")
    parameters: dict[str, Any] | None = Field(None, description="the JSON schema of its arguments")
    strict: bool | None = Field(
        None,
        description="refuse parameters that cannot be enforced in full; otherwise enforce them as far as possible",
    )
    cache_control: Unused = None

    def to_function(self) -> Function:
        return Function(self.name, self.description or "", self._schema(), strict=bool(self.strict))

    def _schema(self) -> str:
        if self.parameters is None:
            return ""
        given = {name: value for name, value in self.parameters.items() if value is not None or name in NULLABLE}
        return json.dumps(given)


class Tool(Body):
    type: Literal["function"] = "function"
    function: FunctionDefinition
    cache_control: Unused = None


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[Items[NamedTool], Field(min_length=1, max_length=LIMITS.tools)]


class AllowedChoice(Body):
    """Some of the tools. The model is shown all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _branch(choice: Any) -> str:
    """Return the kind of a choice, which may be parsed already."""
    if isinstance(choice, AllowedChoice) or (isinstance(choice, dict) and choice.get("type") == "allowed_tools"):
        return "allowed"
    return "named" if isinstance(choice, dict | NamedTool) else "word"


ToolChoice = Annotated[
    Annotated[Word | None, Tag("word")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedChoice, Tag("allowed")],
    Discriminator(_branch),
]


class ToolFields(Body):
    """Fields that offer tools to the model."""

    tools: Items[Tool] | None = Field(None, description="functions that the model may call")
    tool_choice: ToolChoice = Field(
        None, description="none, auto, required, the function to call, or some of them; default with tools: auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="allow several calls; default true")

    def to_tools(self) -> Tools | None:
        """Return the tools. Raise InvalidRequest for a tool_choice without tools."""
        functions = [tool.function for tool in self.tools or ()]
        parallel = self.parallel_tool_calls is not False
        match self.tool_choice:
            case NamedTool(function=function):
                return tools_of(functions, function, parallel=parallel)
            case AllowedChoice(allowed_tools=allowed):
                names = [tool.function.name for tool in allowed.tools]
                return tools_of(functions, allowed.mode, parallel=parallel, allowed=names)
            case choice:
                return tools_of(functions, choice, parallel=parallel)


class Offered(Protocol):
    """A tool that the model is offered as a function."""

    def to_function(self) -> Function: ...


def tools_of(
    functions: Sequence[Offered],
    choice: Word | FunctionName | None,
    *,
    parallel: bool,
    allowed: Sequence[str] = (),
) -> Tools | None:
    """Return the tools, None if none may be called. Raise InvalidRequest for a tool_choice without tools.

    Args:
        allowed: names of the functions that may be called; empty for all.
    """
    if not functions:
        if choice not in (None, "none", "auto") or allowed:
            raise InvalidRequest("tool_choice is allowed with tools only", param="tool_choice")
        return None
    if choice == "none":
        return None
    return Tools(
        tuple(function.to_function() for function in functions),
        required=choice == "required",
        named=choice.name if isinstance(choice, FunctionName) else None,
        only=tuple(allowed),
        parallel=parallel,
    )


def _check_arguments(arguments: str) -> str:
    if (found := fault(arguments)) is not None:
        raise PydanticCustomError("arguments", "{fault}", {"fault": found})
    return arguments


def _as_text(arguments: Any) -> Any:
    """Return a call's arguments as JSON text; some clients send them as an object, or none."""
    if arguments is None or arguments == "":
        return "{}"
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


Arguments = Annotated[str, AfterValidator(_check_arguments), Field(description="JSON, as the model wrote it")]


class CalledFunction(Body):
    name: str
    arguments: Annotated[Arguments, BeforeValidator(_as_text)] = "{}"


class PastCall(Body):
    """A call that the model made in an earlier turn."""

    id: Short
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Unused = None

    def to_call(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments)


# answers


class FunctionCall(msgspec.Struct):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class AnswerCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    arguments: str
    name: str | None = None


class DeltaCall(msgspec.Struct, omit_defaults=True):
    """A piece of call number `index`; the first piece has its id and name."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None

    @classmethod
    def from_delta(cls, delta: CallDelta, job_id: str, choice: int) -> DeltaCall:
        if not delta.name:
            return cls(delta.index, FunctionDelta(delta.arguments))
        function = FunctionDelta(delta.arguments, delta.name)
        return cls(delta.index, function, call_id(job_id, choice, delta.index), "function")


def call_id(job_id: str, choice: int, index: int) -> str:
    """Return the id of a call, which is the same on every replica."""
    digest = hashlib.blake2b(f"{job_id}:{choice}:{index}".encode(), digest_size=12)
    return f"call_{digest.hexdigest()}"


def collect_calls(tokens: Iterable[Token], job_id: str, choice: int) -> list[AnswerCall]:
    """Return all calls of one choice."""
    calls: list[AnswerCall] = []
    for token in tokens:
        for delta in token.calls:
            if delta.name:
                calls.append(AnswerCall(call_id(job_id, choice, delta.index), FunctionCall(delta.name, "")))
            calls[delta.index].function.arguments += delta.arguments
    return calls
