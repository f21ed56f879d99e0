"""instructor: objects from answers, by each of its modes."""

import instructor
from features import KEY, MODEL, URL, feature, main
from openai import OpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    name: str = Field(max_length=20)
    capital: bool


def ask(mode):
    client = instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key=KEY), mode=mode)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "A city"}], "max_tokens": 100}
    assert isinstance(client.chat.completions.create(response_model=City, max_retries=1, **asked), City)


@feature("tools")
def tools():
    ask(instructor.Mode.TOOLS)


@feature("JSON schema")
def schema():
    ask(instructor.Mode.JSON_SCHEMA)


@feature("strict tools")
def strict():
    ask(instructor.Mode.TOOLS_STRICT)


main()
