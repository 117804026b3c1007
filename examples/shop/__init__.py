"""A small shop as a node: `mesh-agent run --app examples.shop:node`.

Its actions undo each other, which is what docs/sagas.md is about. What it remembers is one JSON
file, `SHOP_FILE` (default `.mesh/shop.json`).
"""

from __future__ import annotations

import os
from pathlib import Path

from examples.shop.app import shop_node

node = shop_node(Path(os.environ.get("SHOP_FILE", ".mesh/shop.json")))
