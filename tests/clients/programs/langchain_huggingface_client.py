"""langchain-huggingface: its endpoint for TGI, chats through it, and embeddings."""

from features import EMBEDDER, KEY, URL, feature, main
from huggingface_hub import InferenceClient
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint, HuggingFaceEndpointEmbeddings

PROMPT = "The capital of France is"


def endpoint(**fields):
    """Return the endpoint. Given the URL as `endpoint_url`, the package would keep the key to itself."""
    return HuggingFaceEndpoint(model=URL, huggingfacehub_api_token=KEY, max_new_tokens=8, **fields)


@feature("completions")
def completions():
    assert endpoint().invoke(PROMPT)
    return "a server with keys: `model=URL`, as `endpoint_url=URL` sends no key"


@feature("completions, streamed")
def streamed():
    model = endpoint(seed=5)
    assert "".join(model.stream(PROMPT)) == model.invoke(PROMPT)


@feature("stop sequences")
def stop():
    assert "Paris" not in endpoint(seed=5).invoke(PROMPT, stop=["Paris"])


@feature("chat")
def chat():
    assert ChatHuggingFace(llm=endpoint(), model_id="tgi").invoke("Say hi").content


@feature("embeddings")
def embeddings():
    model = HuggingFaceEndpointEmbeddings(model=EMBEDDER)
    model.client = InferenceClient(model=f"{URL}/models/{EMBEDDER}", token=KEY)
    assert len(model.embed_query("a")) == 384
    return "the package refuses a URL as `model`: set `client`"


main()
