"""The principal: the authenticated caller of a request and its permissions."""

from __future__ import annotations

from dataclasses import dataclass, field

from producer_api.auth.client_address import Client
from shared.accounts.scopes import Scopes
from shared.errors import PermissionDenied
from shared.protocol import PriorityClass


@dataclass(frozen=True)
class Principal:
    """A caller and its permissions.

    Attributes:
        tenant: owns everything the caller creates; other tenants' objects are a 404 to it.
        key_id: the id of the API key or token that it used; empty without authentication.
        plan: the name of its plan; empty for the default plan.
        client: the origin of this request.
    """

    tenant: str
    key_id: str = ""
    plan: str = ""
    scopes: Scopes = field(default_factory=Scopes)
    client: Client = field(default_factory=Client, compare=False)

    def may_use(self, model: str) -> bool:
        return self.scopes.models is None or model in self.scopes.models

    def check_model(self, name: str) -> None:
        """Raise PermissionDenied if the caller may not use the model, whether or not it exists."""
        if not self.may_use(name):
            raise PermissionDenied(f"this key may not use the model {name[:128]!r}", param="model")

    def check_class(self, priority: PriorityClass) -> None:
        """Raise PermissionDenied if the caller may not use the class."""
        classes = self.scopes.classes
        if classes is not None and priority.value not in classes:
            raise PermissionDenied(
                f"this key may not use the class {priority.value}; allowed: {', '.join(sorted(classes)) or 'none'}",
                param="priority",
            )

    def check_route(self, group: str, *, admin: bool) -> None:
        """Raise PermissionDenied if the caller may not use the group, or is not an admin where that is needed."""
        if admin:
            if not self.scopes.admin:
                raise PermissionDenied("this key has no admin scope")
        elif self.scopes.routes is not None and group not in self.scopes.routes:
            raise PermissionDenied(f"this key may not use {group}")


ANONYMOUS = Principal("default", scopes=Scopes(admin=True))  # every caller, while authentication is off
