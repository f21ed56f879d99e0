"""Refusals of one round of publishing, and which requests they concern."""

from __future__ import annotations

from shared.errors import HeadraceError, TenantQueueFull
from shared.kafka.message import Order
from shared.protocol import Ticket


class Refusals:
    """Refusals of one round: further requests of the tenant, or of the model, are not tried, and keep their order.

    A request from the API has a place already, so that no refusal of others concerns it.

    Attributes:
        whole_model: the model's queue is full, or drains.
    """

    def __init__(self) -> None:
        self.whole_model = False
        self._tenants: set[str] = set()

    def note(self, order: Order, place: Ticket | HeadraceError) -> None:
        if order.by_api or isinstance(place, Ticket):
            return
        if isinstance(place, TenantQueueFull):
            self._tenants.add(order.request.tenant)
        else:
            self.whole_model = True

    def concern(self, order: Order) -> bool:
        return not order.by_api and (self.whole_model or order.request.tenant in self._tenants)
