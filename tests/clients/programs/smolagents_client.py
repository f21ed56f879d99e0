"""smolagents: its model class, and an agent with tools."""

from features import KEY, MODEL, URL, feature, main
from smolagents import OpenAIServerModel, ToolCallingAgent, tool

model = OpenAIServerModel(model_id=MODEL, api_base=f"{URL}/v1", api_key=KEY, max_tokens=64)


@tool
def weather(city: str) -> str:
    """Current weather of a city.

    Args:
        city: its name
    """
    return "sunny"


@feature("chat")
def chat():
    assert model.generate([{"role": "user", "content": [{"type": "text", "text": "Say hi"}]}]).content


@feature("chat, streamed")
def streamed():
    chunks = list(model.generate_stream([{"role": "user", "content": [{"type": "text", "text": "Say hi"}]}]))
    assert "".join(chunk.content or "" for chunk in chunks)


@feature("an agent with tools")
def agent():
    ToolCallingAgent(tools=[weather], model=model, max_steps=2).run("Weather in Rome?")
    return "whether it finds the answer is up to a model of 135M parameters"


main()
