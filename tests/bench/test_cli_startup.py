"""What `meshctl --help` costs beyond a bare typer app with as many commands."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from cli.meshctl.app import tree

pytestmark = pytest.mark.bench

ROUNDS = 15
ALLOWED = 1.5


def shape(group: typer.Typer) -> tuple[int, list[int]]:
    """How many commands stand at the top, and how many in each group."""
    members = [member.typer_instance for member in group.registered_groups]
    return len(group.registered_commands), [
        len(member.registered_commands) for member in members if member is not None
    ]


def bare(folder: Path) -> Path:
    """A typer app of the same shape whose commands take and do nothing."""
    top, groups = shape(tree())
    lines = ["import typer", "app = typer.Typer()"]
    lines += [f"@app.command()\ndef top{i}(): 'A command.'" for i in range(top)]
    for number, commands in enumerate(groups):
        lines.append(f"g{number} = typer.Typer(help='A group.')")
        lines += [f"@g{number}.command()\ndef c{number}x{i}(): 'Do.'" for i in range(commands)]
        lines.append(f"app.add_typer(g{number}, name='g{number}')")
    path = folder / "bare.py"
    path.write_text("\n".join([*lines, "app()"]))
    return path


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def test_help_is_nearly_as_fast_as_a_bare_typer_app(tmp_path):
    """Taken in turns, so that what else the machine does hits both alike."""
    ours = ("-c", "from cli.meshctl import main; main()")
    theirs = (str(bare(tmp_path)),)
    seconds(*ours), seconds(*theirs)
    pairs = [(seconds(*ours), seconds(*theirs)) for _ in range(ROUNDS)]

    meshctl, typer_alone = (statistics.median(times) for times in zip(*pairs, strict=True))

    ratio = meshctl / typer_alone
    sys.stdout.write(
        f"\nmeshctl {meshctl * 1e3:.0f} ms, bare {typer_alone * 1e3:.0f} ms: {ratio:.2f} times\n"
    )
    assert ratio <= ALLOWED
