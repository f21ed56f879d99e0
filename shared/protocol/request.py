"""An admitted request, as the queue carries it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

PROTOCOL_VERSION = 1


class PriorityClass(StrEnum):
    """Which of a model's queues a request waits in, most urgent first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made in an earlier turn; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a chat, already reduced to text.

    An assistant's turn may have `tool_calls`; a tool's answers the call named by `tool_call_id`.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the model may call; `parameters` is the JSON schema of its arguments, as JSON text.

    `strict`: every keyword of that schema counts. Otherwise those that a grammar cannot hold are left to the model.
    """

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False


class Tools(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may be called, and whether something must be: any function, or the one `named`."""

    functions: tuple[Function, ...]
    required: bool = False
    named: str | None = None
    parallel: bool = True

    @property
    def param(self) -> str:
        """The field that asked for them, for errors to name."""
        return "tools"

    @property
    def must(self) -> bool:
        """The answer is a call."""
        return self.required or self.named is not None

    @property
    def allowed(self) -> tuple[Function, ...]:
        return tuple(each for each in self.functions if self.named in (None, each.name))


class Structured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer must look like; exactly one of these is set.

    Attributes:
        json_schema: a JSON schema, as JSON text.
        strict: every keyword of the schema counts. Otherwise those that a grammar cannot hold are left to the
            model.
        json_object: any JSON object.
        regex: a regular expression for the whole answer.
        choice: one of these texts.
        grammar: EBNF as llama.cpp's GBNF has it; the answer is a `root`.
        param: the field of the request that asked for it, which errors name.
    """

    json_schema: str | None = None
    strict: bool = True
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    param: str = "structured_outputs"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen and when to stop.

    Attributes:
        max_tokens: most tokens a choice may have; None means what is left of the context.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens up to this probability mass.
        min_p: drop tokens less likely than this share of the likeliest.
        presence_penalty, frequency_penalty: OpenAI's, over the tokens generated so far.
        repetition_penalty: transformers', over prompt and generated tokens; 1 is none.
        stop: strings that end a choice and are not part of it.
        seed: the draw of choice c at position p depends only on (seed, c, p). Admission fills it in.
        n: number of choices.
        ignore_eos: go on past the end-of-text token.
        logprobs: log-probabilities to give with each token: None for none, 0 for the token's own, k for the k
            likeliest too.
        logit_bias: what is added to a token's logit, by its id.
        structured_outputs: what the answer must look like; None leaves it free.
        echo: give the prompt's tokens too, and their log-probabilities where `logprobs` asks for any.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = 1
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    structured_outputs: Structured | None = None
    echo: bool = False


class Embed(msgspec.Struct, frozen=True, tag="embed", omit_defaults=True):
    """The vectors of `inputs`, each a text or token ids, cut to `dimensions` where that is given."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize", omit_defaults=True):
    """The token ids of the prompt or the messages.

    Attributes:
        special_tokens: with those that the tokenizer puts around a text.
        generation_prompt: of a chat, up to where its answer begins.
        pieces: and each token as the vocabulary writes it.
    """

    special_tokens: bool = True
    generation_prompt: bool = True
    pieces: bool = False


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """The text of the prompt's token ids, special ones as they are written."""


Work = Embed | Tokenize | Detokenize


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One admitted request, as the queue carries it.

    Exactly one of `messages` and `prompt` is set; `tools` go with messages. `work` is what is asked instead of an
    answer in text; Embed has its own inputs, and neither of the two. `created_at` is in seconds since the
    epoch, by the server's clock (Redis TIME), as all times of a request are; from `deadline` on it is not run any
    more. `user` is the client's name for its own user.
    """

    id: str
    model: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    tools: Tools | None = None
    work: Work | None = None
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    user: str = ""
    created_at: float = 0.0
    deadline: float | None = None
    version: int = PROTOCOL_VERSION
