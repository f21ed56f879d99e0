"""lm-eval's model class for servers: log-likelihoods against transformers' own, with a cold and a warm cache."""

import math
import os

import torch
from features import KEY, MODEL, URL, feature, main
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = os.environ["HEADRACE_MODEL_FOLDER"]  # the served weights
PAIRS = [
    ("The capital of Italy is", " Rome"),
    ("The capital of Italy is", " Paris"),
    ("Water boils at one hundred", " degrees"),
    ("Hello 😊", " é 😊"),
    ("The tide comes in and goes out again. " * 12 + "The tide comes", " in"),  # several blocks of the prefix cache
]
TOLERANCE = 1e-4


def served():
    return LocalCompletionsAPI(
        base_url=f"{URL}/v1/completions",
        model=MODEL,
        tokenizer=FOLDER,
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        header={"Authorization": f"Bearer {KEY}"},
    )


def likelihoods(model):
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    return [value for value, _ in model.loglikelihood(requests)]


def expected():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    sums = []
    for context, continuation in PAIRS:
        head, tail = (
            tokenizer.encode(context),
            tokenizer.encode(context + continuation)[len(tokenizer.encode(context)) :],
        )
        with torch.inference_mode():
            rows = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].log_softmax(-1)
        sums.append(sum(rows[i, token].item() for i, token in enumerate(tail)))
    return sums


@feature("log-likelihoods equal transformers', cold and warm cache")
def equal():
    wanted, model = expected(), served()
    for _ in range(2):
        for value, other in zip(likelihoods(model), wanted, strict=True):
            assert math.isclose(value, other, abs_tol=TOLERANCE), (value, other)


@feature("generation until a stop string")
def generation():
    model = served()
    request = Instance("generate_until", {}, ("The sea is", {"until": ["."], "max_gen_toks": 16}), 0)
    assert model.generate_until([request])[0]


main()
