"""OpenAI's Agents SDK, by chat completions and by responses."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from features import KEY, MODEL, URL, feature, main
from openai import AsyncOpenAI

set_tracing_disabled(True)


@function_tool
def weather(city: str) -> str:
    """Current weather of a city."""
    return "sunny"


def agent(kind, **settings):
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY)
    return Agent(
        name="helper",
        instructions="Be brief",
        model=kind(model=MODEL, openai_client=client),
        model_settings=ModelSettings(max_tokens=600, temperature=0, **settings),
        tools=[weather],
    )


@feature("chat completions")
async def chats():
    result = await Runner.run(agent(OpenAIChatCompletionsModel), "Say hi", max_turns=3)
    assert isinstance(result.final_output, str)


@feature("responses")
async def responses():
    result = await Runner.run(agent(OpenAIResponsesModel), "Say hi", max_turns=3)
    assert isinstance(result.final_output, str)


@feature("responses, streamed")
async def streamed():
    result = Runner.run_streamed(agent(OpenAIResponsesModel), "Say hi", max_turns=3)
    kinds = [event.type async for event in result.stream_events()]
    assert "raw_response_event" in kinds


@feature("tool call and its result, responses")
async def tools():
    result = await Runner.run(agent(OpenAIResponsesModel, tool_choice="required"), "Weather in Rome?", max_turns=3)
    assert any(item.type == "tool_call_output_item" for item in result.new_items)


main()
