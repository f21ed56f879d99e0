"""tritonclient: http, grpc and their aio forms, on the models of tests.support.tensor_repository."""

import queue

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as aio_grpc
import tritonclient.http as over_http
import tritonclient.http.aio as aio_http
from features import GRPC, KEY, LIMIT_S, URL, feature, main

HTTP = URL.removeprefix("http://")
FORMS = ((over_http, HTTP), (over_grpc, GRPC))


def headers():
    """Return headers of one request, since tritonclient adds to them."""
    return {"authorization": f"Bearer {KEY}"}


def given(form, name, values):
    array = np.array(values, np.int32)
    made = form.InferInput(name, list(array.shape), "INT32")
    made.set_data_from_numpy(array)
    return made


def add_sub(form):
    return [given(form, "INPUT0", [[1, 2]]), given(form, "INPUT1", [[10, 20]])]


def check(result):
    assert result.as_numpy("OUTPUT0").tolist() == [[11, 22]]
    assert result.as_numpy("OUTPUT1").tolist() == [[-9, -18]]


@feature("health, metadata, configuration, index")
def description():
    for form, address in FORMS:
        with form.InferenceServerClient(address) as client:
            assert client.is_server_live(headers=headers())
            assert client.is_server_ready(headers=headers())
            assert client.is_model_ready("add_sub", headers=headers())
            client.get_server_metadata(headers=headers())
            client.get_model_metadata("add_sub", headers=headers())
            client.get_model_config("add_sub", headers=headers())
            client.get_model_repository_index(headers=headers())


@feature("inference with binary data, compressed")
def inference():
    for form, address in FORMS:
        with form.InferenceServerClient(address) as client:
            check(client.infer("add_sub", add_sub(form), headers=headers()))
    with over_http.InferenceServerClient(HTTP) as client:
        packed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
        check(client.infer("add_sub", add_sub(over_http), headers=headers(), **packed))
    with over_grpc.InferenceServerClient(GRPC) as client:
        check(client.infer("add_sub", add_sub(over_grpc), headers=headers(), compression_algorithm="gzip"))


@feature("inference, asynchronous")
async def asynchronous():
    async with aio_http.InferenceServerClient(HTTP) as client:
        check(await client.infer("add_sub", add_sub(over_http), headers=headers()))
    async with aio_grpc.InferenceServerClient(GRPC) as client:
        check(await client.infer("add_sub", add_sub(over_grpc), headers=headers()))


@feature("a stream of requests, a decoupled model")
def stream():
    found = queue.Queue()
    with over_grpc.InferenceServerClient(GRPC) as client:
        client.start_stream(lambda result, error: found.put(error or result), headers=headers())
        client.async_stream_infer("add_sub", add_sub(over_grpc))
        check(found.get(timeout=LIMIT_S))
        client.async_stream_infer("repeat", [given(over_grpc, "IN", [3, 4])], enable_empty_final_response=True)
        responses = [found.get(timeout=LIMIT_S) for _ in range(3)]
        client.stop_stream()
    assert [each.as_numpy("OUT").tolist() for each in responses[:2]] == [[3], [4]]
    assert responses[2].get_response().parameters["triton_final_response"].bool_param


@feature("statistics")
def statistics():
    for form, address in FORMS:
        with form.InferenceServerClient(address) as client:
            assert client.get_inference_statistics("add_sub", headers=headers())


main()
