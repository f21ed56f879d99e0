"""Log-probabilities equal transformers', also in resumed answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from shared.errors import InvalidRequest
from shared.protocol import SamplingParams, decode_event, encode
from shared.protocol import TokenEvent as Event
from tests.support.checkpoints import hf_model
from tests.support.engine_driver import drain, load
from tests.support.sequences import make_sequence
from workers.engine.interface import EngineRequest
from workers.engine.sampling.logprobs import MIN_LOGPROB, StepLogprobs

PROMPT = tuple(b"a river runs to the mill, and the mill ")
PENALIZED = SamplingParams(temperature=1.4, top_p=0.9, repetition_penalty=1.2, seed=3, max_tokens=12, logprobs=5)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_logprobs_match_transformers(name: str, checkpoints: Callable[[str], Path]) -> None:
    """Given temperature, filters and penalties, the reported values are those of the raw distribution."""
    engine = load(checkpoints(name))
    engine.add(EngineRequest("r", PROMPT, PENALIZED))
    engine.add(EngineRequest("other", PROMPT[:9], msgspec.structs.replace(PENALIZED, logprobs=None)))
    answers = drain(engine)
    ids = answers.ids("r")
    with torch.inference_mode():
        logits = hf_model(checkpoints(name))(torch.tensor([[*PROMPT, *ids]])).logits[0]
    expected = logits[len(PROMPT) - 1 : -1].log_softmax(-1)
    for token, row in zip(answers.tokens["r", 0], expected, strict=True):
        assert token.logprobs is not None
        assert token.logprobs.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        best = row.topk(5)
        assert [top[0] for top in token.logprobs.top] == best.indices.tolist()
        assert [top[1] for top in token.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert all(token.logprobs is None for token in answers.tokens["other", 0])


def test_tokens_within_a_character_have_their_bytes(llama: Path) -> None:
    """Given an answer of random bytes, each piece is a text alone, or its bytes are in `exact`."""
    engine = load(llama)
    engine.add(EngineRequest("r", PROMPT, PENALIZED))
    tokens = drain(engine).tokens["r", 0]
    for token in tokens:
        assert token.logprobs is not None
        pieces = {token.id: token.logprobs.piece} | {i: piece for i, _, piece in token.logprobs.top}
        for token_id, piece in pieces.items():
            data = engine.tokenizer.token_bytes(token_id)
            assert piece == data.decode(errors="replace")
            special = token_id in engine.tokenizer.special_ids
            assert token.logprobs.exact.get(token_id, piece.encode()) == (b"" if special else data)
    assert any(token.logprobs and token.logprobs.exact for token in tokens), "the test is about these"


def test_logprobs_takes_0_to_20(llama: Path) -> None:
    engine = load(llama)
    engine.add(EngineRequest("r", PROMPT, msgspec.structs.replace(PENALIZED, logprobs=0)))
    for token in drain(engine).tokens["r", 0]:
        assert token.logprobs is not None
        assert token.logprobs.top == ()
        assert token.logprobs.logprob < 0
    for count in (-1, 21):
        with pytest.raises(InvalidRequest, match="logprobs"):
            engine.add(EngineRequest("r", PROMPT, msgspec.structs.replace(PENALIZED, logprobs=count)))


def test_resumed_answer_has_the_same_logprobs(llama: Path) -> None:
    """They also survive encoding and decoding in the log."""
    engine = load(llama)
    params = msgspec.structs.replace(PENALIZED, n=2)
    engine.add(EngineRequest("whole", PROMPT, params))
    whole = drain(engine).tokens
    resumed = tuple(tuple(t.id for t in whole["whole", c][:5]) for c in range(2))
    engine.add(EngineRequest("rest", PROMPT, params, resumed))
    rest = drain(engine).tokens
    for choice in range(2):
        for got, wanted in zip(rest["rest", choice], whole["whole", choice][5:], strict=True):
            assert (got.id, got.text) == (wanted.id, wanted.text)
            assert got.logprobs is not None and wanted.logprobs is not None
            assert got.logprobs.logprob == pytest.approx(wanted.logprobs.logprob, abs=1e-5)
        event = Event(0, tuple(rest["rest", choice]))
        assert decode_event(encode(event)) == event


def test_logprob_of_an_impossible_token_is_finite() -> None:
    sequence = make_sequence(SamplingParams(logprobs=3), [1], [])
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    found = StepLogprobs(logits, [sequence], lambda token_id, first: b"%d" % token_id).for_token(0, 0)
    assert found is not None
    assert found.top[0] == (0, 0.0, "0")
    assert [value for _, value, _ in found.top[1:]] == [MIN_LOGPROB, MIN_LOGPROB]


@pytest.mark.parametrize("chunk", [512, 7])
def test_an_echoed_prompt_is_scored(llama: Path, chunk: int) -> None:
    """Given a cached prompt, in chunks, beside another request, the scores are transformers', sent once."""
    engine = load(llama, max_num_batched_tokens=chunk)
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=2, n=2)
    engine.add(EngineRequest("plain", PROMPT, params))
    plain = drain(engine).ids("plain")
    engine.add(EngineRequest("other", PROMPT[3:], params))
    engine.add(EngineRequest("r", PROMPT, msgspec.structs.replace(params, echo=True)))
    outputs = []
    while engine.has_work():
        outputs += [output for output in engine.step() if output.job_id == "r"]
    assert [token.id for output in outputs for token in output.tokens if token.choice == 0] == plain
    [echoed] = [output.prompt for output in outputs if output.prompt]
    assert outputs[0].prompt == echoed, "with the first token"
    assert [token.id for token in echoed] == list(PROMPT)
    assert "".join(token.text for token in echoed) == engine.tokenizer.decode(list(PROMPT))
    with torch.inference_mode():
        logits = hf_model(llama)(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1)
    assert echoed[0].logprobs is None
    for token, row in zip(echoed[1:], logits, strict=True):
        assert token.logprobs is not None
        assert token.logprobs.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert [top[0] for top in token.logprobs.top] == row.topk(2).indices.tolist()
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize(("chunk", "blocks"), [(512, 256), (7, 256), (7, 24)])
def test_prompt_logprobs_match_transformers(llama: Path, chunk: int, blocks: int) -> None:
    """Given a cold and a warm cache, chunks, several choices and preemptions, with the rank of each token."""
    engine = load(llama, max_num_batched_tokens=chunk, num_kv_blocks=blocks, block_size=4)
    params = SamplingParams(temperature=0.0, max_tokens=20, n=2)
    prompt = (*PROMPT, 0xF0, 0x9F)
    for name in ("first", "second"):
        engine.add(EngineRequest(name, PROMPT[3:], params))
    scoring = msgspec.structs.replace(params, prompt_logprobs=3, return_token_ids=True)
    with torch.inference_mode():
        expected = hf_model(llama)(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    for run in ("cold", "warm"):
        engine.add(EngineRequest(run, prompt, scoring))
        prompts = []
        while engine.has_work():
            prompts += [output.prompt for output in engine.step() if output.prompt]
        [found] = prompts
        assert [token.id for token in found] == list(prompt)
        assert {token.text for token in found} == {""}, "it is not echoed"
        assert found[0].logprobs is None
        for token, row in zip(found[1:], expected, strict=True):
            assert token.logprobs is not None
            assert token.logprobs.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
            best = row.topk(3)
            assert [top[0] for top in token.logprobs.top] == best.indices.tolist()
            assert [top[1] for top in token.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert token.logprobs.rank == row.argsort(descending=True).tolist().index(token.id) + 1
        assert found[-1].logprobs is not None
        assert found[-1].logprobs.exact[0x9F] == engine.tokenizer.token_bytes(0x9F)
    assert blocks > 24 or engine.stats().preemptions > 0


def test_scores_of_a_prompt_are_bounded(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.request_check.MAX_PROMPT_SCORES", 3 * len(PROMPT))
    engine = load(llama)
    for asked in ({"prompt_logprobs": 3}, {"logprobs": 3, "echo": True}):
        with pytest.raises(InvalidRequest, match="log-probabilities of a prompt") as refused:
            engine.add(EngineRequest("r", PROMPT, SamplingParams(max_tokens=1, **asked)))
        assert refused.value.param == next(iter(asked))
    engine.add(EngineRequest("r", PROMPT, SamplingParams(max_tokens=1, prompt_logprobs=2)))


def test_echo_without_scores(llama: Path) -> None:
    engine = load(llama)
    text = "<bos>né<eos>"
    prompt = tuple(engine.tokenizer.encode(text))
    engine.add(EngineRequest("r", prompt, SamplingParams(temperature=0.0, max_tokens=1, echo=True)))
    [output] = engine.step()
    assert "".join(token.text for token in output.prompt) == text
    assert all(token.logprobs is None for token in output.prompt)
