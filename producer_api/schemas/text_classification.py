"""Body of huggingface_hub's `text_classification`.

Reference: huggingface.js, packages/tasks/src/tasks/text-classification/spec/input.json.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field

from shared.protocol import Pool, PriorityClass, Request
from shared.schemas.base import Body
from shared.schemas.encoder_fields import shares
from shared.schemas.neutral_fields import RequestIdField
from shared.schemas.openai.completions import Inputs
from shared.schemas.parameter_fields import DefaultedModelName

MAX_LABELS = 100_000
Function = Literal["sigmoid", "softmax", "none"]


class ClassificationParameters(Body):
    function_to_apply: Function | None = Field(
        None, description="from scores to probabilities; none: return the scores; default: the model's own function"
    )
    top_k: int | None = Field(None, ge=1, le=MAX_LABELS, description="number of classes to return; default: all")


class TextClassificationRequest(RequestIdField):
    """Texts to classify."""

    model: DefaultedModelName = ""
    inputs: Inputs = Field(description="a text, token ids, or a list of up to 2048 of either; never truncated")
    parameters: ClassificationParameters | None = None

    @property
    def chosen_function(self) -> Function | None:
        return self.parameters.function_to_apply if self.parameters else None

    @property
    def top_k(self) -> int | None:
        return self.parameters.top_k if self.parameters else None

    def to_requests(self, tenant: str) -> list[Request]:
        """Return drafts that share the inputs, in order."""
        work = Pool((), "classify", activation=self.chosen_function is None)
        draft = Request(id="", model=self.model, work=work, priority=PriorityClass.INTERACTIVE, tenant=tenant)
        return [
            msgspec.structs.replace(draft, work=msgspec.structs.replace(work, inputs=share))
            for share in shares(self.inputs)
        ]
