"""The engine in this process, with the interface of vLLM's LLM class: no queue, no Redis.

Prompts become requests of the engine, which runs until all have ended; the answers are returned in the order of the
prompts. torch is imported when a model is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.llm_adapters import LoadedAdapters, LoRARequest
from headrace.llm_outputs import RequestOutput
from shared import protocol
from shared.errors import ConfigError, HeadraceError, InvalidRequest
from shared.models.model_store import DEFAULT, ModelRepository
from shared.protocol import Message, Structured
from shared.settings import Settings, load
from shared.settings.kv_tier_fields import KVTierFields
from shared.validation.parameters import BY_NAME
from shared.validation.prompt_options import check_chat_options
from shared.validation.request_limits import Limits, check_params
from workers.engine.interface import ConstraintSpec

if TYPE_CHECKING:
    from workers.engine.engine import Engine
    from workers.engine.interface import EngineRequest, Matcher
    from workers.engine.lora.weights import AdapterWeights

Prompt = str | Sequence[int] | Mapping[str, Any]
Turn = Mapping[str, str]
OTHER_SETTINGS = {"max_loras", *KVTierFields.model_fields}  # that an LLM takes beside those of `EngineConfig`


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True):
    """Constraint on an answer, with vLLM's names; exactly one kind is set.

    Attributes:
        json: a JSON schema, as an object or as text; for a pydantic model, `Model.model_json_schema()`.
        json_object: any JSON object.
        regex: a regular expression for the whole answer.
        choice: one of these texts.
        grammar: a grammar in Lark, with a rule `start`, or in llama.cpp's GBNF, with a rule `root`.
    """

    json: dict[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] = ()
    grammar: str | None = None

    def to_structured(self) -> Structured:
        """Return the constraint in the engine's form."""
        schema = self.json if self.json is None or isinstance(self.json, str) else json.dumps(self.json)
        return Structured(
            json_schema=schema,
            json_object=self.json_object,
            regex=self.regex,
            choice=tuple(self.choice),
            grammar=self.grammar,
        )


class SamplingParams(protocol.SamplingParams, frozen=True, kw_only=True):
    """The server's sampling parameters (docs/api.md), with types that are convenient in a program.

    Attributes:
        seed: None draws one for each prompt.
        stop: one string, several, or None.
        stop_token_ids, bad_words, allowed_token_ids: any sequence, or None.
    """

    seed: int | None = None  # type: ignore[assignment]  # wider than on the wire: `_to_wire` narrows it
    stop: str | Sequence[str] | None = ()  # type: ignore[assignment]
    stop_token_ids: Sequence[int] | None = ()  # type: ignore[assignment]
    bad_words: Sequence[str] | None = ()  # type: ignore[assignment]
    allowed_token_ids: Sequence[int] | None = ()  # type: ignore[assignment]
    structured_outputs: StructuredOutputsParams | Structured | None = None  # type: ignore[assignment]  # as `seed`


class LLM:
    """A loaded model.

    Args:
        model: folder, GGUF file, Hugging Face id, or smollm2.
        settings: of `EngineConfig`: device, dtype, quantization, max_model_len, max_num_seqs,
            gpu_memory_utilization …; also max_loras and those of the KV tier. Others come from the environment,
            headrace.toml or their default.

    Raises:
        ConfigError: a setting is unknown or out of range, or the model cannot be served.
    """

    def __init__(self, model: str | PathLike[str] = DEFAULT, **settings: Any) -> None:
        self._engine, loaded = _load(fspath(model), settings)
        self._adapters = LoadedAdapters(self._engine.adapters, loaded.max_loras)
        self._one_call = threading.Lock()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: protocol.SamplingParams | Sequence[protocol.SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """Answer all prompts, batched. A call from another thread waits for this one.

        Args:
            prompts: one or several; each a text, token ids, or a mapping with `prompt` or `prompt_token_ids`.
            sampling_params: one for all, or one for each prompt.
            use_tqdm: show progress on stderr.
            lora_request: the LoRA adapter for all, or one or None for each prompt; needs the setting lora_dir.

        Returns:
            Answers in the order of the prompts. If the engine fails on one, it has an error; the others are
            complete.

        Raises:
            InvalidRequest: a prompt or a parameter is invalid; nothing has been computed.
            ConfigError: an adapter cannot be used; nothing has been computed.
        """
        texts = [_unwrap(prompt) for prompt in _to_list(prompts)]
        return self._answer(
            texts, self._tokenize, sampling_params, lora_request, use_tqdm, separates_reasoning=False
        )

    def chat(
        self,
        messages: Sequence[Turn] | Sequence[Sequence[Turn]],
        sampling_params: protocol.SamplingParams | Sequence[protocol.SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several with the model's chat template; otherwise like `generate`.

        Args:
            messages: turns with `role` and `content`.
            add_generation_prompt, continue_final_message, chat_template_kwargs: see docs/api.md.
        """
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if is_one else list(messages)
        options = protocol.PromptOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=json.dumps(chat_template_kwargs) if chat_template_kwargs else "",
        )
        check_chat_options(options, Limits().prompt_chars)
        render = partial(self._render, options)
        return self._answer(
            conversations, render, sampling_params, lora_request, use_tqdm, separates_reasoning=True
        )

    def _answer(
        self,
        prompts: list[Any],
        encode: Callable[[Any], list[int]],
        params: Any,
        adapters: Any,
        use_tqdm: bool,
        *,
        separates_reasoning: bool,
    ) -> list[RequestOutput]:
        wire = [self._to_wire(each) for each in _params_by_prompt(params, len(prompts))]
        answers: dict[str, RequestOutput] = {}
        with self._one_call, self._batch(answers):
            weights = self._adapters.for_prompts(adapters, len(prompts))
            for number, (prompt, chosen, adapter) in enumerate(zip(prompts, wire, weights, strict=True)):
                with _naming_prompt(number):
                    request = self._request(str(number), encode(prompt), chosen, adapter, separates_reasoning)
                    answers[request.id] = RequestOutput.from_request(
                        request, prompt if isinstance(prompt, str) else None
                    )
                    self._engine.add(request)
            self._run(answers, use_tqdm)
        return list(answers.values())

    @contextmanager
    def _batch(self, answers: dict[str, RequestOutput]) -> Iterator[None]:
        """Abort what is left in the engine, when the batch ends, is refused, or is interrupted by Ctrl-C."""
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
                    answers[output.job_id].extend(output)
                    tokens += len(output.tokens)
                seconds = progress.tasks[bar].elapsed
                rate = f"{tokens / seconds:,.0f} output tokens/s" if seconds else ""
                progress.update(bar, advance=sum(output.finished for output in outputs), rate=rate)

    def _tokenize(self, prompt: str | list[int]) -> list[int]:
        return self._engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def _render(self, options: protocol.PromptOptions, turns: Sequence[Turn]) -> list[int]:
        try:
            messages = msgspec.convert(turns, list[Message])
        except msgspec.ValidationError as error:
            raise InvalidRequest(
                f"each message must have role and content, both text: {error}", param="messages"
            ) from None
        if not messages:
            raise InvalidRequest("messages must not be empty", param="messages")
        return self._engine.tokenizer.encode_chat(messages, None, options)

    def _request(
        self,
        request_id: str,
        ids: list[int],
        params: protocol.SamplingParams,
        adapter: AdapterWeights | None,
        separates_reasoning: bool,
    ) -> EngineRequest:
        from workers.engine.interface import EngineRequest

        bad_words = self._engine.tokenizer.bad_word_ids(params.bad_words)
        return EngineRequest(
            request_id,
            tuple(ids),
            params,
            bad_words=bad_words,
            matcher=self._matcher(params),
            separates_reasoning=separates_reasoning,
            adapter=adapter,
        )

    def _matcher(self, params: protocol.SamplingParams) -> Callable[[], Matcher] | None:
        """Return a factory of matchers for the constraint, None without one. Raise InvalidRequest."""
        if params.structured_outputs is None:
            return None
        if self._engine.constraints is None:
            raise InvalidRequest(
                "llguidance is not installed: pip install headrace[worker]", param="structured_outputs"
            )
        return self._engine.constraints.start(ConstraintSpec(params.structured_outputs)).result().matcher

    def _to_wire(self, params: protocol.SamplingParams) -> protocol.SamplingParams:
        """Return checked parameters with a seed, in the engine's form. Raise InvalidRequest."""
        given = ((name, BY_NAME[name].given(value)) for name, value in msgspec.structs.asdict(params).items())
        values = {name: value for name, value in given if value is not None}
        values.setdefault("seed", secrets.randbits(63))
        stop = values.get("stop", ())
        values["stop"] = [each for each in ([stop] if isinstance(stop, str) else stop) if each != ""]
        if isinstance(structured := values.get("structured_outputs"), StructuredOutputsParams):
            values["structured_outputs"] = structured.to_structured()
        try:
            wire = msgspec.convert(values, protocol.SamplingParams)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"sampling_params: {error}", param="sampling_params") from None
        for name in ("echo", "best_of"):
            if values.get(name):
                raise InvalidRequest(f"{name} is not supported by LLM", param=name)
        check_params(wire, Limits(n=max(wire.n, 1)))  # the engine checks n against its batch
        return wire


def _load(model: str, given: dict[str, Any]) -> tuple[Engine, Settings]:
    """Return an engine, and the settings that it was loaded with. Raises ConfigError."""
    try:
        from workers.engine.config import EngineConfig
        from workers.engine.engine import Engine
    except ImportError as error:
        raise ConfigError(f"cannot import the engine ({error}): pip install headrace[worker]") from error
    own_fields = {setting.name for setting in dataclasses.fields(EngineConfig)} - {"model", "tier"}
    known = own_fields | OTHER_SETTINGS
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"{unknown[0]} is not a setting of the engine; settings: {', '.join(sorted(known))}")
    common = {name: value for name, value in given.items() if name in Settings.model_fields}
    settings = load({**common, "model": model}).settings
    config = EngineConfig.from_settings(settings, ModelRepository(settings).folder())
    own = {name: value for name, value in given.items() if name not in common}
    return Engine.load(dataclasses.replace(config, **own)), settings


def _to_list(prompts: Any) -> Iterable[Any]:
    """Return one prompt or several as several."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise InvalidRequest("prompts must be a text, token ids, or a list of them", param="prompts")
    return [prompts] if prompts and isinstance(prompts[0], int) else prompts


def _unwrap(prompt: Any) -> str | list[int]:
    """Return the text or token ids of one prompt."""
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(type(token) is int for token in prompt):
        return list(prompt)
    raise InvalidRequest("a prompt must be a text or token ids", param="prompts")


def _params_by_prompt(params: Any, count: int) -> list[protocol.SamplingParams]:
    """Return the parameters of each prompt."""
    if params is None or isinstance(params, protocol.SamplingParams):
        return [params or SamplingParams()] * count
    given = list(params)
    if len(given) != count:
        raise InvalidRequest(
            f"sampling_params must be one, or one for each of the {count} prompts, got {len(given)}",
            param="sampling_params",
        )
    return given


@contextmanager
def _naming_prompt(number: int) -> Iterator[None]:
    """Name the prompt in errors."""
    try:
        yield
    except HeadraceError as error:
        raise type(error)(f"prompts[{number}]: {error.message}", param=error.param) from error


def _progress(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
