"""Jobs over gRPC: submitted, streamed, resumed and cancelled; the same jobs as over HTTP."""

from __future__ import annotations

import asyncio

import grpc
import httpx
import pytest
from grpc_status import rpc_status

from producer_api.rpc import inference_pb2 as pb
from shared.backend import Backend
from shared.protocol import CallDelta, ErrorInfo, FinishReason, PromptOptions, RequestState, Token, TokenLogprobs
from shared.settings import Settings
from shared.validation.sampling_parameters import MAX_INT64
from tests.support.api_server import serving as serving_http
from tests.support.fakes import MODEL
from tests.support.grpc_client import Client, chat, read_rest, refusal
from tests.support.scripted_worker import CACHED_TOKENS, PROMPT_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S

KEY = ("idempotency-key", "mine")


async def until(backend: Backend, job_id: str, state: RequestState) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (record := await backend.token_log.record(job_id)) is None or record.state is not state:
            await asyncio.sleep(0.01)


async def test_an_answer_is_streamed(client: Client, worker: ScriptedWorker) -> None:
    """One call yields the job, its tokens from seq 0, and the end with exact usage."""
    events = client.Generate(pb.GenerateRequest(job=chat(seed=7, max_tokens=9)))
    request = await worker.answer("a", "b", "c")
    texts, seen = await read_rest(events)

    assert (request.params.seed, request.params.max_tokens) == (7, 9)
    assert request.messages is not None
    assert request.messages[0].content == "hi"
    assert texts == ["a", "b", "c"]
    assert [event.WhichOneof("event") for event in seen] == ["job", *["tokens"] * 3, "end"]
    assert (seen[0].job.id, seen[0].job.state) == (request.id, "queued")
    assert [event.tokens.seq for event in seen[1:-1]] == [0, 1, 2]
    assert seen[-2].tokens.tokens[0].finish_reason == "stop"
    usage = pb.Usage(
        prompt_tokens=PROMPT_TOKENS,
        completion_tokens=3,
        total_tokens=PROMPT_TOKENS + 3,
        prompt_tokens_details=pb.PromptTokensDetails(cached_tokens=CACHED_TOKENS),
    )
    assert seen[-1].end == pb.End(seq=3, state="completed", usage=usage)


async def test_max_tokens_is_lowered_to_the_context(client: Client, worker: ScriptedWorker) -> None:
    for call in (client.Submit(chat(max_tokens=MAX_INT64)), client.Submit(chat(max_tokens=2**31))):
        await call
        assert (await worker.answer("x")).params.max_tokens == 1024


async def test_token_ids_and_scores_of_the_prompt(client: Client, worker: ScriptedWorker) -> None:
    """They are with the first tokens, and in the ended job."""
    events = client.Generate(pb.GenerateRequest(job=chat(prompt_logprobs=1, return_token_ids=True)))
    job = await worker.take()
    assert (job.request.params.prompt_logprobs, job.request.params.return_token_ids) == (1, True)
    scored = Token(0, 2, "", None, TokenLogprobs(-2.0, ((7, -0.5, "a"),), "i", {}, 3))
    await job.write(Token(0, 7, "a", FinishReason.STOP), prompt=(Token(0, 1, ""), scored))
    await job.end()
    _, seen = await read_rest(events)
    ended = await client.GetJob(pb.GetJobRequest(id=job.request.id))

    found = {
        2: pb.PromptLogprob(logprob=-2.0, rank=3, decoded_token="i"),
        7: pb.PromptLogprob(logprob=-0.5, rank=1, decoded_token="a"),
    }
    scores = [pb.PromptLogprobs(), pb.PromptLogprobs(tokens=found)]
    events = client.Generate(pb.GenerateRequest(job=chat(prompt_logprobs=1, max_tokens=0)))
    await (await worker.take()).end(prompt=(Token(0, 1, ""), scored))
    _, (*_, last) = await read_rest(events)
    for message in (seen[1].tokens, ended, last.end):
        assert (list(message.prompt_token_ids), list(message.prompt_logprobs)) == ([1, 2], scores)
    assert list(ended.choices[0].token_ids) == [7]


async def test_prompt_options_reach_the_worker(client: Client, worker: ScriptedWorker) -> None:
    options = {"add_generation_prompt": False, "continue_final_message": True, "truncate_prompt_tokens": -1}
    kwargs = {"chat_template_kwargs": '{"a": [1]}', "documents": '[{"text": "é"}]'}
    await client.Submit(chat(**options, **kwargs, cache_salt="s"))
    request = (await worker.take()).request
    assert request.prompt_options == PromptOptions(**options, **kwargs)
    assert request.cache_salt == "s"
    wrong = await refusal(client.Submit(chat(chat_template_kwargs='{"tools": 1}')))
    assert wrong.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "chat_template_kwargs must not have the key tools" in (wrong.details() or "")


async def test_tokens_have_logprobs_and_tool_calls(client: Client, worker: ScriptedWorker) -> None:
    """Both are in the stream and in the ended job."""
    events = client.Generate(pb.GenerateRequest(job=chat()))
    job = await worker.take()
    logprobs = TokenLogprobs(-0.5, ((4, -0.5, "x"), (5, -1.5, "\ufffd")), "x", {5: b"\xf0"})
    await job.write(Token(0, 4, "x", None, logprobs))
    await job.write(Token(0, 6, "", FinishReason.TOOL_CALLS, None, (CallDelta(0, name="f", arguments='{"a":1}'),)))
    await job.end()
    _, seen = await read_rest(events)
    ended = await client.GetJob(pb.GetJobRequest(id=job.request.id))

    first, second = (event.tokens.tokens[0] for event in seen[1:3])
    top = [pb.TopToken(id=4, text="x", logprob=-0.5), pb.TopToken(id=5, text="\ufffd", logprob=-1.5, bytes=[0xF0])]
    assert first.logprobs == pb.Logprobs(text="x", logprob=-0.5, top=top)
    assert second.tool_calls == [pb.ToolCallDelta(index=0, arguments='{"a":1}', name="f")]
    [choice] = ended.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("x", "tool_calls", [first.logprobs])
    [call] = choice.tool_calls
    assert call.id.startswith("call_")
    assert call.function == pb.Function(name="f", arguments='{"a":1}')


async def test_a_failed_job_sets_the_status(client: Client, worker: ScriptedWorker) -> None:
    """Generate ends with the error after the tokens and the end; Follow ends without an error."""
    events = client.Generate(pb.GenerateRequest(job=chat()))
    job = await worker.take()
    await job.say("a")
    await job.end(RequestState.FAILED, ErrorInfo("engine_failed", "the engine broke"))
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for event in events:
            seen.append(event)
    texts, followed = await read_rest(client.Follow(pb.FollowRequest(id=job.request.id)))

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "the engine broke"
    assert seen[-1].end.error == pb.Error(code="engine_failed", message="the engine broke")
    assert texts == ["a"]
    assert followed == seen[1:]


async def test_a_disconnect_cancels_a_keyless_job(client: Client, worker: ScriptedWorker, backend: Backend) -> None:
    events = client.Generate(pb.GenerateRequest(job=chat()))
    job = await worker.take()
    await job.say("a")
    assert [(await events.read()).WhichOneof("event") for _ in range(2)] == ["job", "tokens"]
    events.cancel()

    await until(backend, job.request.id, RequestState.CANCELLED)


async def test_the_deadline_of_a_call_cancels_its_job(
    client: Client, worker: ScriptedWorker, backend: Backend
) -> None:
    call = client.channel.unary_stream(
        "/headrace.v1.Inference/Generate", request_serializer=pb.GenerateRequest.SerializeToString
    )
    events = call(pb.GenerateRequest(job=chat()), timeout=2)
    job = await worker.take()

    assert (await refusal(events)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(backend, job.request.id, RequestState.CANCELLED)


async def test_a_keyed_answer_continues_without_its_client(client: Client, worker: ScriptedWorker) -> None:
    """After a disconnect the same call resumes after the last token, and the job is made once."""
    request = pb.GenerateRequest(job=chat())
    events = client.Generate(request, KEY)
    job = await worker.take()
    await job.say("a")
    assert [(await events.read()).WhichOneof("event") for _ in range(2)] == ["job", "tokens"]
    events.cancel()
    await job.say("b")

    request.from_seq = 1
    again = client.Generate(request, KEY)
    await job.say("c")
    await job.end()
    texts, seen = await read_rest(again)

    assert texts == ["b", "c"]
    assert seen[0].job.id == job.request.id
    assert dict(await again.initial_metadata())["idempotent-replayed"] == "true"


async def test_a_key_is_one_job_over_http_and_grpc(
    client: Client, worker: ScriptedWorker, settings: Settings, backend: Backend
) -> None:
    """The same body under one key makes one job; another body is refused."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "stop": ["x"]}
    async with serving_http(settings, backend) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        first = await http.post("/v1/jobs", json=body, headers={"idempotency-key": "mine"})
    made = await client.Submit(chat(temperature=0.5, stop=["x"]), KEY)
    other = await refusal(client.Submit(chat(temperature=0.6, stop=["x"]), KEY))

    assert made.id == first.json()["id"]
    assert other.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "Idempotency-Key" in (other.details() or "")


async def test_an_answer_is_read_from_any_point(client: Client, worker: ScriptedWorker) -> None:
    """Tokens can be read from any seq, while the job runs and afterwards; past the end comes only the end."""
    made = await client.Submit(chat())
    job = await worker.take()
    await job.say_all(["a", "b", "c"])
    reading = client.Follow(pb.FollowRequest(id=made.id, from_seq=1))
    assert [token.text for token in (await reading.read()).tokens.tokens] == ["b", "c"]
    await job.say("d")
    await job.end()
    rest, _ = await read_rest(reading)
    whole = [(await read_rest(client.Follow(pb.FollowRequest(id=made.id, from_seq=i)))) for i in (0, 3, 4, 5, 9)]

    assert rest == ["d"]
    assert [texts for texts, _ in whole] == [["a", "b", "c", "d"], ["d"], [], [], []]
    assert [seen[-1].end.seq for _, seen in whole] == [4] * 5


async def test_a_job_is_read_and_cancelled(client: Client, worker: ScriptedWorker, backend: Backend) -> None:
    made = await client.Submit(chat(priority="interactive", timeout=60))
    waiting = await client.GetJob(pb.GetJobRequest(id=made.id))
    cancelled = [await client.CancelJob(pb.CancelJobRequest(id=made.id)) for _ in range(2)]

    assert (made.state, made.priority) == ("queued", "interactive")
    assert made.deadline == pytest.approx(made.created_at + 60)
    assert (waiting.state, waiting.position) == ("queued", 1)
    assert [each.state for each in cancelled] == ["cancelled"] * 2
    assert not cancelled[0].HasField("error")


async def test_a_cancelled_job_sets_the_status_of_its_caller(client: Client, worker: ScriptedWorker) -> None:
    events = client.Generate(pb.GenerateRequest(job=chat()))
    job = await worker.take()
    await client.CancelJob(pb.CancelJobRequest(id=job.request.id))
    refused = await refusal(events)

    status = rpc_status.from_call(refused)
    assert status is not None
    assert refused.details() == "the request was cancelled"


async def test_models_are_listed(client: Client) -> None:
    found = await client.ListModels(pb.ListModelsRequest())

    shown = pb.Model(
        id=MODEL,
        created=found.models[0].created,
        owned_by="headrace",
        max_model_len=1024,
        task="generate",
        runtime="native",
        max_num_seqs=8,
        workers_ready=1,
    )
    assert list(found.models) == [shown]
