"""Customers and orders that nobody has: drawn from word lists, the same ones every time."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator

CUSTOMERS = 60
ORDERS = 180

_FIRST = (
    "Bluefern", "Copperline", "Dovetail", "Eastgate", "Fernhill", "Greywharf",
    "Hazelbrook", "Ironleaf", "Juniper", "Kestrel", "Larkspur", "Millrace",
)  # fmt: skip
_CITIES = (
    "Aarhus",
    "Bilbao",
    "Cork",
    "Dresden",
    "Ghent",
    "Graz",
    "Lyon",
    "Porto",
    "Turku",
    "Utrecht",
)
_TRADES = {
    "Bakery": "bakery",
    "Bindery": "bookbinder",
    "Clinic": "veterinary clinic",
    "Cycles": "bicycle workshop",
    "Gardens": "garden designer",
    "Hotel": "hotel",
    "Kindergarten": "kindergarten",
    "Roasters": "coffee roaster",
    "Theatre": "theatre",
    "Yoga": "yoga studio",
}
_ABOUT = (
    "Pays within a week.",
    "Pays late, but always pays; send a reminder after thirty days.",
    "Wants invoices on paper, sent to the head office.",
    "Asks for delivery before eight in the morning.",
    "The yard is narrow: no lorry longer than seven metres.",
    "Opens a second house in spring and will need furniture for it.",
    "Complained twice about the hotline; call back in person.",
    "Buys for a cooperative of five and asks for a discount.",
)
_ITEMS = {
    "standing desk": 48_900,
    "oak shelf": 21_500,
    "desk lamp": 6_900,
    "folding chair": 3_900,
    "display cabinet": 74_000,
    "coat rack": 5_400,
    "meeting table": 92_000,
    "filing cabinet": 18_700,
    "acoustic panel": 11_200,
    "reception counter": 139_000,
}
_NOTES = (
    "Delivered as agreed.",
    "Delivered as agreed.",
    "Arrived with a scratch across the top; the customer sent photographs.",
    "The glass was shattered on arrival, the carrier is at fault.",
    "Two screws were missing and were sent by post.",
    "The parcel was lost and a second one sent.",
    "Delivered nine days late because of a strike at the port.",
    "The wrong colour came: walnut instead of white. Exchanged.",
    "The customer was charged twice and has written to accounting.",
    "A leg wobbles; the fitter comes on Thursday.",
    "Sent back unopened, the room was too small for it.",
    "Engraved with the customer's name, cannot be returned.",
)


def customers() -> Iterator[tuple[int, str, str, str, str, str]]:
    """Number, name, trade, city, since, note."""
    rng = random.Random("customers")
    names = [(first, last) for first in _FIRST for last in _TRADES]
    for number, (first, last) in enumerate(rng.sample(names, CUSTOMERS), start=1):
        since = str(rng.randrange(2015, 2026))
        yield (
            number,
            f"{first} {last}",
            _TRADES[last],
            rng.choice(_CITIES),
            since,
            rng.choice(_ABOUT),
        )


def orders() -> Iterator[tuple[int, int, str, str, int, str]]:
    """Number, customer, item, date, cents paid, note; in the order they were placed."""
    rng = random.Random("orders")
    placed = dt.date(2024, 1, 8)
    for number in range(1001, 1001 + ORDERS):
        placed += dt.timedelta(days=rng.randrange(8))
        item, price = rng.choice(list(_ITEMS.items()))
        count = rng.choice((1, 1, 1, 2, 4, 10))
        named = item if count == 1 else f"{item}, {count} pieces"
        customer = rng.randrange(1, CUSTOMERS + 1)
        yield number, customer, named, placed.isoformat(), count * price, rng.choice(_NOTES)
