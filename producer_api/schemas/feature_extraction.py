"""Body of huggingface_hub's `feature_extraction`.

Reference: huggingface.js, packages/tasks/src/tasks/feature-extraction/spec/input.json.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.protocol import Embed, PriorityClass, Request
from shared.schemas.base import refuse_unless_neutral
from shared.schemas.encoder_fields import shares
from shared.schemas.neutral_fields import NOT_SUPPORTED, RequestIdField, Unsupported, Unused
from shared.schemas.openai.completions import Inputs
from shared.schemas.parameter_fields import DefaultedModelName, parameter_field


class FeatureExtractionRequest(RequestIdField):
    """Texts to embed."""

    model: DefaultedModelName = ""
    inputs: Inputs = Field(description="a text, token ids, or a list of up to 2048 of either; never truncated")
    dimensions: int | None = parameter_field("dimensions")
    normalize: bool | None = Field(None, description="scale the vectors to length 1; default true")
    prompt_name: Unsupported = None
    truncate: Unsupported = None
    truncation_direction: Unused = None
    encoding_format: Literal["float"] | None = Field(None, description="vectors are lists of numbers")

    _refuse_unless_neutral = refuse_unless_neutral(
        {"prompt_name": (None,), "truncate": (None, False)}, NOT_SUPPORTED
    )

    def to_requests(self, tenant: str) -> list[Request]:
        """Return drafts that share the inputs, in order."""
        return [
            Request(
                id="",
                model=self.model,
                work=Embed(share, self.dimensions, self.normalize is not False),
                priority=PriorityClass.INTERACTIVE,
                tenant=tenant,
            )
            for share in shares(self.inputs)
        ]
