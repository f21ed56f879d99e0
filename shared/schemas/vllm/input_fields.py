"""Fields of requests for the output of an encoder: texts, or one chat."""

from __future__ import annotations

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import EncoderWork, Pool, PoolTask, PromptOptions, Request, VectorType
from shared.schemas.common_fields import ChatTemplateField
from shared.schemas.encoder_fields import MAX_INPUTS, EncoderFields, shares
from shared.schemas.messages import Messages, to_messages
from shared.schemas.openai.completions import Inputs
from shared.schemas.parameter_fields import BoundedObject, parameter_field


class InputFields(EncoderFields, ChatTemplateField):
    """Texts, token ids or messages."""

    input: Inputs = Field(None, description="a text, token ids, or a list of up to 2048 of either")
    messages: Messages | None = Field(None, description="a chat, for models with a chat template")
    add_special_tokens: bool | None = parameter_field("add_special_tokens")
    add_generation_prompt: bool | None = parameter_field("add_generation_prompt", default="false")
    continue_final_message: bool | None = parameter_field("continue_final_message")
    chat_template_kwargs: BoundedObject | None = parameter_field("chat_template_kwargs")
    use_activation: bool | None = Field(
        None,
        description="return probabilities instead of scores, and vectors of length 1; default true",
    )

    def pools(self, tenant: str, task: PoolTask | None, vector_type: VectorType = "float32") -> list[Request]:
        """Return drafts for this task. Raise InvalidRequest unless there is either input or messages."""
        if (self.input is None) == (self.messages is None):
            raise InvalidRequest("exactly one of input and messages is required", param="input")
        work = Pool((), task, self.use_activation is not False, vector_type)
        if self.messages is not None:
            [draft] = self.drafts([work], tenant)
            return [msgspec.structs.replace(draft, messages=to_messages(self.messages))]
        return self.drafts(self._shares(work, task), tenant)

    def _shares(self, work: Pool, task: PoolTask | None) -> list[EncoderWork]:
        """Return the work on each share of the input. Unless a whole input has one output, there is only one."""
        if task not in ("embed", "classify") and len(self.input) > MAX_INPUTS:
            raise InvalidRequest(
                f"input must have at most {MAX_INPUTS} entries, unless task is embed or classify", param="input"
            )
        return [msgspec.structs.replace(work, inputs=share) for share in shares(self.input)]

    def to_prompt_options(self) -> PromptOptions:
        options = super().to_prompt_options()
        if self.messages is None or self.add_generation_prompt is not None:
            return options
        return msgspec.structs.replace(options, add_generation_prompt=False)
