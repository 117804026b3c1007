"""A real master that dies, as by kill -9, at chosen points of chosen sagas: once at each.

    python doomed_master.py STATE_DIR FOLDER NAME

`FOLDER/plan.json` says where: saga id → `kind:position`. Kinds: `append-before`, `append-after`
(a record), `send-before`, `send-after`, `answered` (a request to a node). Positions: the step or
compensation that is asked for, or is to be asked for by the record (`s2`, `s2.undo`), `begin` of
the first record, `end` of the last.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import msgspec

from mesh import bootstrap
from mesh.adapters.nats import saga_log
from mesh.core.saga import Ask, Begin, next_move
from mesh.runtime.saga_runner import SagaRunner
from mesh.runtime.saga_steps import Steps

STATE, FOLDER, NAME = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
PLAN = json.loads((FOLDER / "plan.json").read_text())


def point(saga_id: str, kind: str, position: str) -> None:
    """Die here, if that is planned and has not happened."""
    if PLAN.get(saga_id) != f"{kind}:{position}":
        return
    try:
        (FOLDER / "killed" / saga_id).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def position_of(saga) -> str:
    move = next_move(saga)
    if isinstance(move, Ask):
        return move.id.partition(".")[2]
    return "begin" if isinstance(move, Begin) else "end"


class DoomedLog(saga_log.JetStreamSagaLog):
    async def append(self, saga, *, after, timeout_s=5.0):
        point(saga.id, "append-before", position_of(saga))
        sequence = await super().append(saga, after=after, timeout_s=timeout_s)
        point(saga.id, "append-after", position_of(saga))
        return sequence


class DoomedSteps(Steps):
    async def _request(self, ask, request, wait_s, sent, place):
        saga_id, _, position = ask.id.partition(".")
        point(saga_id, "send-before", position)
        work = asyncio.ensure_future(super()._request(ask, request, wait_s, sent, place))
        if PLAN.get(saga_id) == f"send-after:{position}":
            await asyncio.sleep(0.002)  # it is on its way, and the answer may or may not be
            point(saga_id, "send-after", position)
        reply = await work
        if reply is not None:
            point(saga_id, "answered", position)
        return reply


def lead(self, epoch):
    (FOLDER / "leader").write_text(str(os.getpid()))
    return _lead(self, epoch)


_lead, SagaRunner.lead = SagaRunner.lead, lead


async def main() -> None:
    saga_log.JetStreamSagaLog = DoomedLog
    sys.modules["mesh.runtime.saga_runner"].Steps = DoomedSteps
    config = bootstrap.load_settings(
        toml=None, environ={k: v for k, v in os.environ.items() if k.startswith("MESH_")}, flags={}
    )
    nats = bootstrap.resolve_nats(
        config.nats, url=None, state_dir=STATE, credentials=None, role="master"
    )
    master = msgspec.structs.replace(
        config.master, database=f"sqlite+aiosqlite:///{STATE}/master/registry.db"
    )
    config = msgspec.structs.replace(config, nats=nats, master=master)
    async with bootstrap.master(config, data_dir=FOLDER / NAME):
        await asyncio.Event().wait()


if __name__ == "__main__":
    bootstrap.configure_logs(debug=False)
    asyncio.run(main())
