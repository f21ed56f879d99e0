"""dspy."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it downloads one

import dspy
from features import KEY, MODEL, URL, feature, main

COMMON = {"api_base": f"{URL}/v1", "api_key": KEY, "max_tokens": 64, "cache": False}


@feature("a model's answer")
def direct():
    assert dspy.LM(f"openai/{MODEL}", **COMMON)("Say hi")[0]


@feature("a predictor with a JSON schema")
def predictor():
    lm = dspy.LM(f"lm_studio/{MODEL}", **COMMON)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        answer = dspy.Predict("question -> answer: bool")(question="Is Rome in Italy?").answer
    assert isinstance(answer, bool)
    return "needs a provider that dspy sends schemas to, such as lm_studio; to others it sends none"


main()
