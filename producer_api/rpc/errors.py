"""Errors as gRPC statuses with google.rpc details.

Reference: google/rpc/error_details.proto; Google AIP-193, "Errors".
"""

from __future__ import annotations

import math

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from shared.errors import HeadraceError, InvalidRequest
from shared.schemas.parsing import InvalidFields

DOMAIN = "headrace"


def status_of(error: HeadraceError) -> grpc.Status:
    """Return the status of an error, with its details in the trailing metadata."""
    code = grpc.StatusCode[error.grpc_status]
    status = Status(code=code.value[0], message=error.message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)


def _details(error: HeadraceError) -> list[Message]:
    metadata = {} if error.param is None else {"param": error.param}
    metadata |= {name: f"{number:g}" for name, number in error.details.items()}
    found: list[Message] = [ErrorInfo(reason=error.code, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, InvalidRequest) and error.param is not None:
        fields = error.fields if isinstance(error, InvalidFields) else [(error.param, error.message)]
        violations = [BadRequest.FieldViolation(field=param, description=message) for param, message in fields]
        found.append(BadRequest(field_violations=violations))
    if error.retry_after is not None:
        retry = RetryInfo()
        retry.retry_delay.FromSeconds(math.ceil(error.retry_after))
        found.append(retry)
    return found
