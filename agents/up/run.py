"""The order of things: broker, then master, gateway and sample nodes, then ready; at the end the
gateway stops first, then nodes, master, broker.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

import mesh
from agents.samples import Sample, count_documents, plan_samples
from agents.up.child import Child
from agents.up.gateway import Place, take_place
from agents.up.programs import Programs, node_name
from agents.up.supervisor import Supervisor
from mesh import bootstrap
from mesh.config import MeshConfig
from mesh.errors import MeshError, NoMasterError, StateError

if TYPE_CHECKING:
    from mesh import MeshClient, messages
    from mesh.bootstrap import EmbeddedBroker, StateFolder

START_TIMEOUT_S = 300.0
"""A mesh that is not ready by then has something wrong that no process dies of."""

_POLL_S = 0.2
_ONE_PRESS_S = 0.5
"""`make`, `timeout` and terminals may pass one signal on twice."""
_ROLES = ("operator", "master", "gateway")
"""Whose credentials `mesh.json` names."""

_GRANTED_TO = "operator"
_GRANTED = ("search", "actions")
_GRANTED_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What somebody needs to know to use a mesh that has just become ready."""

    nats_url: str
    http_url: str
    prefix: str
    """Of the gateway's routes, for example `/api/ai-engine`."""
    certificate: str
    """Path of the one the gateway shows; empty: plain HTTP."""
    token: str | None
    """Access token for search and actions; None: none could be had. Never for a log."""
    nodes: Sequence[str]
    collection: str | None
    """One that can be searched."""


class View(Protocol):
    """Where people see what happens."""

    def progress(self, text: str, detail: str = "") -> None:
        """What is being waited for; `detail` changes often."""
        ...

    def notice(self, text: str) -> None:
        """Something worth a line."""
        ...

    def ready(self, ready: Ready) -> None:
        """All is at work."""
        ...


def run(
    config: MeshConfig,
    *,
    config_file: Path | None,
    state_dir: Path,
    nats_port: int,
    nodes: int,
    view: View,
) -> int:
    """Run a whole mesh until SIGTERM or Ctrl-C; a second one kills.

    Args:
        config: Settings; `gateway.port` 0 takes a free one. The children read theirs by themselves,
        config_file: from here; None: from `mesh.toml` in the current folder, if there is one.
        state_dir: Folder for all state; taken for this mesh alone.
        nats_port: 0 takes a free one.
        nodes: How many sample nodes.
        view: Told about progress.

    Raises:
        MeshError: It cannot start; says why and what to do.
    """
    os.umask(0o077)  # what a mesh keeps is its owner's alone
    with ExitStack() as opened:
        state = opened.enter_context(bootstrap.StateFolder(state_dir))
        state.remove_mesh()  # of a mesh that was killed
        opened.callback(state.remove_mesh)
        log = opened.enter_context((state.logs / "up.log").open("a", encoding="utf-8"))
        bootstrap.configure_logs(ids={"process": "up"}, stream=log)
        place = take_place(config.gateway)
        made = bootstrap.make_credentials(state.credentials)
        broker = bootstrap.EmbeddedBroker(
            store=state.broker,
            keys=made.broker,
            tls=config.broker,
            port=nats_port,
            sync_interval=config.nats.sync_interval,
        )
        config = _trusting(config)
        plan = plan_samples(nodes, state.samples)
        programs = Programs(config, config_file, state, broker)
        whole = _Mesh(
            programs, config, state=state, broker=broker, place=place, samples=plan, view=view
        )
        asyncio.run(whole.run())
    return 0


def _trusting(config: MeshConfig) -> MeshConfig:
    """All who speak to our own broker know its certificate, where nothing else was said."""
    nats = config.nats
    files = {
        "tls_ca": nats.tls_ca or config.broker.tls_cert,
        "tls_cert": nats.tls_cert,
        "tls_key": nats.tls_key,
    }
    known = {name: str(Path(file).absolute()) for name, file in files.items() if file}
    return msgspec.structs.replace(config, nats=msgspec.structs.replace(nats, **known))


class _Mesh:
    def __init__(
        self,
        programs: Programs,
        config: MeshConfig,
        *,
        state: StateFolder,
        broker: EmbeddedBroker,
        place: Place,
        samples: Sequence[Sample],
        view: View,
    ) -> None:
        self._programs = programs
        self._config = config
        self._state = state
        self._broker = broker
        self._place = place
        self._samples = samples
        self._view = view
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
        supervisor.keep(self._programs.broker())
        while not await self._broker_is_ready(supervisor):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(_POLL_S / 10)

        supervisor.keep(self._programs.master())
        supervisor.keep(self._programs.gateway(self._place))
        if any(not sample.file.exists() for sample in self._samples):
            self._view.progress("collecting sample documents")
            await supervisor.once(self._programs.samples(len(self._samples)))
        for sample in self._samples:
            supervisor.keep(self._programs.node(sample))
        login = self._state.credentials_file("operator")
        async with await self._connected(login) as client:
            await self._wait_until_all_work(client, supervisor)
            token = await self._token(client)

        self._published = supervisor.settled = True
        self._publish()
        self._view.ready(self._ready(token, supervisor))

    async def _connected(self, login: Path) -> MeshClient:
        """The master is the one who lets us in, and starts at the same time."""
        while True:
            try:
                client: MeshClient = await mesh.connect(
                    self._broker.url, credentials=login, config=self._config
                )
            except NoMasterError:
                self._view.progress("waiting for the master")
            else:
                return client

    async def _broker_is_ready(self, supervisor: Supervisor) -> bool:
        pid = supervisor.pid("broker")
        return pid is not None and await asyncio.to_thread(self._broker.probe, pid)

    async def _wait_until_all_work(self, client: MeshClient, supervisor: Supervisor) -> None:
        expected = await asyncio.to_thread(_expected_rows, self._samples)
        while True:
            with suppress(MeshError):  # the master is away for a moment
                awaited = _awaited(self._samples, supervisor)
                missing = _missing(await client.nodes(), awaited, expected)
                if not missing:
                    break
                names, details = ", ".join(missing), ", ".join(filter(None, missing.values()))
                self._view.progress(f"waiting for {names}", details)
            await asyncio.sleep(_POLL_S)
        for sample in _awaited(self._samples, supervisor):
            _loaded_mark(sample).touch(mode=0o600)
        while not await asyncio.to_thread(self._place.is_ready):
            self._view.progress("waiting for the gateway")
            await asyncio.sleep(_POLL_S)

    async def _token(self, client: MeshClient) -> str | None:
        """For the people at this terminal; a mesh without it is no worse."""
        try:
            grant = await client.access.issue(_GRANTED_TO, _GRANTED, ttl_s=_GRANTED_S)
        except MeshError as error:  # say, a node of that name
            self._view.notice(f"no token for the curl line: {error}")
            return None
        return grant.access_token

    def _ready(self, token: str | None, supervisor: Supervisor) -> Ready:
        at_work = _awaited(self._samples, supervisor)
        return Ready(
            nats_url=self._broker.url,
            http_url=self._place.url,
            prefix=self._place.prefix,
            certificate=self._place.certificate,
            token=token,
            nodes=[sample.slug for sample in at_work],
            collection=at_work[0].collection if at_work else None,
        )

    # -- mesh.json ---------------------------------------------------------------------------------

    def _on_start(self, name: str, pid: int) -> None:
        self._pids[name] = pid
        if self._published:
            self._publish()

    def _publish(self) -> None:
        self._state.write_mesh(
            bootstrap.MeshFile(
                http_url=self._place.url,
                nats_url=self._broker.url,
                credentials={role: str(self._state.credentials_file(role)) for role in _ROLES},
                pids=self._pids,
                started_at=self._started_at,
                version=mesh.__version__,
                tls_ca=self._config.nats.tls_ca,
                tls_cert=self._config.nats.tls_cert,
                tls_key=self._config.nats.tls_key,
            )
        )


async def _first(*awaited: asyncio.Future[Any]) -> None:
    """Return when the first of `awaited` has ended; raise what it raised."""
    done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


def _awaited(samples: Sequence[Sample], supervisor: Supervisor) -> list[Sample]:
    """All but those that cannot be kept running: no node keeps the mesh from starting."""
    return [sample for sample in samples if node_name(sample) not in supervisor.given_up]


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
