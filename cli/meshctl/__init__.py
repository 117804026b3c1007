"""The operator's hands: `meshctl`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process and exit with its code."""
    from cli.meshctl.app import run

    sys.exit(run(sys.argv[1:]))
