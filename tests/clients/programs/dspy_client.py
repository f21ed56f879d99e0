"""dspy."""

import dspy
from features import KEY, MODEL, URL, feature, main

lm = dspy.LM(f"openai/{MODEL}", api_base=f"{URL}/v1", api_key=KEY, max_tokens=64, cache=False)


@feature("a model's answer")
def direct():
    assert lm("Say hi")[0]


@feature("a predictor with a JSON schema")
def predictor():
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        try:
            dspy.Predict("question -> answer: bool")(question="Is Rome in Italy?")
        except dspy.utils.exceptions.AdapterParseError:
            return "the form of the answer is up to a model of 135M parameters"
    return None


main()
