"""The CRM's database: customers, orders, refunds, and an index over their words.

Every call opens a connection of its own, which costs some 0.1 ms and makes it safe in any thread.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from examples.crm.invented import customers, orders
from mesh import Document
from mesh.errors import NotFoundError

_VERSION = 1

_SCHEMA = """
CREATE TABLE customers (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, trade TEXT NOT NULL, city TEXT NOT NULL,
    since TEXT NOT NULL, note TEXT NOT NULL
) STRICT;
CREATE TABLE orders (
    number INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customers,
    item TEXT NOT NULL, placed TEXT NOT NULL, paid_cents INTEGER NOT NULL CHECK (paid_cents >= 0),
    note TEXT NOT NULL
) STRICT;
CREATE INDEX orders_of_customer ON orders (customer);
CREATE TABLE refunds (
    action TEXT PRIMARY KEY, -- the action's id: the same action gives money back once
    order_number INTEGER NOT NULL REFERENCES orders, cents INTEGER NOT NULL CHECK (cents > 0),
    left_cents INTEGER NOT NULL CHECK (left_cents >= 0), caller TEXT NOT NULL,
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;
CREATE INDEX refunds_of_order ON refunds (order_number);
CREATE VIRTUAL TABLE customers_words USING fts5 (
    text, tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE VIRTUAL TABLE orders_words USING fts5 (
    text, tokenize = 'porter unicode61 remove_diacritics 2'
);
"""

_ORDER = """
SELECT orders.number, customers.number, customers.name, customers.city, orders.item, orders.placed,
    orders.paid_cents, orders.note,
    (SELECT coalesce(sum(cents), 0) FROM refunds WHERE order_number = orders.number)
FROM orders JOIN customers ON customers.number = orders.customer
"""
_CUSTOMER = "SELECT number, name, trade, city, since, note FROM customers"


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a refund gave back, and what could still be given back."""

    order: str
    refunded_cents: int
    left_cents: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One order; `left_cents` is what was paid less what was given back."""

    id: str
    customer: str
    customer_name: str
    city: str
    item: str
    placed: str
    paid_cents: int
    left_cents: int
    note: str

    def document(self) -> Document:
        """As a search shows it."""
        money = f"Paid {_money(self.paid_cents)}."
        if given := self.paid_cents - self.left_cents:
            money += f" Refunded {_money(given)}."
        text = (
            f"Order {self.id} of {self.customer_name}, {self.city}: {self.item}. "
            f"Placed on {self.placed}. {money} {self.note}"
        )
        facts = ("customer", "placed", "paid_cents", "left_cents")
        return Document(
            id=self.id, content=text, metadata={fact: getattr(self, fact) for fact in facts}
        )


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """One customer."""

    id: str
    name: str
    trade: str
    city: str
    since: str
    note: str
    orders: list[Order] = []

    def document(self) -> Document:
        """As a search shows it."""
        text = f"{self.name}, {self.trade} in {self.city}. Customer since {self.since}. {self.note}"
        return Document(
            id=self.id,
            content=text,
            metadata={"name": self.name, "trade": self.trade, "city": self.city},
        )


class Store:
    """The database in one file; made and filled when it is first used."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def candidates(
        self, table: Literal["customers", "orders"], query: str, by_words: int, newest: int
    ) -> list[Document]:
        """Rows worth ranking: the best ones by words, and the newest ones.

        Args:
            table: `customers` or `orders`.
            query: As a person typed it.
            by_words: Most rows that share a word with it (stemmed, any case, accents ignored).
            newest: Most rows beside those.
        """
        # Words in quotes: nothing a person types is an operator of the index.
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        found = (
            f"SELECT rowid FROM (SELECT rowid FROM {table}_words WHERE {table}_words MATCH ? "  # noqa: S608
            f"ORDER BY rank LIMIT ?) UNION "
            f"SELECT * FROM (SELECT number FROM {table} ORDER BY number DESC LIMIT ?)"
        )
        with self._transaction("DEFERRED") as database:
            values = (words or '""', by_words, newest)
            where = f"WHERE {table}.number IN ({found})"
            if table == "customers":
                return [row.document() for row in _customers(database, where, values)]
            return [row.document() for row in _orders(database, where, values)]

    def customer(self, id_: str) -> Customer:
        """Raises: NotFoundError."""
        number = _number(id_)
        with self._transaction("DEFERRED") as database:
            for customer in _customers(database, "WHERE number = ?", (number,)):
                theirs = list(_orders(database, "WHERE orders.customer = ?", (number,)))
                return msgspec.structs.replace(customer, orders=theirs)
        raise NotFoundError(f"no customer {id_!r}")

    def refund(self, id_: str, cents: int, *, action: str, caller: str) -> Receipt:
        """Give money back, once for each action id.

        Raises:
            NotFoundError: No such order.
            ValueError: More than was paid and is not given back yet, or the id was used for
                another refund.
        """
        # IMMEDIATE takes the write lock first: nobody refunds the same order between our look at
        # what is left and our writing.
        with self._transaction("IMMEDIATE") as database:
            if given := _given(database, action):
                if (given.order, given.refunded_cents) != (id_, cents):
                    raise ValueError(f"{action!r} was the refund of another amount or order")
                return given
            order = next(_orders(database, "WHERE orders.number = ?", (_number(id_),)), None)
            if order is None:
                raise NotFoundError(f"no order {id_!r}")
            if order.left_cents == 0:
                raise ValueError(f"{id_} is refunded already")
            if cents > order.left_cents:
                raise ValueError(
                    f"{id_}: {_money(cents)} is more than the {_money(order.left_cents)} left "
                    f"of the {_money(order.paid_cents)} paid"
                )
            left = order.left_cents - cents
            database.execute(
                "INSERT INTO refunds (action, order_number, cents, left_cents, caller) "
                "VALUES (?, ?, ?, ?, ?)",
                (action, _number(id_), cents, left, caller),
            )
            _index_orders(database, "WHERE orders.number = ?", (_number(id_),))
        return Receipt(order=id_, refunded_cents=cents, left_cents=left)

    def take_back(self, id_: str, cents: int, *, action: str) -> Receipt:
        """Undo the refund that was given under that action id; undone or never given, nothing.

        Raises:
            NotFoundError: No such order.
            ValueError: The id was that of another refund.
        """
        with self._transaction("IMMEDIATE") as database:
            given = _given(database, action)
            if given and (given.order, given.refunded_cents) != (id_, cents):
                raise ValueError(f"{action!r} was the refund of another amount or order")
            if given:
                database.execute("DELETE FROM refunds WHERE action = ?", (action,))
                _index_orders(database, "WHERE orders.number = ?", (_number(id_),))
            order = next(_orders(database, "WHERE orders.number = ?", (_number(id_),)), None)
            if order is None:
                raise NotFoundError(f"no order {id_!r}")
        return Receipt(
            order=id_, refunded_cents=-cents if given else 0, left_cents=order.left_cents
        )

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._file, timeout=5, isolation_level=None)) as database:
            _prepare(database)
            database.execute(f"BEGIN {kind}")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


def _prepare(database: sqlite3.Connection) -> None:
    """Tables and invented rows, if the file is new; of several at once the first one does it."""
    if _version(database) == _VERSION:
        return
    database.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
    database.execute("BEGIN IMMEDIATE")
    try:
        if _version(database) == 0:
            for statement in _SCHEMA.split(";\n"):
                database.execute(statement)
            database.executemany("INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?)", customers())
            database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", orders())
            _index_customers(database)
            _index_orders(database, "", ())
            database.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _customers(
    database: sqlite3.Connection, where: str, values: tuple[Any, ...]
) -> Iterator[Customer]:
    for number, name, trade, city, since, note in database.execute(f"{_CUSTOMER} {where}", values):
        yield Customer(id=f"C-{number}", name=name, trade=trade, city=city, since=since, note=note)


def _orders(database: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> Iterator[Order]:
    for number, customer, name, city, item, placed, paid, note, given in database.execute(
        f"{_ORDER} {where}", values
    ):
        yield Order(
            id=f"A-{number}",
            customer=f"C-{customer}",
            customer_name=name,
            city=city,
            item=item,
            placed=placed,
            paid_cents=paid,
            left_cents=paid - given,
            note=note,
        )


def _index_customers(database: sqlite3.Connection) -> None:
    for customer in list(_customers(database, "", ())):
        database.execute(
            "INSERT INTO customers_words (rowid, text) VALUES (?, ?)",
            (_number(customer.id), customer.document().content),
        )


def _index_orders(database: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> None:
    """Their words as they are now; in the transaction of the change, so never out of step."""
    for order in list(_orders(database, where, values)):
        database.execute(
            "INSERT OR REPLACE INTO orders_words (rowid, text) VALUES (?, ?)",
            (_number(order.id), order.document().content),
        )


def _given(database: sqlite3.Connection, action: str) -> Receipt | None:
    row = database.execute(
        "SELECT order_number, cents, left_cents FROM refunds WHERE action = ?", (action,)
    ).fetchone()
    if row is None:
        return None
    number, cents, left = row
    return Receipt(order=f"A-{number}", refunded_cents=cents, left_cents=left)


def _number(id_: str) -> int:
    return int(id_.partition("-")[2])


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02} EUR"
