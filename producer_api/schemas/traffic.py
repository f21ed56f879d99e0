"""Request and response bodies of the rules for traffic."""

from __future__ import annotations

import msgspec
from pydantic import Field

from shared.repository.traffic.rules import MAX_BRANCHES, Branch, KeyKind, Shadow, Split
from shared.schemas.base import Body
from shared.schemas.openapi_bounds import Short


class BranchBody(Body):
    """A model, or one version of it, and its part of the traffic."""

    model: Short = Field(description="a served model")
    version: str = Field("", max_length=18, description="of a model that computes tensors; empty for the newest")
    weight: float = Field(1.0, ge=0, description="relative to the weights of the other branches")


class SplitBody(Body):
    """The body of POST /admin/models/{name}/split."""

    branches: list[BranchBody] = Field(
        min_length=1,
        max_length=MAX_BRANCHES,
        description="one for an alias; a canary comes last",
    )
    by: KeyKind = Field(
        "request",
        description="what decides on the branch: the request itself, or the header x-route-key, the tenant, the "
        "user or the API key, each of which always gets the same branch",
    )

    def to_split(self, name: str) -> Split:
        branches = [Branch(model=each.model, version=each.version, weight=each.weight) for each in self.branches]
        return Split(name=name, branches=tuple(branches), by=self.by)


class ShadowBody(Body):
    """The body of POST /admin/models/{name}/shadow."""

    model: Short = Field(description="a served model, which computes the copies")
    version: str = Field("", max_length=18, description="of a model that computes tensors; empty for the newest")
    share: float = Field(1.0, description="of the requests that are copied, above 0 and at most 1")

    def to_shadow(self, name: str) -> Shadow:
        return Shadow(name=name, model=self.model, version=self.version, share=self.share)


class TrafficRules(msgspec.Struct):
    """All splits and shadow copies, by name."""

    splits: list[Split]
    shadows: list[Shadow]


class RuleRemoved(msgspec.Struct):
    """Whether there was a rule for the name."""

    name: str
    removed: bool
