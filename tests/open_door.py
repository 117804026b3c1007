"""The one thing without which nobody can log in at a broker, where a test wants no master."""

from __future__ import annotations

from typing import Self

import msgspec
from processes import BrokerProcess

from mesh.adapters.clock import SystemClock
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.callout import NatsDoorman
from mesh.adapters.nats.keys import make_login
from mesh.config import NatsConfig
from mesh.core import permissions
from mesh.errors import UnauthorizedError
from mesh.ports import Login, LoginAttempt, LoginGrant

ALL = ("search", "actions", "admin")


class OpenDoor:
    """`async with OpenDoor(broker, nodes=["crm"], users=["ops"])`: those may log in, with the
    permissions a master would give them. No stream, no registry, no route table.
    """

    def __init__(self, broker: BrokerProcess, *, nodes=(), users=()) -> None:
        self._broker = broker
        self._logins = {name: make_login(name) for name in (*nodes, *users)}
        self._nodes = set(nodes)

    def login(self, name: str) -> Login:
        return self._logins[name]

    def credentials(self, name: str) -> str:
        """Path of a credentials file."""
        file = self._broker.folder / "credentials" / f"{name}.login.json"
        file.write_bytes(msgspec.json.encode(self._logins[name]))
        file.chmod(0o600)
        return str(file)

    async def __aenter__(self) -> Self:
        keys = self._broker.keys
        config = NatsConfig(servers=[self._broker.url])
        self._bus = await NatsBus.connect("auth", config, login=keys.auth_login())
        self._doorman = NatsDoorman(self._bus, keys, SystemClock())
        await self._doorman.start(self._judge)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._doorman.stop()
        await self._bus.close()

    async def _judge(self, attempt: LoginAttempt) -> LoginGrant:
        name = attempt.user
        if name not in self._logins or attempt.secret != self._logins[name].password:
            raise UnauthorizedError("unknown")
        node = name in self._nodes
        allowed = permissions.of_node(name) if node else permissions.of_user(name, ALL)
        return LoginGrant(name, allowed)
