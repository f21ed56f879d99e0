"""pydantic-ai."""

from features import KEY, MODEL, URL, feature, main
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)
SETTINGS = {"max_tokens": 100}


class City(BaseModel):
    name: str = Field(max_length=20)
    capital: bool


@feature("chat")
async def chat():
    agent = Agent(OpenAIChatModel(MODEL, provider=provider), model_settings=SETTINGS)
    assert (await agent.run("Say hi")).output


@feature("chat, streamed")
async def streamed():
    agent = Agent(OpenAIChatModel(MODEL, provider=provider), model_settings=SETTINGS)
    async with agent.run_stream("Say hi") as result:
        assert [text async for text in result.stream_text()]


@feature("output by a tool")
async def by_tool():
    agent = Agent(OpenAIChatModel(MODEL, provider=provider), output_type=City, model_settings=SETTINGS)
    assert isinstance((await agent.run("A city")).output, City)


@feature("output by a JSON schema")
async def by_schema():
    agent = Agent(
        OpenAIChatModel(MODEL, provider=provider), output_type=NativeOutput(City), model_settings=SETTINGS
    )
    assert isinstance((await agent.run("A city")).output, City)


@feature("responses API")
async def responses():
    agent = Agent(OpenAIResponsesModel(MODEL, provider=provider), model_settings=SETTINGS)
    assert (await agent.run("Say hi")).output


main()
