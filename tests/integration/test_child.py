"""Child processes of the supervisor, for real."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest

from agents.up.child import MAX_LOG_BYTES, Child, Program
from mesh.errors import StateError

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"  # noqa: E501


def program(tmp_path, code: str, **more) -> Program:
    return Program(
        name="child",
        argv=[sys.executable, "-c", code],
        log=tmp_path / "logs" / "child.log",
        **more,
    )


async def printed(child_program: Program, words: str) -> None:
    async with asyncio.timeout(10):
        while words not in child_program.log.read_text():
            await asyncio.sleep(0.01)


async def test_output_goes_to_a_private_log_and_the_exit_code_comes_back(tmp_path):
    code = "import os, sys; print(os.environ['WORD']); print('err', file=sys.stderr); sys.exit(7)"
    asked = program(tmp_path, code, environment=lambda: {"WORD": "hello"})
    child = await Child.start(asked)
    assert await child.wait() == 7
    assert sorted(asked.log.read_text().split()) == ["err", "hello"]
    assert stat.S_IMODE(asked.log.stat().st_mode) == 0o600

    again = await Child.start(asked)
    await again.wait()
    assert asked.log.read_text().count("hello") == 2


async def test_a_long_log_makes_room(tmp_path):
    asked = program(tmp_path, "print('fresh')")
    asked.log.parent.mkdir()
    asked.log.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    await (await Child.start(asked)).wait()
    assert asked.log.read_text() == "fresh\n"
    assert asked.log.with_name("child.log.1").stat().st_size == MAX_LOG_BYTES + 1


async def test_a_polite_child_ends_politely(tmp_path):
    asked = program(tmp_path, "import time; print('up', flush=True); time.sleep(60)")
    child = await Child.start(asked)
    await printed(asked, "up")
    await child.stop(grace_s=10)
    assert await child.wait() == -signal.SIGTERM
    await child.stop(grace_s=10)


async def test_a_child_that_does_not_listen_is_killed_after_its_grace(tmp_path):
    asked = program(tmp_path, STUBBORN)
    child = await Child.start(asked)
    await printed(asked, "up")
    began = time.monotonic()
    await child.stop(grace_s=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert await child.wait() == -signal.SIGKILL


async def test_a_paused_child_ends_politely_too(tmp_path):
    asked = program(tmp_path, "import time; print('up', flush=True); time.sleep(60)")
    child = await Child.start(asked)
    await printed(asked, "up")
    os.kill(child.pid, signal.SIGSTOP)
    await child.stop(grace_s=10)
    assert await child.wait() == -signal.SIGTERM


async def test_the_terminals_ctrl_c_does_not_reach_it(tmp_path):
    asked = program(tmp_path, STUBBORN)
    child = await Child.start(asked)
    assert os.getpgid(child.pid) != os.getpgid(0)
    child.kill()
    await child.wait()


async def test_what_cannot_start_says_why(tmp_path):
    def refuse() -> None:
        raise StateError("port 4222 is taken")

    with pytest.raises(StateError, match="port 4222"):
        await Child.start(program(tmp_path, "", prepare=refuse))
    with pytest.raises(FileNotFoundError):
        await Child.start(Program(name="x", argv=["/no/such/program"], log=tmp_path / "x.log"))


def test_no_child_outlives_a_supervisor_killed_with_9(tmp_path):
    code = f"""
import asyncio, pathlib, sys
from agents.up.child import Child, Program

async def main():
    child = await Child.start(Program(
        name="c", argv=[sys.executable, "-c", {STUBBORN!r}], log=pathlib.Path(sys.argv[1])
    ))
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "c.log"], stdout=subprocess.PIPE
    ) as supervisor:
        child = psutil.Process(int(supervisor.stdout.readline()))
        assert child.is_running()
        supervisor.kill()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert alive == []
