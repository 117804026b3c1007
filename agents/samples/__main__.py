"""`python -m agents.samples FOLDER NODES`: in a process of its own, it uses another core and its
memory is gone when it ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agents.samples import make_samples, plan_samples

folder, nodes = sys.argv[1:]
make_samples(plan_samples(int(nodes), Path(folder)))
