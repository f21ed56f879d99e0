"""Submission of an inference, for HTTP and gRPC."""

from __future__ import annotations

from producer_api.admission.gateway import Admission
from producer_api.admission.idempotency import IdempotencyKey
from producer_api.auth.principal import Principal
from producer_api.kserve.served_models import ServedModel
from producer_api.services import Context
from shared.protocol import Infer, PriorityClass, Request
from shared.repository.input_check import check_inputs

KIND = "inference"  # the API, as an idempotency key has it


async def submit(
    context: Context, caller: Principal, model: ServedModel, work: Infer, key: IdempotencyKey | None
) -> Admission:
    """Submit work on a model. Raises InvalidRequest, and as Gateway.submit does."""
    check_inputs(work, model.spec)
    draft = Request(
        id="", model=model.spec.name, work=work, priority=PriorityClass.INTERACTIVE, tenant=caller.tenant
    )
    return await context.gateway.submit(draft, principal=caller, seed=0, key=key)
