"""langchain-huggingface: its endpoint for TGI, chats through it, and embeddings."""

from features import EMBEDDER, KEY, URL, feature, main
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint, HuggingFaceEndpointEmbeddings

PROMPT = "The capital of France is"


def endpoint(**fields):
    return HuggingFaceEndpoint(endpoint_url=URL, huggingfacehub_api_token=KEY, max_new_tokens=8, **fields)


@feature("completions")
def completions():
    assert endpoint(return_full_text=False).invoke(PROMPT)
    return "return_full_text=False: TGI's default is the full text"


@feature("completions, streamed")
def streamed():
    model = endpoint(do_sample=True, seed=5, return_full_text=False)
    assert "".join(model.stream(PROMPT)) == model.invoke(PROMPT)


@feature("stop sequences")
def stop():
    assert "Paris" not in endpoint(do_sample=False).invoke(PROMPT, stop=["Paris"]).removeprefix(PROMPT)


@feature("chat")
def chat():
    assert ChatHuggingFace(llm=endpoint(), model_id="tgi").invoke("Say hi").content


@feature("embeddings")
def embeddings():
    model = HuggingFaceEndpointEmbeddings(model=f"{URL}/models/{EMBEDDER}", huggingfacehub_api_token=KEY)
    assert len(model.embed_query("a")) == 384


main()
