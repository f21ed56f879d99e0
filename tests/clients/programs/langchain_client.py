"""langchain-openai, and an agent of langgraph."""

from features import EMBEDDER, KEY, MODEL, URL, feature, main
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

COMMON = {"base_url": f"{URL}/v1", "api_key": KEY}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    capital: bool


@tool
def weather(city: str) -> str:
    """Current weather of a city."""
    return "sunny"


@feature("chat")
def chat():
    answer = ChatOpenAI(model=MODEL, max_tokens=16, **COMMON).invoke([("system", "Be brief"), ("human", "Say hi")])
    assert answer.content and answer.usage_metadata["output_tokens"]


@feature("chat, streamed")
def streamed():
    model = ChatOpenAI(model=MODEL, max_tokens=16, temperature=0, **COMMON)
    assert "".join(chunk.content for chunk in model.stream("Say hi")) == model.invoke("Say hi").content


@feature("structured output")
def structured():
    model = ChatOpenAI(model=MODEL, max_tokens=100, **COMMON)
    for method in ("json_schema", "function_calling"):
        assert isinstance(model.with_structured_output(City, method=method).invoke("A city"), City)


@feature("tools, forced")
def tools():
    model = ChatOpenAI(model=MODEL, max_tokens=100, **COMMON).bind_tools([weather], tool_choice="weather")
    assert model.invoke("Weather in Rome?").tool_calls[0]["name"] == "weather"


@feature("responses API")
def responses():
    answer = ChatOpenAI(model=MODEL, max_tokens=16, use_responses_api=True, **COMMON).invoke("Say hi")
    assert answer.text


@feature("completions")
def completions():
    assert OpenAI(model=MODEL, max_tokens=8, **COMMON).invoke("The sea is")


@feature("embeddings")
def embeddings():
    model = OpenAIEmbeddings(model=EMBEDDER, check_embedding_ctx_length=False, **COMMON)
    assert len(model.embed_query("a")) == 384
    return "needs check_embedding_ctx_length=False: its default sends token ids of OpenAI's tokenizer"


@feature("an agent of langgraph")
def agent():
    from langgraph.prebuilt import create_react_agent

    found = create_react_agent(ChatOpenAI(model=MODEL, max_tokens=32, **COMMON), [weather]).invoke(
        {"messages": [("user", "Weather in Rome?")]}
    )
    assert found["messages"][-1].type == "ai"
    return "whether it calls the tool is up to a model of 135M parameters"


main()
