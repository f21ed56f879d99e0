"""Plans for the models of the repository, from their folders and from the orders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.errors import ConfigError
from shared.repository.order_files import write_files
from shared.repository.spec import ModelSpec
from shared.repository.store import ModelOrder
from shared.settings import Settings
from workers.repository.folder import BrokenModel, FoundModel, read_model, scan


@dataclass(frozen=True)
class PlannedVersion:
    """One version to load; the stamp changes with its files."""

    folder: Path
    stamp: str


@dataclass(frozen=True)
class Plan:
    """Plan for one model: the versions to serve, and when.

    Attributes:
        spec: None if its description is unusable, which `reason` explains.
        wanted: it is loaded without a request.
        on_demand: it is loaded when requests wait for it.
        order: id of the order that the plan follows from; "" without one.
        known: the repository has the model, or an order has brought its files.
    """

    name: str
    spec: ModelSpec | None = None
    folder: Path | None = None
    versions: Mapping[int, PlannedVersion] = field(default_factory=dict)
    reason: str = ""
    wanted: bool = False
    on_demand: bool = False
    order: str = ""
    known: bool = True

    @property
    def usable(self) -> bool:
        return self.spec is not None

    @property
    def components(self) -> frozenset[str]:
        """Return the names of the models that an ensemble consists of."""
        return frozenset(step.model_name for step in self.spec.ensemble) if self.spec is not None else frozenset()


class Planner:
    """Makes plans from the folder and the orders. It reads files: call it in a thread.

    Args:
        root: the repository.
        staging: folder for the files that orders bring.
    """

    def __init__(self, settings: Settings, root: Path, staging: Path) -> None:
        self._explicit = settings.model_control == "explicit"
        self._on_demand = settings.load_on_demand
        self._root = root
        self._staging = staging

    def make(self, orders: Iterable[ModelOrder]) -> dict[str, Plan]:
        """Return the plans by the models' names. Raises ConfigError if the repository cannot be read."""
        plans = {
            found.name: self._plan(found, wanted=not self._explicit, on_demand=self._on_demand)
            for found in scan(self._root)
        }
        if self._explicit:
            for order in orders:
                plans[order.model] = self._ordered(order, plans.get(order.model))
        for plan in [plan for plan in plans.values() if plan.name in _components(plan, plans)]:
            plans[plan.name] = replace(plan, spec=None, versions={}, reason="an ensemble must not contain itself")
        for plan in [plan for plan in plans.values() if plan.wanted]:
            for name in _components(plan, plans):  # unless an order says otherwise of one
                if not plans[name].order:
                    plans[name] = replace(plans[name], wanted=True)
        return plans

    def _plan(self, found: FoundModel | BrokenModel, *, wanted: bool, on_demand: bool, order: str = "") -> Plan:
        if isinstance(found, BrokenModel):
            return Plan(found.name, reason=found.reason, wanted=wanted, order=order)
        versions = {
            version: PlannedVersion(folder, _stamp(folder, order)) for version, folder in found.versions.items()
        }
        return Plan(found.name, found.spec, found.folder, versions, wanted=wanted, on_demand=on_demand, order=order)

    def _ordered(self, order: ModelOrder, plan: Plan | None) -> Plan:
        if order.action == "unload":
            plan = plan or Plan(order.model, reason="the repository has no such model", known=False)
            return replace(plan, wanted=False, on_demand=False, order=order.id)
        try:
            found = read_model(self._root_of(order), order.model, order.config)
        except ConfigError as error:
            known = plan is not None or bool(order.files)
            return Plan(order.model, reason=error.message, wanted=True, order=order.id, known=known)
        return self._plan(found, wanted=True, on_demand=self._on_demand, order=order.id)

    def _root_of(self, order: ModelOrder) -> Path:
        """Return the repository that has the files of an order. Raises ConfigError."""
        if not order.files:
            return self._root
        root = self._staging / hashlib.sha256(order.id.encode()).hexdigest()[:32]
        if not root.exists():
            incomplete = root.with_suffix(".incomplete")
            write_files(order.files, incomplete / order.model)
            incomplete.rename(root)
        return root


def _components(plan: Plan, plans: Mapping[str, Plan]) -> set[str]:
    """Return the names of the models in the repository that an ensemble consists of, at any depth."""
    found: set[str] = set()
    pending = list(plan.components)
    while pending:
        name = pending.pop()
        if name in plans and name not in found:
            found.add(name)
            pending += plans[name].components
    return found


def _stamp(folder: Path, order: str) -> str:
    """Return a digest that changes with the files of a version, or with the order that brought them."""
    digest = hashlib.sha256(order.encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]
