"""An admitted request, as the queue carries it."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Literal

import msgspec

from shared.protocol.marks import Stay
from shared.protocol.tensors import Infer

PROTOCOL_VERSION = 1


class PriorityClass(StrEnum):
    """Queue of a model that a request waits in, most urgent first."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made in an earlier turn; `arguments` is the model's JSON text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a chat, reduced to text.

    An assistant's turn may have `tool_calls` and `reasoning`, the text before its answer; a tool's turn answers the
    call with the id `tool_call_id`.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str = ""


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the model may call; `parameters` is the JSON schema of its arguments, as JSON text.

    With `strict`, every keyword of that schema is enforced. Otherwise keywords that a grammar cannot express are
    left to the model.
    """

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False


class Tools(msgspec.Struct, frozen=True, omit_defaults=True):
    """Functions that an answer may call: those in `only`, or all if it is empty.

    With `required` it must call one; with `named`, that one.
    """

    functions: tuple[Function, ...]
    required: bool = False
    named: str | None = None
    parallel: bool = True
    only: tuple[str, ...] = ()

    @property
    def param(self) -> str:
        """Return the field of the request, for error messages."""
        return "tools"

    @property
    def must(self) -> bool:
        """Return whether the answer must be a call."""
        return self.required or self.named is not None

    @property
    def allowed(self) -> tuple[Function, ...]:
        names = self.only if self.named is None else (self.named,)
        return tuple(function for function in self.functions if not names or function.name in names)


class Structured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Constraint on an answer; exactly one kind is set.

    Attributes:
        json_schema: a JSON schema, as JSON text.
        strict: enforce every keyword of the schema. Otherwise keywords that a grammar cannot express are left to
            the model.
        json_object: any JSON object.
        regex: a regular expression for the whole answer.
        choice: one of these texts.
        grammar: a grammar in Lark, whose rule `start` the answer matches, or in llama.cpp's GBNF (`root`).
        param: the field of the request, for error messages.
    """

    json_schema: str | None = None
    strict: bool = True
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    param: str = "structured_outputs"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Choice of tokens and end of an answer. Ranges and meanings are in shared.validation.parameters.

    Attributes:
        max_tokens: for each choice; None means what is left of the context.
        seed: the draw of choice c at position p depends only on (seed, c, p). Admission sets it.
        logprobs: None for none, 0 for the token's own, k for those of the k most likely tokens too.
        echo: return the prompt's tokens too, with their log-probabilities if `logprobs` is set.
        best_of: as `n`, if the client gets only the best of these choices.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    watermark: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = 1
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    thinking_token_budget: int | None = None
    include_reasoning: bool = True
    logprobs: int | None = None
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    structured_outputs: Structured | None = None
    echo: bool = False
    best_of: int | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool = False


class PromptOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Encoding of messages or a prompt as token ids. Ranges and meanings are in shared.validation.parameters.

    Attributes:
        add_special_tokens: None means true for a prompt and false for messages.
        chat_template_kwargs: JSON object, as text.
        documents: JSON array of objects, as text.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    chat_template_kwargs: str = ""
    documents: str = ""
    reasoning_effort: str | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str = "left"
    suffix: str | None = None


DEFAULT_PROMPT_OPTIONS = PromptOptions()  # not sent with a request that has it
VectorType = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
PoolTask = Literal["embed", "token_embed", "classify", "token_classify"]
Input = str | tuple[int, ...]  # a text or token ids


class Embed(msgspec.Struct, frozen=True, tag="embed", omit_defaults=True):
    """Embedding of `inputs`; the vectors are cut to `dimensions` if it is set.

    Attributes:
        activation: scale the vectors to length 1.
    """

    inputs: tuple[Input, ...]
    dimensions: int | None = None
    activation: bool = True
    vector_type: VectorType = "float32"

    @property
    def texts(self) -> tuple[Input, ...]:
        return self.inputs


class Pool(msgspec.Struct, frozen=True, tag="pool", omit_defaults=True):
    """Output of an encoder for `inputs`, or for the request's messages: vectors or classes, of each whole input or
    of its tokens.

    Attributes:
        task: None for the model's own.
        activation: scale vectors to length 1, and turn the scores of classes into probabilities.
    """

    inputs: tuple[Input, ...] = ()
    task: PoolTask | None = None
    activation: bool = True
    vector_type: VectorType = "float32"

    @property
    def texts(self) -> tuple[Input, ...]:
        return self.inputs


class Score(msgspec.Struct, frozen=True, tag="score", omit_defaults=True):
    """Relevance of each of `documents` for its query: by a cross-encoder, or as the cosine of two embeddings.

    Attributes:
        queries: one for all documents, or one for each.
        activation: apply the model's activation to the scores of a cross-encoder.
        max_query_tokens, max_document_tokens: cut longer texts to these; 0 for no limit.
        query_param, document_param: fields of the body, for error messages.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    activation: bool = True
    max_query_tokens: int = 0
    max_document_tokens: int = 0
    query_param: str = "queries"
    document_param: str = "documents"

    @property
    def texts(self) -> tuple[Input, ...]:
        return self.queries + self.documents

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Query and document of each score."""
        queries = self.queries * len(self.documents) if len(self.queries) == 1 else self.queries
        return tuple(zip(queries, self.documents, strict=True))


EncoderWork = Embed | Pool | Score  # done by models that do not generate


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize", omit_defaults=True):
    """Tokenization of the prompt or the messages.

    Attributes:
        pieces: return each token as it is spelled in the vocabulary too.
        texts: return the text that each token adds instead, special tokens included.
    """

    pieces: bool = False
    texts: bool = False


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """Detokenization of the prompt's token ids, including special tokens."""


class DescribeTokenizer(msgspec.Struct, frozen=True, tag="describe_tokenizer"):
    """Configuration of the model's tokenizer; it needs neither messages nor a prompt."""


class AdapterRef(msgspec.Struct, frozen=True):
    """The LoRA adapter that a request was admitted for: its name, its folder, and the digest of its contents."""

    name: str
    path: str
    digest: str


def adapted_fingerprint(base: str | None, adapter: AdapterRef | None) -> str | None:
    """Return the fingerprint of a model with an adapter, given that of the model, if it is known."""
    if base is None or adapter is None:
        return base
    return f"fp_{hashlib.blake2b(f'{base} {adapter.digest}'.encode(), digest_size=6).hexdigest()}"


Work = EncoderWork | Infer | Tokenize | Detokenize | DescribeTokenizer


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One admitted request, as the queue carries it.

    Exactly one of `messages` and `prompt` is set; `tools` require messages. `work` replaces the answer in text;
    Embed, Score, Infer and a Pool with inputs, which have inputs of their own, and DescribeTokenizer have neither
    messages nor prompt. `created_at` is in seconds since the epoch by the server's clock (Redis TIME), like all
    times of a request. It does not run after `deadline`. `user` is the client's name for its end user. `cache_salt`
    separates cached prefixes of one tenant. With `drop_oldest_turns`, messages that do not fit the context lose
    their oldest turns instead of being refused. With `refuse_overflow`, as in TGI's API, a request is refused
    rather than its answer cut at the context's end. `ttft_target` is how many seconds after `created_at` its first
    token is wanted; with `refuse_late` it is refused if it is not expected to start by then. The queue adds
    its `stay` in a lane. `traceparent` is the W3C trace context of the span that queued it. `recorded_prompt` has
    the token ids of the prompt of a recorded request that is run again. `adapter` is the LoRA adapter of `model`
    that admission found under the name that the client gave.
    """

    id: str
    model: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    prompt_options: PromptOptions = DEFAULT_PROMPT_OPTIONS
    cache_salt: str = ""
    drop_oldest_turns: bool = False
    refuse_overflow: bool = False
    tools: Tools | None = None
    work: Work | None = None
    recorded_prompt: tuple[int, ...] = ()
    adapter: AdapterRef | None = None
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    user: str = ""
    created_at: float = 0.0
    deadline: float | None = None
    ttft_target: float | None = None
    refuse_late: bool = False
    stay: Stay | None = None
    traceparent: str = ""
    version: int = PROTOCOL_VERSION

    @property
    def named_model(self) -> str:
        """Return the model as the client named it: its adapter, or the model."""
        return self.model if self.adapter is None else self.adapter.name

    @property
    def cache_scope(self) -> tuple[str, ...]:
        """Return what separates cached prefixes: only requests with an equal scope may share them."""
        return (self.tenant, self.cache_salt, *(() if self.adapter is None else (self.adapter.digest,)))

    def as_named(self) -> Request:
        """Return the request for the model as the client named it, as it was before admission."""
        return msgspec.structs.replace(self, model=self.named_model, adapter=None)

    @property
    def prompt_param(self) -> str:
        """Return the field that the tokens come from, for error messages."""
        if self.messages is not None:
            return "messages"
        if isinstance(self.work, Score):
            return self.work.document_param
        return "prompt" if self.work is None or self.prompt is not None else "input"
