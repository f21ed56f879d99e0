"""Preparation of a request for the engine: its prompt as token ids, and the constraint of its answer."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import secrets
from typing import Protocol

import msgspec

from shared.errors import InvalidRequest
from shared.models.worker_registry import WorkerInfo
from shared.protocol import DescribeTokenizer, Detokenize, Request, Tokenize
from shared.settings import Settings
from shared.validation.length_limits import LengthLimits
from shared.validation.request_limits import check_request, check_task
from workers.active_request import ActiveRequest
from workers.engine.interface import (
    Constraint,
    ConstraintCompiler,
    ConstraintSpec,
    Encoder,
    EngineOutput,
    EngineRequest,
    Generator,
    Source,
)
from workers.preparation.prompt_encoding import WIDEST_LIMITS, PromptEncoder


class Preparer(Protocol):
    """Prepares the requests of one worker."""

    async def prepare(self, active: ActiveRequest) -> EngineRequest | EngineOutput:
        """Return the request for the engine, or the final output if it needs no engine. Raises HeadraceError."""

    def close(self) -> None:
        """Give up what has not been prepared."""


def preparer_for(engine: Generator, info: WorkerInfo, settings: Settings) -> Preparer:
    """Return the preparer for an engine: it takes token ids, or the text of requests."""
    if engine.tokenizer is None:
        return TextPreparer(info, settings)
    return TokenPreparer(info, settings, engine.tokenizer, engine.constraints)


class TokenPreparer:
    """Encodes prompts, and compiles constraints, for an engine that takes token ids."""

    def __init__(
        self, info: WorkerInfo, settings: Settings, encoder: Encoder, constraints: ConstraintCompiler | None
    ) -> None:
        self._info = info
        self._log_tokens = settings.log_tokens
        self._lengths = LengthLimits.from_settings(settings, info.max_model_len)
        self._encoder = PromptEncoder(encoder, info.max_model_len, info.task or "generate")
        self._constraints = constraints
        # Not stored: the prefix cache ends with this process. Salts of a KV tier are the same in all workers.
        self._secret = secrets.token_bytes(32) if settings.kv_tier == "off" else b""

    async def prepare(self, active: ActiveRequest) -> EngineRequest | EngineOutput:
        request = active.delivery.request
        check_task(request, self._info.task)
        if not active.prompt:  # otherwise an earlier run has recorded it
            encoded = await self._encoder.encode(request)
            if encoded.result is not None:
                return EngineOutput(active.run_id, finished=True, result=encoded.result)
            active.prompt, active.lengths = encoded.prompt, encoded.lengths
            active.second_starts = encoded.second_starts
        if request.work is None and active.next_seq == 0:
            self._lengths.check(request, len(active.prompt))
        constraint = await self._compile_constraint(active)
        bad_words = await self._encoder.encode_bad_words(request.params.bad_words)
        tokens_left = self._lengths.most_total - len(active.prompt)
        budget = min(tokens_left * request.params.n, self._log_tokens)
        prepared = active.engine_request(budget, self._prefix_salt(request), bad_words)
        if prepared is None:
            return EngineOutput(active.run_id, finished=True)
        prepared = dataclasses.replace(prepared, params=self._lengths.fit(prepared.params, len(active.prompt)))
        if constraint is not None:
            prepared = dataclasses.replace(prepared, matcher=constraint.matcher, tool_parser=constraint.tool_parser)
        return prepared

    def close(self) -> None:
        self._encoder.close()

    async def _compile_constraint(self, active: ActiveRequest) -> Constraint | None:
        """Return the grammar that the answer must follow. Raises InvalidRequest, EngineFailed.

        The limits of the compiler do not apply to an answer that has begun: its grammar was compiled before.
        """
        form = constraint_form(active.delivery.request)
        if form is None:
            return None
        if self._constraints is None:
            raise InvalidRequest(
                f"{form.param} is not supported by this worker: it has no grammar compiler", param=form.param
            )
        return await asyncio.wrap_future(self._constraints.start(form))

    def _prefix_salt(self, request: Request) -> bytes:
        """Return the salt that separates cached prefixes: of each tenant, and of each `cache_salt` within it.

        Whatever else changes the keys and values of a request's tokens belongs here too.
        """
        parts = msgspec.json.encode((request.tenant, request.cache_salt))
        return hashlib.blake2b(parts, key=self._secret, digest_size=32).digest()


class TextPreparer:
    """Checks requests for a runtime that takes their text, tools and constraints as they are."""

    def __init__(self, info: WorkerInfo, settings: Settings) -> None:
        self._info = info
        self._log_tokens = settings.log_tokens

    async def prepare(self, active: ActiveRequest) -> EngineRequest | EngineOutput:
        request = active.delivery.request
        check_task(request, self._info.task)
        check_request(request, WIDEST_LIMITS)  # another version of the front end may have admitted it
        if isinstance(request.work, Tokenize | Detokenize | DescribeTokenizer):
            raise InvalidRequest(f"the runtime of {request.model} has no tokenizer of its own", param="model")
        prepared = active.engine_request(self._log_tokens, prefix_salt=b"")
        if prepared is None:
            return EngineOutput(active.run_id, finished=True)
        return dataclasses.replace(prepared, source=Source(request, tuple(active.history)))

    def close(self) -> None:
        pass


def constraint_form(request: Request) -> ConstraintSpec | None:
    """Return what constrains the answer of a request: a schema, a grammar or tools; None if it is free."""
    form = ConstraintSpec(request.params.structured_outputs, request.tools)
    return None if form == ConstraintSpec(None) else form
