"""gRPC reflection, under the names v1 and v1alpha.

grpcio-reflection has v1alpha only. v1 is the same protocol under another package name, so its methods are served by
the same servicer. Clients ask v1 first; many fall back to v1alpha, some do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import grpc
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from producer_api.rpc import external_scaler_pb2, inference_pb2, prediction_pb2
from producer_api.rpc.kserve import kserve_pb2

ALPHA: str = reflection.SERVICE_NAME
V1 = ALPHA.replace("v1alpha", "v1")
DESCRIBED = (inference_pb2, prediction_pb2, external_scaler_pb2, health_pb2, reflection_pb2)
RENAMED = ((reflection_pb2, "v1alpha", "v1"), (kserve_pb2, "headrace.kserve", "inference"))  # as they are served


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Describe the `services` and reflection itself to clients."""
    servicer = reflection.aio.ReflectionServicer((*services, ALPHA, V1), pool=_descriptions())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": method}
    for name in (ALPHA, V1):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


@cache
def _descriptions() -> DescriptorPool:
    """Return a pool for all servers of the process; in the default one, names may clash with those of a client."""
    pool, added = DescriptorPool(), set[str]()
    for module in DESCRIBED:
        _add(pool, added, module.DESCRIPTOR)
    for module, name, served in RENAMED:
        for needed in module.DESCRIPTOR.dependencies:
            _add(pool, added, needed)
        text = text_format.MessageToString(_proto(module.DESCRIPTOR)).replace(name, served)
        renamed = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
        pool.AddSerializedFile(renamed.SerializeToString())
    return pool


def _add(pool: DescriptorPool, added: set[str], file: FileDescriptor) -> None:
    """Add a file to the pool, after those that it needs."""
    if file.name in added:
        return
    added.add(file.name)
    for needed in file.dependencies:
        _add(pool, added, needed)
    pool.AddSerializedFile(_proto(file).SerializeToString())


def _proto(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    return proto
