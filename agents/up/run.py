"""The order of things: broker, then master and sample nodes, then ready; backwards at the end."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import mesh
from agents.samples import Sample, count_documents, plan_samples
from agents.up.child import Child, Program
from agents.up.supervisor import Supervisor
from mesh import bootstrap
from mesh.config import MeshConfig
from mesh.errors import MeshError, StateError

if TYPE_CHECKING:
    from mesh import messages
    from mesh.bootstrap import EmbeddedBroker, StateFolder

START_TIMEOUT_S = 300.0
"""A mesh that is not ready by then has something wrong that no process dies of."""

_POLL_S = 0.2
_KILL_MARGIN_S = 5.0
_ONE_PRESS_S = 0.5
"""`make`, `timeout` and terminals may pass one signal on twice."""
_BROKER, _MASTER, _NODES = range(3)
"""Stages: nodes stop first, the broker last."""


class View(Protocol):
    """Where people see what happens."""

    def progress(self, text: str, detail: str = "") -> None:
        """What is being waited for; `detail` changes often."""
        ...

    def notice(self, text: str) -> None:
        """Something worth a line."""
        ...

    def ready(self, nats_url: str, nodes: Sequence[str]) -> None:
        """All is at work."""
        ...


def run(config: MeshConfig, *, state_dir: Path, nats_port: int, nodes: int, view: View) -> int:
    """Run a whole mesh until SIGTERM or Ctrl-C; a second one kills.

    Args:
        config: Settings; the children read theirs by themselves.
        state_dir: Folder for all state; taken for this mesh alone.
        nats_port: 0 takes a free one.
        nodes: How many sample nodes.
        view: Told about progress.

    Raises:
        MeshError: It cannot start; says why and what to do.
    """
    with ExitStack() as opened:
        state = opened.enter_context(bootstrap.StateFolder(state_dir))
        state.remove_mesh()  # of a mesh that was killed
        opened.callback(state.remove_mesh)
        log = opened.enter_context((state.logs / "up.log").open("a", encoding="utf-8"))
        bootstrap.configure_logs(ids={"process": "up"}, stream=log)
        passwords = {
            user: login.password
            for user, login in state.credentials(bootstrap.EmbeddedBroker.USERS).items()
        }
        broker = bootstrap.EmbeddedBroker(
            store=state.broker,
            passwords=passwords,
            port=nats_port,
            sync_interval=config.nats.sync_interval,
        )
        plan = plan_samples(nodes, state.samples)
        asyncio.run(_Mesh(config, state, broker, plan, view).run())
    return 0


class _Mesh:
    def __init__(
        self,
        config: MeshConfig,
        state: StateFolder,
        broker: EmbeddedBroker,
        samples: Sequence[Sample],
        view: View,
    ) -> None:
        self._state = state
        self._broker = broker
        self._samples = samples
        self._view = view
        self._node_grace_s = config.node.stop_grace_s + _KILL_MARGIN_S
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._pids: dict[str, int] = {}
        self._published = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with Supervisor(
            start=Child.start,
            now=loop.time,
            sleep=asyncio.sleep,
            on_start=self._on_start,
            on_death=lambda name, words: self._view.notice(f"{name} died ({words})"),
        ) as supervisor:
            stop = asyncio.Event()
            impatient_from = math.inf

            def on_signal(number: signal.Signals) -> None:
                nonlocal impatient_from
                if number == signal.SIGINT and loop.time() > impatient_from:
                    supervisor.kill()
                elif not stop.is_set():
                    impatient_from = loop.time() + _ONE_PRESS_S
                    stop.set()

            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.add_signal_handler(number, on_signal, number)
            starting = asyncio.create_task(self._start(supervisor))
            stopping = asyncio.create_task(stop.wait())
            try:
                await _first(starting, stopping, supervisor.failed)
                await _first(stopping, supervisor.failed)
            finally:
                for task in (starting, stopping):
                    task.cancel()
                await asyncio.wait({starting, stopping})
                self._view.progress("stopping")

    async def _start(self, supervisor: Supervisor) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._start_all(supervisor)
        except TimeoutError as error:
            raise StateError(
                f"not ready after {START_TIMEOUT_S:g} s; the logs in {self._state.logs} say more"
            ) from error

    async def _start_all(self, supervisor: Supervisor) -> None:
        self._view.progress("starting the broker")
        supervisor.keep(self._broker_program())
        while not await self._broker_is_ready(supervisor):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(_POLL_S / 10)

        supervisor.keep(self._master_program())
        if any(not sample.file.exists() for sample in self._samples):
            self._view.progress("collecting sample documents")
            await supervisor.once(self._samples_program())
        for sample in self._samples:
            supervisor.keep(self._node_program(sample))
        await self._wait_until_all_work()

        self._published = supervisor.settled = True
        self._publish()
        self._view.ready(self._broker.url, [sample.slug for sample in self._samples])

    async def _broker_is_ready(self, supervisor: Supervisor) -> bool:
        pid = supervisor.pid("broker")
        return pid is not None and await asyncio.to_thread(self._broker.probe, pid)

    async def _wait_until_all_work(self) -> None:
        expected = await asyncio.to_thread(_expected_rows, self._samples)
        login = self._state.credentials_file("operator")
        async with mesh.connect(self._broker.url, credentials=login, identity="up") as client:
            while True:
                with suppress(MeshError):  # the master is not there yet
                    missing = _missing(await client.nodes(), self._samples, expected)
                    if not missing:
                        break
                    names, details = ", ".join(missing), ", ".join(filter(None, missing.values()))
                    self._view.progress(f"waiting for {names}", details)
                await asyncio.sleep(_POLL_S)
        for sample in self._samples:
            _loaded_mark(sample).touch(mode=0o600)

    # -- programs ----------------------------------------------------------------------------------

    def _broker_program(self) -> Program:
        return Program(
            name="broker",
            argv=self._broker.command(),
            log=self._log("broker"),
            stage=_BROKER,
            prepare=self._broker.prepare,
            environment=self._broker.environment,
        )

    def _master_program(self) -> Program:
        return Program(
            name="master",
            argv=_agent("master", *self._where("master")),
            log=self._log("master"),
            stage=_MASTER,
        )

    def _node_program(self, sample: Sample) -> Program:
        name = f"node-{sample.slug}"
        source = f"{sample.collection}={sample.file}"
        return Program(
            name=name,
            argv=_agent("run", *self._where("node"), "--name", sample.slug, "--collection", source),
            log=self._log(name),
            stage=_NODES,
            grace_s=self._node_grace_s,
        )

    def _samples_program(self) -> Program:
        folder, nodes = str(self._state.samples), str(len(self._samples))
        return Program(
            name="samples",
            argv=[sys.executable, "-P", "-m", "agents.samples", folder, nodes],
            log=self._log("samples"),
        )

    def _where(self, user: str) -> list[str]:
        """Flags, because MESH_URL may name another mesh."""
        login = self._state.credentials_file(user)
        return [
            f"--state-dir={self._state.path}",
            f"--url={self._broker.url}",
            f"--creds={login}",
        ]

    def _log(self, name: str) -> Path:
        return self._state.logs / f"{name}.log"

    # -- mesh.json ---------------------------------------------------------------------------------

    def _on_start(self, name: str, pid: int) -> None:
        self._pids[name] = pid
        if self._published:
            self._publish()

    def _publish(self) -> None:
        roles = ("operator", "node", "master")
        self._state.write_mesh(
            bootstrap.MeshFile(
                nats_url=self._broker.url,
                credentials={role: str(self._state.credentials_file(role)) for role in roles},
                pids=self._pids,
                started_at=self._started_at,
                version=mesh.__version__,
            )
        )


async def _first(*awaited: asyncio.Future[Any]) -> None:
    """Return when the first of `awaited` has ended; raise what it raised."""
    done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


def _agent(command: str, *flags: str) -> list[str]:
    # -P: a file of the working directory does not hide one of ours
    return [sys.executable, "-P", "-m", "cli.mesh_agent", command, *flags]


def _loaded_mark(sample: Sample) -> Path:
    """Its file is there once the sample was loaded: what the user deletes later is not missing."""
    return sample.file.with_suffix(".loaded")


def _expected_rows(samples: Sequence[Sample]) -> dict[str, int]:
    """Documents by slug that a node must hold before it counts as ready."""
    return {
        sample.slug: 0 if _loaded_mark(sample).exists() else count_documents(sample.file)
        for sample in samples
    }


def _missing(
    nodes: messages.NodeList, samples: Sequence[Sample], expected: dict[str, int]
) -> dict[str, str]:
    """Which nodes are not at work yet, and how far each is."""
    records = {record.slug: record for record in nodes.nodes}
    missing = {}
    for sample in samples:
        record, wanted, rows = records.get(sample.slug), expected[sample.slug], 0
        if record:
            rows = sum(held.rows for held in record.collections if held.name == sample.collection)
        if rows < wanted:
            missing[sample.slug] = f"{sample.slug}: {rows:,} of {wanted:,} documents"
        elif record is None or record.health != "healthy":
            missing[sample.slug] = ""
    return missing
