"""The engine in this process, in the shape that users of vLLM know: no queue, no Redis.

It knows nothing of scheduling or of weights; it turns prompts into requests of the engine, steps it until all have
ended, and puts the answers together in the order of the prompts. torch is imported when a model is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shared import protocol
from shared.errors import ConfigError, HeadraceError, InvalidRequest
from shared.models.model_store import DEFAULT, ModelRepository
from shared.protocol import Message, Structured, Token
from shared.settings import Settings, load
from shared.validation.request_limits import Limits, check_params
from workers.engine.interface import Form

if TYPE_CHECKING:
    from workers.engine.engine import Engine
    from workers.engine.interface import EngineOutput, EngineRequest, Matcher

Prompt = str | Sequence[int] | Mapping[str, Any]
Turn = Mapping[str, str]


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must look like: one of these, by vLLM's names.

    Attributes:
        json: a JSON schema, as an object or as text; a pydantic model's is `Model.model_json_schema()`.
        json_object: any JSON object.
        regex: a regular expression for the whole answer.
        choice: one of these texts.
        grammar: EBNF as llama.cpp's GBNF has it, with a rule `root`.
    """

    json: dict[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] = ()
    grammar: str | None = None

    def settled(self) -> Structured:
        """As the engine takes it."""
        schema = self.json if self.json is None or isinstance(self.json, str) else json.dumps(self.json)
        return Structured(
            json_schema=schema,
            json_object=self.json_object,
            regex=self.regex,
            choice=tuple(self.choice),
            grammar=self.grammar,
        )


class SamplingParams(protocol.SamplingParams, frozen=True, kw_only=True):
    """The server's sampling parameters, as a program writes them.

    Attributes:
        seed: drawn for each prompt where it is None.
        stop: one string, or several, or None.
        top_k: -1 keeps all tokens, as 0 does.
    """

    seed: int | None = None  # type: ignore[assignment]  # wider than on the wire: `_settled` narrows both
    stop: str | Sequence[str] | None = ()  # type: ignore[assignment]
    structured_outputs: StructuredOutputsParams | Structured | None = None  # type: ignore[assignment]  # as `seed`


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability; `rank` is 1 for the likeliest, None where it is beyond those asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass
class CompletionOutput:
    """One choice. `logprobs` has one mapping from token id for each token, where they were asked for.

    `finish_reason` is "stop", "length", or "error" where the request could not be computed to its end.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[dict[int, Logprob]] | None = None

    def extend(self, token: Token) -> None:
        """Take the choice's next token."""
        self.text += token.text
        self.token_ids.append(token.id)
        self.finish_reason = token.finish_reason and token.finish_reason.value
        if self.logprobs is not None:
            self.logprobs.append(_logprobs(token))


@dataclass
class RequestOutput:
    """One prompt's answer. `prompt` is None where token ids or messages were given.

    With `error` the engine failed on this prompt alone, and `outputs` has what there was until then.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    error: HeadraceError | None = None


class LLM:
    """One model, loaded.

    Args:
        model: folder, Hugging Face id, or smollm2.
        settings: of `EngineConfig`: device, dtype, quantization, max_model_len, max_num_seqs,
            gpu_memory_utilization …; what is not given comes from the environment, headrace.toml or the default.

    Raises:
        ConfigError: a setting that does not exist or is out of range, or a model that cannot be served.
    """

    def __init__(self, model: str | PathLike[str] = DEFAULT, **settings: Any) -> None:
        self._engine = _load(fspath(model), settings)
        self._one_call = threading.Lock()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: protocol.SamplingParams | Sequence[protocol.SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer all prompts, batched; a second thread's call waits for the first.

        Args:
            prompts: one or several; each a text, token ids, or a mapping with `prompt` or `prompt_token_ids`.
            sampling_params: one for all, or one for each prompt.
            use_tqdm: show progress on stderr.

        Returns:
            In the order of the prompts. One that the engine failed on carries its error; the others are whole.

        Raises:
            InvalidRequest: for any of the prompts or parameters, before anything is computed.
        """
        texts = [_unwrapped(prompt) for prompt in _listed(prompts)]
        return self._answer(texts, self._tokenized, sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Turn] | Sequence[Sequence[Turn]],
        sampling_params: protocol.SamplingParams | Sequence[protocol.SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """As `generate`, for one conversation or several, by the model's chat template.

        Args:
            messages: turns with `role` and `content`.
        """
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if one else list(messages)
        return self._answer(conversations, self._rendered, sampling_params, use_tqdm)

    def _answer(
        self, prompts: list[Any], encode: Callable[[Any], list[int]], params: Any, use_tqdm: bool
    ) -> list[RequestOutput]:
        wire = [self._settled(each) for each in _spread(params, len(prompts))]
        answers: dict[str, RequestOutput] = {}
        with self._one_call, self._batch(answers):
            for number, (prompt, chosen) in enumerate(zip(prompts, wire, strict=True)):
                with _at(number):
                    request = _request(str(number), encode(prompt), chosen, self._matcher(chosen))
                    answers[request.id] = _blank(request, prompt if isinstance(prompt, str) else None)
                    self._engine.add(request)
            self._run(answers, use_tqdm)
        return list(answers.values())

    @contextmanager
    def _batch(self, answers: dict[str, RequestOutput]) -> Iterator[None]:
        """Leaves nothing in the engine, whether the batch ends, is refused, or is interrupted by Ctrl-C."""
        try:
            yield
        finally:
            for request_id in answers:
                self._engine.abort(request_id)

    def _run(self, answers: dict[str, RequestOutput], use_tqdm: bool) -> None:
        tokens = 0
        with _progress(use_tqdm) as progress:
            bar = progress.add_task("Processed prompts", total=len(answers), rate="")
            while self._engine.has_work():
                outputs = self._engine.step()
                for output in outputs:
                    _collect(answers[output.job_id], output)
                    tokens += len(output.tokens)
                seconds = progress.tasks[bar].elapsed
                rate = f"{tokens / seconds:,.0f} output tokens/s" if seconds else ""
                progress.update(bar, advance=sum(output.finished for output in outputs), rate=rate)

    def _tokenized(self, prompt: str | list[int]) -> list[int]:
        return self._engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def _rendered(self, turns: Sequence[Turn]) -> list[int]:
        try:
            messages = msgspec.convert(turns, list[Message])
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"a turn has role and content, both text: {error}", param="messages") from None
        if not messages:
            raise InvalidRequest("messages must not be empty", param="messages")
        return self._engine.tokenizer.encode_chat(messages)

    def _matcher(self, params: protocol.SamplingParams) -> Callable[[], Matcher] | None:
        """Of the grammar that the answer is held to; compiled once. Raises InvalidRequest."""
        if params.structured_outputs is None:
            return None
        if self._engine.constraints is None:
            raise InvalidRequest(
                "xgrammar is not installed: pip install headrace[worker]", param="structured_outputs"
            )
        return self._engine.constraints.start(Form(params.structured_outputs)).result().matcher

    def _settled(self, params: protocol.SamplingParams) -> protocol.SamplingParams:
        """What the engine takes: checked, and with a seed. Raises InvalidRequest."""
        values = msgspec.structs.asdict(params)
        if values["seed"] is None:
            values["seed"] = secrets.randbits(63)
        values["stop"] = [values["stop"]] if isinstance(values["stop"], str) else values["stop"] or ()
        if isinstance(values["structured_outputs"], StructuredOutputsParams):
            values["structured_outputs"] = values["structured_outputs"].settled()
        values["top_k"] = 0 if values["top_k"] == -1 else values["top_k"]
        try:
            wire = msgspec.convert(values, protocol.SamplingParams)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"sampling_params: {error}", param="sampling_params") from None
        if wire.echo:
            raise InvalidRequest("echo: a prompt is not told again here", param="echo")
        # how long and how many is for the engine to say
        check_params(wire, Limits(max_tokens=max(wire.max_tokens or 1, 1), n=max(wire.n, 1)))
        return wire


def _load(model: str, given: dict[str, Any]) -> Engine:
    try:
        from workers.engine.config import EngineConfig
        from workers.engine.engine import Engine
    except ImportError as error:
        raise ConfigError(f"the engine cannot be imported ({error}): install headrace[worker]") from error
    known = {each.name for each in dataclasses.fields(EngineConfig)} - {"model"}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"{unknown[0]} is no setting of the engine; these are: {', '.join(sorted(known))}")
    common = {name: value for name, value in given.items() if name in Settings.model_fields}
    settings = load({**common, "model": model}).settings
    config = EngineConfig.of(settings, ModelRepository(settings).folder())
    own = {name: value for name, value in given.items() if name not in common}
    return Engine.load(dataclasses.replace(config, **own))


def _listed(prompts: Any) -> Iterable[Any]:
    """One prompt or several, as several."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise InvalidRequest("prompts must be a text, token ids, or a list of them", param="prompts")
    return [prompts] if prompts and isinstance(prompts[0], int) else prompts


def _unwrapped(prompt: Any) -> str | list[int]:
    """The text or token ids of one prompt."""
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(type(token) is int for token in prompt):
        return list(prompt)
    raise InvalidRequest("a prompt must be a text or token ids", param="prompts")


def _spread(params: Any, count: int) -> list[protocol.SamplingParams]:
    """One set of parameters for each prompt."""
    if params is None or isinstance(params, protocol.SamplingParams):
        return [params or SamplingParams()] * count
    listed = list(params)
    if len(listed) != count:
        raise InvalidRequest(f"{len(listed)} sampling_params for {count} prompts", param="sampling_params")
    return listed


@contextmanager
def _at(number: int) -> Iterator[None]:
    """Says which prompt an error is about."""
    try:
        yield
    except HeadraceError as error:
        raise type(error)(f"prompts[{number}]: {error.message}", param=error.param) from error


def _request(
    request_id: str, ids: list[int], params: protocol.SamplingParams, matcher: Callable[[], Matcher] | None
) -> EngineRequest:
    from workers.engine.interface import EngineRequest

    return EngineRequest(request_id, tuple(ids), params, matcher=matcher)


def _blank(request: EngineRequest, prompt: str | None) -> RequestOutput:
    wanted = request.params.logprobs is not None
    choices = [CompletionOutput(index, logprobs=[] if wanted else None) for index in range(request.params.n)]
    return RequestOutput(request.id, prompt, list(request.prompt), choices)


def _collect(answer: RequestOutput, output: EngineOutput) -> None:
    for token in output.tokens:
        answer.outputs[token.choice].extend(token)
    if output.error is not None:
        answer.error = output.error
        for choice in answer.outputs:
            choice.finish_reason = choice.finish_reason or "error"


def _logprobs(token: Token) -> dict[int, Logprob]:
    """Of the likeliest tokens, likeliest first, and of the one that was drawn."""
    assert token.logprobs is not None  # they were asked for
    found = {i: Logprob(value, rank, piece) for rank, (i, value, piece) in enumerate(token.logprobs.top, 1)}
    found.setdefault(token.id, Logprob(token.logprobs.logprob, None, token.logprobs.piece))
    return found


def _progress(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
