"""Checks of the folder of the model repository, and of the memory for its models."""

from __future__ import annotations

from headrace.doctor.finding import Finding
from shared.errors import ConfigError
from shared.settings import Settings

NAME = "model repository"
REMEDY = "correct the folder or the description; the other models are served without it"


def examine_repository(settings: Settings) -> list[Finding]:
    """Check each model of the repository, without loading it."""
    root = settings.model_repository
    if root is None:
        return []
    try:
        from workers.repository.folder import BrokenModel, scan
        from workers.repository.serving.memory_budget import budget_bytes

        found = scan(root)
    except ImportError as error:
        return [Finding(NAME, "failed", str(error), "pip install 'headrace[worker]'")]
    except ConfigError as error:
        return [Finding(NAME, "failed", error.message, "set --model-repository to a folder of models")]
    budget = f"{budget_bytes(settings.model_memory) / 2**30:.1f} GiB of memory"
    findings = [Finding(NAME, "ok", f"{root}: {len(found)} models, {budget}")]
    for model in found:
        if isinstance(model, BrokenModel):
            findings.append(Finding(f"model {model.name}", "failed", model.reason, REMEDY))
            continue
        versions = ", ".join(str(version) for version in model.versions)
        what = f"{model.spec.backend or 'ensemble'}, versions {versions}"
        if model.ignored:
            ignored = f"{what}; without effect: {', '.join(model.ignored)}"
            findings.append(Finding(f"model {model.name}", "warning", ignored, "remove these fields"))
        else:
            findings.append(Finding(f"model {model.name}", "ok", what))
    return findings
