"""Classes and scores equal transformers' whatever else is in the batch; unsuitable work is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from shared.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from shared.protocol import Embed, EncoderWork, Pool, PromptOptions, Request, SamplingParams, Score
from tests.support.encoder_checkpoints import hf_encoder, save_encoder
from workers.engine.config import EngineConfig
from workers.engine.encoder_engine import EncoderEngine
from workers.engine.interface import EngineRequest
from workers.engine.models.encoder_loader import read_activation, read_labels
from workers.preparation.prompt_encoding import encode

THREE = {0: "no", 1: "yes", 2: "maybe"}
ONE = {0: "relevance"}
TEXTS = ("a river runs to the mill.", "x", "the wheel turns, and the miller sleeps.", "no")
PAIRS = (("mill", "a river runs to it."), ("when does the wheel turn", "at 9."), ("x", "y"))
SEQUENCES = tuple(f"{name}ForSequenceClassification" for name in ("Bert", "Roberta", "XLMRoberta", "DistilBert"))
TOKENS = tuple(f"{name}ForTokenClassification" for name in ("Bert", "Roberta", "DistilBert"))
Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return the folder of a model of an architecture with these labels, created at first use."""
    made: dict[str, Path] = {}

    def folder(architecture: str, labels: dict[int, str] = THREE) -> Path:
        key = f"{architecture}-{len(labels)}"
        if key not in made:
            made[key] = save_encoder(tmp_path_factory.mktemp(key), architecture, id2label=labels)
        return made[key]

    return folder


def load(folder: Path, tokens: int = 64) -> EncoderEngine:
    return EncoderEngine.load(EngineConfig(folder, max_num_batched_tokens=tokens))


def prepared(engine: EncoderEngine, name: str, work: EncoderWork, **options: object) -> EngineRequest:
    """Return the request that a worker makes of some work."""
    request = Request(id=name, model="m", work=work, prompt_options=PromptOptions(**options))
    found = encode(engine.tokenizer, request, engine.max_model_len, engine.task)
    return EngineRequest(
        name,
        found.prompt,
        SamplingParams(),
        work=work,
        lengths=found.lengths,
        second_starts=found.second_starts,
        prompt_param=request.prompt_param,
    )


def run(engine: EncoderEngine, *requests: EngineRequest) -> dict[str, list[np.ndarray]]:
    """Return the rows of each result, in order."""
    found = {}
    for request in requests:
        engine.add(request)
    while engine.has_work():
        for output in engine.step():
            assert output.result is not None
            assert output.result.labels == engine._head.labels
            found[output.job_id] = [
                np.frombuffer(each, "<f4").reshape(-1, output.result.width or len(each) // 4)
                for each in output.result.vectors
            ]
    return found


def compute(engine: EncoderEngine, work: EncoderWork, **options: object) -> list[np.ndarray]:
    return run(engine, prepared(engine, "it", work, **options))["it"]


@pytest.mark.parametrize("architecture", [*SEQUENCES, *TOKENS])
def test_classes_match_transformers(folders: Folders, architecture: str) -> None:
    """Given texts of several lengths in one step or in several, the scores equal those of a padded batch."""
    folder = folders(architecture)
    padded = AutoTokenizer.from_pretrained(folder)(list(TEXTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = hf_encoder(folder, architecture)(**padded).logits
    for tokens in (1, 40, 4096):
        engine = load(folder, tokens)
        assert engine.task == "classify"
        for activation in (False, True):
            wanted = logits.softmax(-1) if activation else logits
            computed = compute(engine, Pool(TEXTS, activation=activation))
            for rows, reference in zip(computed, wanted.numpy(), strict=True):
                expected = reference[: len(rows)] if architecture in TOKENS else reference[None]
                np.testing.assert_allclose(rows, expected, atol=2e-5)
        assert [len(rows) for rows in computed] == (
            [int(mask.sum()) for mask in padded["attention_mask"]] if architecture in TOKENS else [1] * len(TEXTS)
        )


@pytest.mark.parametrize("architecture", SEQUENCES)
def test_cross_encoders_match_transformers(folders: Folders, architecture: str) -> None:
    folder = folders(architecture, ONE)
    tokenizer, reference = AutoTokenizer.from_pretrained(folder), hf_encoder(folder, architecture)
    queries, documents = zip(*PAIRS, strict=True)
    for tokens in (1, 4096):
        engine = load(folder, tokens)
        scores = compute(engine, Score(queries, documents, activation=False))
        one_query = compute(engine, Score(queries[:1], documents))
        for i, (query, document) in enumerate(PAIRS):
            with torch.inference_mode():
                [wanted, shared] = [
                    reference(**tokenizer(each, document, return_tensors="pt")).logits[0]
                    for each in (query, queries[0])
                ]
            np.testing.assert_allclose(scores[i][0], wanted.numpy(), atol=2e-5)
            np.testing.assert_allclose(one_query[i][0], shared.sigmoid().numpy(), atol=2e-5)


@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "RobertaForTokenClassification"])
def test_neighbours_do_not_change_any_bit(folders: Folders, architecture: str) -> None:
    engine = load(folders(architecture), 48)
    for i, text in enumerate(TEXTS):
        [alone] = compute(engine, Pool((text,)))
        others = TEXTS[i + 1 :] + TEXTS[:i]
        found = run(
            engine, prepared(engine, "others", Pool(others)), prepared(engine, "it", Pool((*others[:2], text)))
        )
        assert (found["it"][2] == alone).all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("keep", [6, 9, 10, 17, 40])
def test_truncation_keeps_what_transformers_keeps(folders: Folders, keep: int, side: str) -> None:
    """A single text keeps its special tokens; of a pair, the longer text is cut first."""
    folder = folders("BertForSequenceClassification", ONE)
    tokenizer, engine = AutoTokenizer.from_pretrained(folder, truncation_side=side), load(folder)
    options = {"truncate_prompt_tokens": keep, "truncation_side": side}
    for text in TEXTS:
        found = prepared(engine, "it", Pool((text,)), **options)
        assert list(found.prompt) == tokenizer(text, truncation=True, max_length=keep)["input_ids"]
    for query, document in (*PAIRS, (TEXTS[2], "x"), (TEXTS[0], TEXTS[0])):
        found = prepared(engine, "it", Score((query,), (document,)), **options)
        wanted = tokenizer(query, document, truncation=True, max_length=keep)
        assert list(found.prompt) == wanted["input_ids"]
        assert found.second_starts == (wanted["token_type_ids"].index(1),)


def test_queries_and_documents_have_limits_of_their_own(folders: Folders) -> None:
    engine = load(folders("BertForSequenceClassification", ONE))
    found = prepared(engine, "it", Score(("mill",), ("river", "x"), max_query_tokens=2, max_document_tokens=3))
    letters = [engine.tokenizer.entry(index).removeprefix("##") for index in found.prompt]
    assert "".join(letters) == "[CLS]mi[SEP]riv[SEP][CLS]mi[SEP]x[SEP]"
    assert (found.lengths, found.second_starts) == ((8, 6), (4, 4))


def test_unsuitable_work_is_refused(folders: Folders) -> None:
    classifier, tagger = (load(folders(f"BertFor{kind}Classification")) for kind in ("Sequence", "Token"))
    cross_encoder = load(folders("BertForSequenceClassification", ONE))
    score = Score(("a",), ("b",))
    for engine, work, options, param in (
        (classifier, score, {}, "model"),
        (tagger, score, {}, "model"),
        (classifier, Pool(("a",), "token_classify"), {}, "task"),
        (tagger, Pool(("a",), "classify"), {}, "task"),
        (classifier, Pool(("a" * 47,)), {}, "input"),
        (classifier, Pool(((96,),)), {}, "input"),
        (cross_encoder, Score(("a" * 30,), ("a" * 30,)), {}, "documents"),
        (classifier, Pool(("a",)), {"truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        (cross_encoder, score, {"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            engine.add(prepared(engine, "it", work, **options))
        assert refused.value.param == param, work
        assert not engine.has_work()
    with pytest.raises(ContextLengthExceeded):
        prepared(cross_encoder, "it", Score(("a" * 30,), ("a" * 30,)))
    assert len(compute(classifier, Pool(("a" * 100,)), truncate_prompt_tokens=-1)) == 1


def test_a_literal_padding_token_has_no_position(folders: Folders) -> None:
    """RoBERTa counts positions of other tokens only, as transformers does."""
    folder = folders("RobertaForTokenClassification")
    ids = (0, 5, 1, 6, 2)
    with torch.inference_mode():
        wanted = hf_encoder(folder, "RobertaForTokenClassification")(torch.tensor([ids])).logits[0]
    [found] = compute(load(folder), Pool((ids,), activation=False))
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


def test_activations_follow_the_config() -> None:
    scores = torch.tensor([2.0, -1.0])
    of_package = "torch.nn.modules.linear.Identity"
    for raw, labels, wanted in (
        ({}, 2, scores.softmax(-1)),
        ({}, 1, scores.sigmoid()),
        ({"problem_type": "multi_label_classification"}, 2, scores.sigmoid()),
        ({"problem_type": "single_label_classification"}, 2, scores.softmax(-1)),
        ({"problem_type": "regression"}, 1, scores),
        ({"sentence_transformers": {"activation_fn": of_package}}, 1, scores),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, 1, scores.sigmoid()),
        ({"sbert_ce_default_activation_function": of_package}, 1, scores),
    ):
        assert torch.equal(read_activation(raw, labels)(scores), wanted), raw
    with pytest.raises(ConfigError, match=r"os\.system"):
        read_activation({"sentence_transformers": {"activation_fn": "os.system"}}, 1)


def test_labels_are_read_or_refused(folders: Folders, tmp_path: Path) -> None:
    assert read_labels({"id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    assert read_labels({"num_labels": 1}) == ("LABEL_0",)
    assert read_labels({}) == ("LABEL_0", "LABEL_1")
    for wrong in ({}, [], {"0": 1}, {"1": "a"}, {"0": "x" * 1001}):
        with pytest.raises(ConfigError, match="id2label"):
            read_labels({"id2label": wrong})
    folder = save_encoder(tmp_path, "BertForSequenceClassification", id2label=ONE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(ConfigError, match="classifier"):
        load(folder)


def test_embeddings_are_scored_by_their_cosine(embedder: EncoderEngine) -> None:
    queries, documents = ("a mill", "a court"), ("water drives the wheel", "the judge adjourned")
    vectors = [rows[0] for rows in compute(embedder, Embed(queries + documents))]
    for query, document, score in zip(
        vectors[:2], vectors[2:], compute(embedder, Score(queries, documents)), strict=True
    ):
        assert score.shape == (1, 1)
        assert score.item() == pytest.approx(query @ document, abs=1e-6)
    shared = compute(embedder, Score(queries[:1], documents))
    assert [each.item() for each in shared] == pytest.approx([vectors[0] @ each for each in vectors[2:]], abs=1e-6)


def test_embedding_models_pool_as_asked(embedder: EncoderEngine) -> None:
    [pooled] = compute(embedder, Pool(("a mill",)))
    [plain] = compute(embedder, Pool(("a mill",), activation=False))
    [tokens] = compute(embedder, Pool(("a mill",), "token_embed"))
    [plain_tokens] = compute(embedder, Pool(("a mill",), "token_embed", activation=False))
    assert tokens.shape == plain_tokens.shape == (4, 384)
    np.testing.assert_allclose(plain_tokens.mean(0), plain[0], atol=1e-6)
    np.testing.assert_allclose(plain / np.linalg.norm(plain), pooled, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=1), 1, atol=1e-6)
    assert (compute(embedder, Embed(("a mill",), activation=False))[0] == plain).all()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
def test_vectors_have_the_type_that_is_asked_for(embedder: EncoderEngine, name: str, dtype: torch.dtype) -> None:
    embedder.add(prepared(embedder, "short", Embed(("a mill",), vector_type=name)))
    [output] = embedder.step()
    [whole] = compute(embedder, Embed(("a mill",)))
    assert output.result is not None
    found = torch.frombuffer(bytearray(output.result.vectors[0]), dtype=dtype)
    assert torch.equal(found.float(), torch.from_numpy(whole[0].copy()).to(dtype).float())
