"""Traits of a request, which policies use.

A front end has no tokenizer, so a prefix is a digest of text. Digests are salted by tenant, `cache_salt` and
adapter, as the prefix caches of workers are.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterator

import msgspec

from shared.protocol import EncoderWork, Input, Request
from shared.routing.interface import RequestTraits
from shared.settings import RoutingKey
from shared.validation.token_estimate import token_estimate

CHUNK_BYTES = 512
MAX_PREFIXES = 128  # of one request
KEY_PREFIX_BYTES = 1024
DIGEST_BYTES = 8


def traits_of(request: Request, routing_key: RoutingKey) -> RequestTraits:
    """Return the traits of a request; `routing_key` is what consistent hashing keeps together."""
    salt = _digest(msgspec.json.encode(request.cache_scope))
    return RequestTraits(token_estimate(request), _key(request, routing_key, salt), _prefixes(request, salt))


def _key(request: Request, routing_key: RoutingKey, salt: bytes) -> bytes:
    if routing_key == "user" and request.user:
        return _digest(salt + _bytes(request.user))
    if routing_key != "prefix" and request.messages is not None:
        first_user = next((i for i, message in enumerate(request.messages) if message.role == "user"), 0)
        return _digest(salt + msgspec.json.encode(request.messages[: first_user + 1]))
    return _digest(salt + (_beginning(request) or _bytes(request.id)))


def _beginning(request: Request) -> bytes:
    found = b""
    for chunk in _chunks(request):
        found += chunk
        if len(found) >= KEY_PREFIX_BYTES:
            break
    return found[:KEY_PREFIX_BYTES]


def _prefixes(request: Request, salt: bytes) -> tuple[bytes, ...]:
    """Return the digest of each beginning of the prompt that ends with a chunk or with a message."""
    found, last = [], salt
    for chunk in itertools.islice(_chunks(request), MAX_PREFIXES):
        last = _digest(last + chunk)
        found.append(last)
    return tuple(found)


def _chunks(request: Request) -> Iterator[bytes]:
    for text in _texts(request):
        for start in range(0, len(text), CHUNK_BYTES):
            yield text[start : start + CHUNK_BYTES]


def _texts(request: Request) -> Iterator[bytes]:
    """Yield the text that a prompt is rendered from, in the order in which chat templates use it."""
    if isinstance(request.work, EncoderWork):
        yield from map(_encoded, request.work.texts)
    elif request.prompt is not None:
        yield _encoded(request.prompt)
    if request.tools is not None:
        yield msgspec.json.encode(request.tools.functions)
    for message in request.messages or ():
        yield msgspec.json.encode(message)


def _encoded(prompt: Input) -> bytes:
    return _bytes(prompt) if isinstance(prompt, str) else array("q", prompt).tobytes()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
