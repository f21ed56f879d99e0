"""`headrace.LLM`: an engine in this process, with the interface of vLLM."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, LoRARequest, SamplingParams, StructuredOutputsParams
from shared import protocol
from shared.errors import ConfigError, ContextLengthExceeded, EngineFailed, InvalidRequest
from tests.support.adapters import save_adapter
from tests.support.engine_driver import GREEDY, load, run
from tests.support.waiting import LIMIT_S

PROMPTS = ["water", "a mill by the river", "é"]
VLLM_NAMES = """
temperature top_p top_k min_p max_tokens stop seed n presence_penalty frequency_penalty repetition_penalty
ignore_eos logprobs logit_bias structured_outputs min_tokens stop_token_ids include_stop_str_in_output
skip_special_tokens spaces_between_special_tokens bad_words allowed_token_ids thinking_token_budget prompt_logprobs
"""
SERVER_NAMES = {"echo", "best_of", "include_reasoning", "return_token_ids"}  # of requests to a server
TGI_NAMES = {"typical_p", "watermark"}


@pytest.fixture(scope="module")
def llm(llama: Path) -> LLM:
    return LLM(model=llama, max_num_seqs=8, kv_cache_gib=0.01)


def ids(answers: list[Any]) -> list[list[int]]:
    return [answer.outputs[0].token_ids for answer in answers]


def test_answers_are_in_the_order_of_the_prompts(llm: LLM, llama: Path) -> None:
    """Given prompts whose answers end at different steps, each answer is at its prompt's place."""
    lengths = [20, 3, 9]
    engine = load(llama)
    expected = run(engine, [engine.tokenizer.encode(prompt) for prompt in PROMPTS], GREEDY)
    each = [SamplingParams(temperature=0, max_tokens=length) for length in lengths]
    answers = llm.generate(PROMPTS, each, use_tqdm=False)
    assert ids(answers) == [tokens[:length] for tokens, length in zip(expected, lengths, strict=True)]
    assert [answer.prompt for answer in answers] == PROMPTS
    assert [engine.tokenizer.decode(answer.prompt_token_ids) for answer in answers] == PROMPTS
    assert {answer.outputs[0].finish_reason for answer in answers} <= {"length", "stop"}
    assert all(answer.error is None for answer in answers)


def test_prompt_may_be_text_token_ids_or_a_mapping(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    tokens = llm._engine.tokenizer.encode("water")
    both = {"prompt": "another", "prompt_token_ids": tokens}
    forms: list[Any] = [
        "water",
        tokens,
        ["water"],
        [tokens],
        [{"prompt_token_ids": tokens}],
        {"prompt": "water"},
        both,
    ]
    assert len({str(ids(llm.generate(form, params, use_tqdm=False))) for form in forms}) == 1
    assert llm.generate([], params, use_tqdm=False) == []


def test_chat_renders_the_models_template(llm: LLM) -> None:
    turns = [{"role": "user", "content": "hi"}]
    params = SamplingParams(temperature=0, max_tokens=4)
    [one] = llm.chat(turns, params, use_tqdm=False)
    tokenizer = llm._engine.tokenizer
    assert one.prompt_token_ids == tokenizer.encode("<bos>user:hi<eos><bos>assistant:")
    assert ids(llm.chat([turns, turns], params, use_tqdm=False)) == ids([one, one])


def test_the_prompt_is_scored(llm: LLM) -> None:
    """Given a prompt that is in the prefix cache, its scores are the same, with vLLM's names."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    prompt = list(range(100, 140))
    cold, warm = (llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2))
    assert cold.prompt_logprobs == warm.prompt_logprobs
    assert cold.prompt_logprobs is not None
    assert cold.prompt_logprobs[0] is None
    for token_id, scores in zip(prompt[1:], cold.prompt_logprobs[1:], strict=True):
        assert scores is not None
        assert next(iter(scores)) == token_id
        assert {1, 2} <= {each.rank for each in scores.values()}
        assert scores[token_id].decoded_token == llm._engine.tokenizer.token_bytes(token_id).decode(
            errors="replace"
        )
    params = SamplingParams(temperature=0, max_tokens=1)
    [plain] = llm.generate(prompt, params, use_tqdm=False)
    assert (plain.prompt_logprobs, cold.num_cached_tokens, plain.num_cached_tokens) == (None, 0, 32)
    [empty] = llm.generate(prompt, SamplingParams(max_tokens=0), use_tqdm=False)
    assert (empty.outputs[0].token_ids, empty.num_cached_tokens) == ([], 32)


def test_chat_options_are_those_of_the_server(llm: LLM) -> None:
    turns = [{"role": "user", "content": "h<eos>"}]
    params = SamplingParams(temperature=0, max_tokens=1)
    options = {"add_generation_prompt": False, "continue_final_message": True, "chat_template_kwargs": {"a": 1}}
    [one] = llm.chat(turns, params, use_tqdm=False, **options)
    tokenizer = llm._engine.tokenizer
    assert tokenizer.decode_all(one.prompt_token_ids) == "<bos>user:h<eos>"
    assert one.prompt_token_ids.count(257) == 0
    for wrong in ({"continue_final_message": True}, {"chat_template_kwargs": {"messages": []}}):
        with pytest.raises(InvalidRequest):
            llm.chat(turns, params, use_tqdm=False, **wrong)


def test_choices_seeds_and_logprobs(llm: LLM) -> None:
    params = SamplingParams(seed=5, n=3, max_tokens=8, logprobs=2, ignore_eos=True)
    first, second = llm.generate(["river", "river"], params, use_tqdm=False)
    assert [choice.token_ids for choice in first.outputs] == [choice.token_ids for choice in second.outputs]
    assert [choice.index for choice in first.outputs] == [0, 1, 2]
    choice = first.outputs[0]
    assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids) == 8
    for token, entries in zip(choice.token_ids, choice.logprobs, strict=True):
        assert token in entries and len(entries) in {2, 3}
        assert [entry.rank for entry in entries.values()][:2] == [1, 2]
    unseeded = SamplingParams(max_tokens=30, ignore_eos=True)
    one, other = llm.generate(["river", "river"], unseeded, use_tqdm=False)
    assert one.outputs[0].token_ids != other.outputs[0].token_ids


def test_stop_may_be_one_string_or_several(llm: LLM) -> None:
    [whole] = llm.generate("water", SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    stop = whole.outputs[0].text[3:5]
    expected = whole.outputs[0].text[: whole.outputs[0].text.index(stop)]
    for form in (stop, [stop], (stop, "nowhere")):
        params = SamplingParams(temperature=0, max_tokens=24, stop=form, top_k=-1)
        [answer] = llm.generate("water", params, use_tqdm=False)
        assert (answer.outputs[0].text, answer.outputs[0].finish_reason) == (expected, "stop")


def test_fields_of_vllm_and_values_that_mean_off(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    [free] = llm.generate("water", greedy, use_tqdm=False)
    off: dict[str, Any] = {"stop": "", "stop_token_ids": None, "bad_words": [], "seed": -1, "top_k": -1, "n": None}
    for wide in ({"temperature": 0, "top_p": 1}, {"temperature": 50.0, "top_p": 0}):
        params = SamplingParams(max_tokens=6, ignore_eos=True, **{**off, **wide})
        assert ids(llm.generate("water", params, use_tqdm=False)) == ids([free])
    last, word = free.outputs[0].token_ids[1], free.outputs[0].text[2]
    stopping = SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=[last], min_tokens=3, max_tokens=9)
    [stopped] = llm.generate("water", stopping, use_tqdm=False)
    assert len(stopped.outputs[0].token_ids) > 3
    assert stopped.outputs[0].stop_reason in (None, last)
    [other] = llm.generate("water", SamplingParams(temperature=0, max_tokens=6, bad_words=[word]), use_tqdm=False)
    assert word not in other.outputs[0].text
    [empty] = llm.generate("water", SamplingParams(max_tokens=0, n=2), use_tqdm=False)
    assert [(each.text, each.finish_reason) for each in empty.outputs] == [("", "length")] * 2


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (["ok", ""], None, r"prompts\[1\]: prompt must not be empty"),
        (["ok", [9999]], None, r"prompts\[1\]: token 9999"),
        (["ok", 7], None, "a text or token ids"),
        ([[1, "a"]], None, "a text or token ids"),
        (None, None, "prompts must be"),
        ("ok", SamplingParams(temperature=-1), "temperature"),
        ("ok", SamplingParams(temperature="hot"), "sampling_params"),  # type: ignore[arg-type]
        ("ok", SamplingParams(max_tokens=-1), "max_tokens"),
        ("ok", SamplingParams(n=9), "n must be at most 8"),
        ("ok", SamplingParams(best_of=2), "best_of is not supported by LLM"),
        ("ok", SamplingParams(stop_token_ids=[9999]), r"prompts\[0\]: stop_token_ids: token 9999"),
        ("ok", SamplingParams(bad_words=[" "]), r"prompts\[0\]: each of bad_words"),
        ("ok", SamplingParams(seed=2**63), "seed"),
        (["a", "b"], [SamplingParams()], "one for each of the 2 prompts, got 1"),
    ],
)
def test_invalid_calls_are_refused_before_computing(llm: LLM, prompts: Any, params: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.generate(prompts, params, use_tqdm=False)
    assert not llm._engine.has_work()


def test_too_long_and_malformed_chats_are_refused(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded):
        llm.generate("x" * 600, use_tqdm=False)
    for turns, message in (
        ([{"role": "user"}], "each message must have role and content"),
        ([{"role": "user", "content": 3}], "each message must have role and content"),
        ([[]], "messages must not be empty"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            llm.chat(turns, use_tqdm=False)  # type: ignore[arg-type]


def test_failure_of_one_prompt_leaves_the_others(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given NaN logits in one prompt's row, that prompt has an error and the others have their answers."""
    params = SamplingParams(temperature=0, max_tokens=6)
    expected = ids(llm.generate(PROMPTS, params, use_tqdm=False))
    run_step = llm._engine._runner.run

    def poisoned(batch: Any, interrupted: Any) -> Any:
        logits = run_step(batch, interrupted).clone()  # out of inference mode, where it may be changed
        sampled = [item.sequence.job_id for item in batch.items if item.samples]
        logits[[job_id == "1" for job_id in sampled]] = torch.nan
        return logits

    monkeypatch.setattr(llm._engine._runner, "run", poisoned)
    answers = llm.generate(PROMPTS, params, use_tqdm=False)
    assert isinstance(answers[1].error, EngineFailed) and answers[1].outputs[0].finish_reason == "error"
    assert ids([answers[0], answers[2]]) == [expected[0], expected[2]]


def test_model_is_usable_after_an_interrupted_batch(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    expected = ids(llm.generate(PROMPTS, params, use_tqdm=False))
    with monkeypatch.context() as patch:

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(llm._engine._runner, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, params, use_tqdm=False)
    assert ids(llm.generate(PROMPTS, params, use_tqdm=False)) == expected


def test_progress_is_shown_unless_turned_off(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    params = SamplingParams(max_tokens=2)
    llm.generate(PROMPTS, params)
    assert "3/3" in capsys.readouterr().err
    llm.generate(PROMPTS, params, use_tqdm=False)
    assert capsys.readouterr() == ("", "")


def test_prompts_may_have_adapters(llama: Path, tmp_path: Path) -> None:
    one, two = LoRARequest("one", 1, "one"), LoRARequest("two", 2, tmp_path / "two")
    for seed, name in enumerate(("one", "two"), 1):
        save_adapter(tmp_path / name, llama, seed=seed)
    llm = LLM(llama, lora_dir=tmp_path, max_loras=2, kv_cache_gib=0.01)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    def answers(lora_request: Any) -> list[list[int]]:
        return ids(llm.generate(["water"] * 3, params, use_tqdm=False, lora_request=lora_request))

    plain, first, second = answers([None, one, two])
    assert len({*map(tuple, (plain, first, second))}) == 3
    assert [answers(None)[0], answers(one)[1], answers(two)[2]] == [plain, first, second]
    messages = [{"role": "user", "content": "Hello!"}]
    chats = [llm.chat(messages, params, use_tqdm=False, lora_request=each) for each in (None, one)]
    assert ids(chats[0]) != ids(chats[1])
    (tmp_path / "one").rename(tmp_path / "old")
    (tmp_path / "two").rename(tmp_path / "one")
    assert answers(one)[0] == first
    assert answers(LoRARequest("one", 3, "one"))[0] == second  # a new id loads it again
    three = [LoRARequest("one", number, "one") for number in (4, 5, 6)]
    for refused, message in (
        (three, "at most 2 adapters in one call"),
        ([one], "one for each of the 3 prompts"),
        (LoRARequest("one", 0, "one"), "lora_int_id must be at least 1"),
        (LoRARequest("one", "1", "one"), "lora_int_id has the wrong type str"),  # type: ignore[arg-type]
        (LoRARequest("one", 1, ["one"]), "lora_path has the wrong type list"),  # type: ignore[arg-type]
        ("one", "must be"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            answers(refused)
    with pytest.raises(ConfigError, match="nowhere"):
        answers(LoRARequest("none", 7, "nowhere"))


def test_adapters_need_their_folder(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="lora_request needs lora_dir"):
        llm.generate("water", lora_request=LoRARequest("one", 1, "one"))


def test_a_kv_tier_keeps_long_prompts(llama: Path) -> None:
    llm = LLM(llama, kv_tier="memory", kv_tier_min_tokens=16, kv_cache_gib=0.01, block_size=16)
    assert llm._engine.tier is not None
    llm.generate([list(range(1, 40))], SamplingParams(max_tokens=2), use_tqdm=False)
    deadline = time.monotonic() + LIMIT_S
    while not llm._engine.tier.stats().saved_bytes and time.monotonic() < deadline:
        time.sleep(0.005)
    assert llm._engine.tier.stats().saved_bytes


def test_settings_are_the_engines(llama: Path) -> None:
    with pytest.raises(ConfigError, match="pipeline_parallel_size is not a setting"):
        LLM(model=llama, pipeline_parallel_size=2)
    with pytest.raises(ConfigError, match="max_model_len"):
        LLM(model=llama, max_model_len="long")
    assert LLM(model=llama, max_model_len=64, num_kv_blocks=9)._engine.stats().blocks_total == 9


def test_parameters_have_the_names_of_vllm() -> None:
    for kind in (SamplingParams, protocol.SamplingParams):
        assert set(kind.__struct_fields__) == {*VLLM_NAMES.split(), *TGI_NAMES, *SERVER_NAMES}
    assert SamplingParams().seed is None


def test_parameters_need_no_torch() -> None:
    code = "import sys, headrace; headrace.SamplingParams(); headrace.LLM; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT_S)


def test_example_of_the_documentation_runs(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "llm.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example.replace('"smollm2"', repr(str(llama))), {})
    assert capsys.readouterr().out.count("→") == 2


def test_structured_outputs(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["a"],
    }
    wanted = [
        StructuredOutputsParams(json=schema),
        StructuredOutputsParams(choice=["yes", "no"]),
        StructuredOutputsParams(regex="[0-9]{3}"),
    ]
    params = [SamplingParams(temperature=1.5, seed=1, structured_outputs=each) for each in wanted]
    found, chosen, digits = [answer.outputs[0].text for answer in llm.generate(PROMPTS, params, use_tqdm=False)]
    assert 0 <= json.loads(found)["a"] < 100
    assert chosen in ("yes", "no")
    assert re.fullmatch("[0-9]{3}", digits)
    for bad in ({"regex": "(a"}, {"json": {"not": {}}}, {}, {"choice": ["a"], "regex": "a"}):
        with pytest.raises(InvalidRequest) as refused:
            llm.generate("x", SamplingParams(structured_outputs=StructuredOutputsParams(**bad)), use_tqdm=False)
        assert refused.value.param == "structured_outputs"
