"""What a shop can do, and how each of it is undone.

A mesh runs an action once under its id, whatever dies meanwhile. What it cannot know is whether an
action that was cut short had taken effect, so an action that undoes something must bear that there
is nothing to undo: `release` and `refund` look the order up and leave alone what is not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from mesh import ActionContext, Node
from mesh.errors import ConflictError, NotFoundError

STOCK = {"lamp": 3, "chair": 10}
BALANCE = 100_000


class Reserve(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of `reserve`."""

    item: str
    count: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of `release`, `refund` and `ship`."""

    order: str


class Charge(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of `charge`."""

    order: str
    cents: Annotated[int, msgspec.Meta(gt=0, le=10_000_000)]


def shop_node(file: Path) -> Node:
    """The node; nothing is read or written before the mesh asks for it."""
    node = Node("shop")

    # The id is the same however often the mesh asks, so it makes a good name for the order.
    @node.action("reserve", idempotent=True)
    def reserve(params: Reserve, ctx: ActionContext) -> dict[str, Any]:
        """Set goods aside for an order."""
        with opened(file) as shop:
            order = "O-" + ctx.id.removesuffix(".reserve")
            if order not in shop["orders"]:
                set_aside(shop, order, params)
            return {"order": order}

    @node.action("release", idempotent=True)
    def release(params: Order) -> dict[str, Any]:
        """Put the goods of an order back."""
        with opened(file) as shop:
            gone = shop["orders"].pop(params.order, None)
            if gone:
                shop["stock"][gone["item"]] += gone["count"]
            return {"released": bool(gone)}

    @node.action("charge", compensate="refund", idempotent=True)
    def charge(params: Charge) -> dict[str, Any]:
        """Take the money for an order."""
        with opened(file) as shop:
            order = found(shop, params.order)
            if not order["paid"]:
                take_money(shop, order, params.cents)
            return {"paid": order["paid"]}

    @node.action("refund", idempotent=True)
    def refund(params: Charge) -> dict[str, Any]:
        """Give the money of an order back."""
        with opened(file) as shop:
            order = shop["orders"].get(params.order, {"paid": 0})
            paid, order["paid"] = order["paid"], 0
            shop["balance"] += paid
            return {"refunded": paid}

    @node.action("ship", idempotent=True)
    def ship(params: Order) -> dict[str, Any]:
        """Send the goods. There is no way to have them back."""
        with opened(file) as shop:
            found(shop, params.order)["shipped"] = True
            return {"shipped": params.order}

    return node


def set_aside(shop: dict[str, Any], order: str, wanted: Reserve) -> None:
    """Raises: NotFoundError, ConflictError."""
    left = shop["stock"].get(wanted.item)
    if left is None:
        raise NotFoundError(f"there is no {wanted.item!r}")
    if left < wanted.count:
        raise ConflictError(f"only {left} of {wanted.item!r} are left")
    shop["stock"][wanted.item] = left - wanted.count
    shop["orders"][order] = {"item": wanted.item, "count": wanted.count, "paid": 0}


def take_money(shop: dict[str, Any], order: dict[str, Any], cents: int) -> None:
    """Raises: ConflictError."""
    if shop["balance"] < cents:
        raise ConflictError("the customer has not got that much")
    shop["balance"] -= cents
    order["paid"] = cents


def found(shop: dict[str, Any], order: str) -> dict[str, Any]:
    """Raises: NotFoundError."""
    known: dict[str, Any] | None = shop["orders"].get(order)
    if known is None:
        raise NotFoundError(f"there is no order {order!r}")
    return known


@contextlib.contextmanager
def opened(file: Path) -> Iterator[dict[str, Any]]:
    """What the shop remembers, changed as a whole or not at all; one at a time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shop: dict[str, Any] = {"stock": dict(STOCK), "balance": BALANCE, "orders": {}}
        if file.exists():
            shop = json.loads(file.read_text())
        yield shop
        new = file.with_suffix(".new")
        new.write_text(json.dumps(shop, indent=2))
        new.replace(file)
