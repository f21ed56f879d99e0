"""grpcio's reflection client."""

import grpc
from features import GRPC, feature, main
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


@feature("services and their messages")
def services():
    database = ProtoReflectionDescriptorDatabase(grpc.insecure_channel(GRPC))
    assert "headrace.v1.Inference" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("headrace.v1.Inference")
    assert service.FindMethodByName("Generate").output_type.name == "Event"


main()
