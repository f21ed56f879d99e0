"""Vectors equal transformers' whatever else is in the batch; unsupported inputs are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from shared.errors import ConfigError, ContextLengthExceeded, EngineFailed, InvalidRequest
from shared.protocol import Embed, PriorityClass, SamplingParams
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.models.encoder_families import EncoderConfig
from workers.engine.models.encoder_loader import is_encoder, read_max_input_tokens, read_pooling

TEXTS = [
    "A river runs to the mill.",
    "x",
    "Wasser läuft über das Rad, und das Rad dreht sich.",
    "The mill wheel turns in the head race, and the miller sleeps. " * 12,
    "水は水車へ流れる",
]


def request(engine: EncoderEngine, name: str, *texts: str, **fields: object) -> EngineRequest:
    parts = [engine.tokenizer.encode(text) for text in texts]
    prompt = tuple(token for part in parts for token in part)
    fields = {"work": Embed(texts), "prompt_param": "input", **fields}
    return EngineRequest(name, prompt, SamplingParams(), lengths=tuple(map(len, parts)), **fields)


def drain(engine: EncoderEngine) -> dict[str, EngineOutput]:
    found = {}
    while engine.has_work():
        for output in engine.step():
            assert output.finished and output.job_id not in found
            found[output.job_id] = output
    return found


def vectors(output: EngineOutput) -> np.ndarray:
    assert output.result is not None
    return np.stack([np.frombuffer(vector, "<f4") for vector in output.result.vectors])


def reference(folder: Path, engine: EncoderEngine, text: str) -> np.ndarray:
    """Return the vector as sentence-transformers does: transformers' model, the mean over the tokens, length 1."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    with torch.inference_mode():
        hidden = model(torch.tensor([engine.tokenizer.encode(text)])).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()


def test_vectors_match_transformers(embedder: EncoderEngine, minilm: Path) -> None:
    """Given inputs of several requests and lengths over several steps, the vectors equal the reference's."""
    embedder.add(request(embedder, "a", *TEXTS[:3]))
    embedder.add(request(embedder, "b", *TEXTS[3:]))
    found = drain(embedder)
    computed = np.concatenate([vectors(found["a"]), vectors(found["b"])])
    for vector, text in zip(computed, TEXTS, strict=True):
        np.testing.assert_allclose(vector, reference(minilm, embedder, text), atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_neighbours_do_not_change_any_bit(embedder: EncoderEngine) -> None:
    """Given an input alone and among others in any order, its bits are the same."""
    for index, text in enumerate(TEXTS):
        embedder.add(request(embedder, str(index), text))
        [alone] = drain(embedder).values()
        others = [*TEXTS[index + 1 :], *TEXTS[:index]]
        embedder.add(request(embedder, "others", *others))
        embedder.add(request(embedder, "it", text, *others))
        assert (vectors(drain(embedder)["it"])[0] == vectors(alone)[0]).all()


def test_dimensions_truncate_and_normalize(embedder: EncoderEngine) -> None:
    embedder.add(request(embedder, "whole", TEXTS[0]))
    embedder.add(request(embedder, "cut", TEXTS[0], work=Embed((TEXTS[0],), 8)))
    found = drain(embedder)
    whole, cut = vectors(found["whole"])[0][:8], vectors(found["cut"])[0]
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole), atol=1e-6)


def test_unsupported_inputs_are_refused(embedder: EncoderEngine) -> None:
    """An input of 256 tokens is embedded; a longer or an invalid one is refused, never truncated."""
    assert embedder.max_model_len == 256
    embedder.add(request(embedder, "fits", "a " * 254))
    assert set(drain(embedder)) == {"fits"}
    with pytest.raises(ContextLengthExceeded, match="257"):
        embedder.add(request(embedder, "long", "x", "a " * 255))
    with pytest.raises(InvalidRequest, match="at most 384"):
        embedder.add(request(embedder, "wide", "x", work=Embed(("x",), 385)))
    with pytest.raises(InvalidRequest, match="vocabulary"):
        embedder.add(EngineRequest("unknown", (30_522,), SamplingParams(), lengths=(1,), work=Embed(((30_522,),))))
    assert not embedder.has_work()


def test_urgent_requests_go_first_and_aborted_ones_leave(embedder: EncoderEngine) -> None:
    """Given more inputs than a step holds, the most urgent class goes first; aborted requests have no output."""
    embedder.add(request(embedder, "batch", *["a " * 30] * 4, priority=PriorityClass.BATCH))
    embedder.add(request(embedder, "gone", "x", priority=PriorityClass.INTERACTIVE))
    embedder.add(request(embedder, "now", "a " * 30, priority=PriorityClass.INTERACTIVE))
    assert embedder.abort("gone") and not embedder.abort("gone")
    assert [output.job_id for output in embedder.step()] == ["now"]
    assert list(drain(embedder)) == ["batch"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("x")])
def test_failing_step_ends_only_the_request_at_fault(
    embedder: EncoderEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    forward = embedder._model.forward
    bad = embedder.tokenizer.encode("bad")[1]

    def fail(tokens, lengths, second_starts):
        if bad in tokens:
            raise error
        return forward(tokens, lengths, second_starts)

    monkeypatch.setattr(embedder._model, "forward", fail)
    embedder.add(request(embedder, "good", "good"))
    embedder.add(request(embedder, "bad", "bad"))
    found = drain(embedder)
    assert isinstance(found["bad"].error, EngineFailed)
    assert found["good"].result is not None
    for name in ("all", "bad too"):
        embedder.add(request(embedder, name, "bad"))
    with pytest.raises(EngineFailed):  # no single request is at fault
        embedder.step()
    for name in ("all", "bad too"):
        embedder.abort(name)


def test_model_folder_is_read_or_refused(minilm: Path, tmp_path: Path) -> None:
    assert is_encoder(minilm)
    copy = tmp_path / "copy"
    shutil.copytree(minilm, copy)
    config = json.loads((copy / "config.json").read_text())
    assert read_pooling(copy) == "mean"
    parsed = EncoderConfig.parse(config)
    assert (read_max_input_tokens(copy, parsed, None), read_max_input_tokens(copy, parsed, 9)) == (256, 9)
    (copy / "sentence_bert_config.json").unlink()
    assert read_max_input_tokens(copy, parsed, None) == 512
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert read_pooling(copy) == "cls"
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ConfigError, match="max_tokens"):
        read_pooling(copy)
    for change in ({"hidden_act": "relu"}, {"hidden_size": None}, {"num_attention_heads": 7}):
        with pytest.raises(ConfigError):
            EncoderConfig.parse(config | change)
    config["intermediate_size"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="shape"):
        EncoderEngine.load(EngineConfig(copy))
