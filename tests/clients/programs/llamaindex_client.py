"""llama-index, with its class for servers like OpenAI's."""

from features import EMBEDDER, KEY, MODEL, URL, feature, main
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

COMMON = {"api_base": f"{URL}/v1", "api_key": KEY}
llm = OpenAILike(
    model=MODEL, is_chat_model=True, is_function_calling_model=True, context_window=2048, max_tokens=32, **COMMON
)
MESSAGES = [ChatMessage(role="user", content="Say hi")]


@feature("chat")
def chat():
    assert llm.chat(MESSAGES).message.content


@feature("chat, streamed")
def streamed():
    assert list(llm.stream_chat(MESSAGES))[-1].message.content


@feature("completions")
def completions():
    model = OpenAILike(model=MODEL, is_chat_model=False, context_window=2048, max_tokens=8, **COMMON)
    assert model.complete("The sea is").text


@feature("tools, forced")
def tools():
    def weather(city: str) -> str:
        """Current weather of a city."""
        return "sunny"

    answer = llm.chat_with_tools(
        [FunctionTool.from_defaults(weather)], user_msg="Weather in Rome?", tool_required=True
    )
    assert llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)[0].tool_name == "weather"


@feature("embeddings")
def embeddings():
    assert len(OpenAILikeEmbedding(model_name=EMBEDDER, **COMMON).get_text_embedding("a")) == 384


main()
