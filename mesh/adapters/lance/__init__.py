"""A node's collections in LanceDB. Importing this costs seconds: only what holds data does.

- documents.py: the facade, `mesh.ports.Documents`
- catalogue.py: what must outlive a dropped collection
- table.py: one collection, its state and its writer; reader.py, tidying.py: the rest of it
- schema.py: its columns; expressions.py: filters on them
- statistics.py: N, lengths and document frequencies, exact
- candidates.py: what a search found, ready to be ranked anywhere
- driver.py: LanceDB's errors
- quick_import.py: what of LanceDB is not imported
"""

import os

from mesh.adapters.lance.quick_import import put_off

# Else LanceDB writes warnings about itself to stderr; the variables are read when it loads.
os.environ.setdefault("LANCE_LOG", "error")
os.environ.setdefault("LANCEDB_LOG", "error")
put_off()

from mesh.adapters.lance.documents import LanceDocuments  # noqa: E402 (not before the above)

__all__ = ["LanceDocuments"]
