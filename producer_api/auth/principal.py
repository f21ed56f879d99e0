"""Who calls: settled once for each request, before its route. It knows nothing of how a caller proves it."""

from __future__ import annotations

from dataclasses import dataclass, field

from producer_api.auth.client_address import Client
from shared.accounts.scopes import Scopes
from shared.errors import PermissionDenied
from shared.protocol import PriorityClass


@dataclass(frozen=True)
class Principal:
    """A caller and what it may do.

    Attributes:
        tenant: who owns what this caller makes; others' are 404 to it.
        key_id: the API key or token by which it came; empty without one.
        plan: the name of its limits; empty for the default ones.
        client: where this request of it came from.
    """

    tenant: str
    key_id: str = ""
    plan: str = ""
    scopes: Scopes = field(default_factory=Scopes)
    client: Client = field(default_factory=Client, compare=False)

    def may_use(self, model: str) -> bool:
        return self.scopes.models is None or model in self.scopes.models

    def check_model(self, name: str) -> None:
        """Raises PermissionDenied, whether there is such a model or not."""
        if not self.may_use(name):
            raise PermissionDenied(f"this key may not use the model {name[:128]!r}", param="model")

    def check_class(self, priority: PriorityClass) -> None:
        """Raises PermissionDenied."""
        classes = self.scopes.classes
        if classes is not None and priority.value not in classes:
            raise PermissionDenied(
                f"this key may not use the class {priority.value}, only {', '.join(sorted(classes)) or 'none'}",
                param="priority",
            )

    def check_route(self, group: str, *, admin: bool) -> None:
        """Raises PermissionDenied."""
        if admin:
            if not self.scopes.admin:
                raise PermissionDenied("this key may not administer")
        elif self.scopes.routes is not None and group not in self.scopes.routes:
            raise PermissionDenied(f"this key may not use {group}")


ANONYMOUS = Principal("default", scopes=Scopes(admin=True))  # where the server asks nobody for a key
