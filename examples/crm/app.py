"""What the mesh may do with the CRM: search its tables, look up a customer, refund an order.

The functions are plain ones, so each runs in a thread and may block on SQLite. The loop of the
node, with its heartbeat and its other requests, does not notice.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from examples.crm.store import Customer, Receipt, Store
from mesh import ActionContext, Document, Node, SearchRequest

MOST_BY_WORDS = 100
NEWEST = 200


class RefundOrder(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of `refund`. Types and limits are checked before the action runs."""

    order: Annotated[str, msgspec.Meta(pattern=r"^A-[0-9]{1,9}$")]
    cents: Annotated[int, msgspec.Meta(gt=0, le=100_000_000)]


class WhichCustomer(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of `customer`."""

    id: Annotated[str, msgspec.Meta(pattern=r"^C-[0-9]{1,9}$")]


def crm_node(store: Store) -> Node:
    """The node; nothing is read or written before the mesh asks for it."""
    node = Node("crm-app")

    # A search looks into the database itself, so what it finds is never older than the last
    # commit: no copy, and nothing to keep in step. SQLite only chooses candidates. The mesh ranks
    # them, by words and by meaning, together with what other nodes found.
    #
    # The newest rows go along whether or not they share a word with the query: meaning can only be
    # compared for rows that are there, and a rare word only told from a frequent one if there are
    # texts without it. In a database smaller than NEWEST that is all of it, and the answer is what
    # an index of the same rows would give.

    @node.search("crm.customers")
    def customers(request: SearchRequest) -> list[Document]:
        return store.candidates("customers", request.query, MOST_BY_WORDS, NEWEST)

    @node.search("crm.orders")
    def orders(request: SearchRequest) -> list[Document]:
        return store.candidates("orders", request.query, MOST_BY_WORDS, NEWEST)

    # The database keeps the action's id with the refund, in one transaction: a second run finds it
    # and gives nothing twice. That is what makes it right to say `idempotent`: after a crash in the
    # middle the node runs the refund again instead of leaving it to a person.

    # `compensate` names the action that undoes it: a saga in which a later step fails runs that,
    # with the same parameters, under the id of the refund and `.undo`.

    @node.action("refund", compensate="take-back", idempotent=True, timeout_s=10)
    def refund(params: RefundOrder, ctx: ActionContext) -> Receipt:
        """Give money back for an order, at most what was paid."""
        ctx.progress(0.1, f"looking at what is left of {params.order}")
        receipt = store.refund(params.order, params.cents, action=ctx.id, caller=ctx.caller)
        ctx.log.info("crm.order.refunded", order=receipt.order, cents=receipt.refunded_cents)
        return receipt

    @node.action("take-back", idempotent=True, timeout_s=10, retries=3)
    def take_back(params: RefundOrder, ctx: ActionContext) -> Receipt:
        """Undo a refund; where there was none, there is nothing to do."""
        given = ctx.id.removesuffix(".undo")
        return store.take_back(params.order, params.cents, action=given)

    @node.action("customer", idempotent=True, timeout_s=10)
    def customer(params: WhichCustomer) -> Customer:
        """A customer with all orders and what is left of each."""
        return store.customer(params.id)

    return node
