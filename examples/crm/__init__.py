"""A small CRM as a node: `mesh-agent run --app examples.crm:node`.

Its data is an SQLite file, `CRM_DATABASE` (default `.mesh/crm.db`), made with invented customers
and orders when it is first used.
"""

from __future__ import annotations

import os
from pathlib import Path

from examples.crm.app import crm_node
from examples.crm.store import Store

node = crm_node(Store(Path(os.environ.get("CRM_DATABASE", ".mesh/crm.db"))))
