"""Base classes of the bodies that generate: the fields of every parameter that an API takes.

mypy cannot see generated fields. Code that reads one by name declares it in its body, with the same type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.schemas.common_fields import SamplingFields, Submission
from shared.schemas.parameter_fields import parameter_body
from shared.validation.parameter_definition import Api

if TYPE_CHECKING:
    ChatParameters = Submission
    CompletionParameters = Submission
    JobParameters = Submission
    ResponseParameters = SamplingFields
else:
    ChatParameters = parameter_body("ChatParameters", Api.CHAT, Submission)
    CompletionParameters = parameter_body("CompletionParameters", Api.COMPLETIONS, Submission)
    JobParameters = parameter_body("JobParameters", Api.JOBS, Submission)
    ResponseParameters = parameter_body("ResponseParameters", Api.RESPONSES, SamplingFields)
