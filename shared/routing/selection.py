"""The policy of each model, by its name in the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.routing.consistent_hash import ConsistentHash
from shared.routing.fastest_response import FastestResponse
from shared.routing.interface import Policy
from shared.routing.least_connections import LeastConnections
from shared.routing.prefix_aware import PrefixAware
from shared.routing.round_robin import RoundRobin
from shared.routing.weighted_round_robin import WeightedRoundRobin
from shared.settings import PolicyName, Settings

POLICIES: Mapping[PolicyName, Callable[[Settings], Policy]] = {
    "round-robin": lambda _: RoundRobin(),
    "weighted-round-robin": lambda _: WeightedRoundRobin(),
    "least-connections": lambda _: LeastConnections(),
    "consistent-hash": lambda settings: ConsistentHash(settings.routing_load_bound),
    "fastest-response": lambda _: FastestResponse(),
    "prefix-aware": lambda settings: PrefixAware(settings.routing_load_bound),
}


def policy_name(settings: Settings, model: str) -> PolicyName:
    """Return the name of a model's policy."""
    return settings.model_routing.get(model, settings.routing)


def make_policy(settings: Settings, model: str) -> Policy | None:
    """Return a new policy for a model; None under `pull`, which leaves the choice to the workers."""
    name = policy_name(settings, model)
    return None if name == "pull" else POLICIES[name](settings)
