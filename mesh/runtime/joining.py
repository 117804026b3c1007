"""How a node comes in: with the key it has, or by getting one.

Every way ends with a key in its data folder, so that the next start needs nothing of it any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

import structlog

from mesh.errors import (
    ConflictError,
    DeadlineExceededError,
    NoMasterError,
    StateError,
    UnauthorizedError,
    UnavailableError,
    UntrustedError,
)
from mesh.ports import Bus, Clock, Login
from mesh.runtime.access_api import AccessApi
from mesh.runtime.caller import Caller
from mesh.runtime.registry_api import RegistryApi
from mesh.types import Status
from mesh.wire.messages import NodeRegister

log = structlog.get_logger()

_FIRST_WAIT_S = 0.5
_LAST_WAIT_S = 10.0
"""Between two looks whether an operator has let us in; each is a login."""
_REMIND_S = 60.0
_FINGERPRINT_DIGITS = 16

B = TypeVar("B", bound=Bus)


class KeyFile(NamedTuple):
    """Where a node keeps its key."""

    path: str
    """For people."""
    read: Callable[[], Login | None]
    write: Callable[[Login], None]


class Ways(NamedTuple):
    """Everything a node was given to come in with, in the order in which it is tried."""

    given: Login | None
    """A key from a credentials file or a setting."""
    key_file: KeyFile
    join_token: str = ""
    operator: Login | None = None
    """Somebody who may register nodes, and does."""
    request_approval: bool = False


class Joining(Generic[B]):
    """One start of a node, up to where it is logged in."""

    def __init__(
        self,
        slug: str,
        node: NodeRegister,
        ways: Ways,
        connect: Callable[[Login], Awaitable[B]],
        clock: Clock,
        *,
        version: str,
        random_name: Callable[[], str],
        new_key: Callable[[], Login],
    ) -> None:
        """Args:
        slug: Of the node.
        node: What it says of itself where it is registered.
        ways: What it has to come in with.
        connect: Logs in, with some patience. Raises UnauthorizedError where a master says no,
            NoMasterError where none answers, DisconnectedError where there is no broker.
        clock: Time.
        version: Of our software.
        random_name: `join-` and 128 random bits in hex.
        new_key: The node's login with an API key that nobody has.
        """
        self._slug = slug
        self._node = node
        self._ways = ways
        self._connect = connect
        self._clock = clock
        self._version = version
        self._random_name = random_name
        self._make_key = new_key

    async def enter(self) -> tuple[Login, B]:
        """Log in as the node, whatever that takes; without an answer from a master or an operator
        it goes on trying.

        Raises:
            UnauthorizedError: The key or the join token is no longer good; says what to do.
            ConflictError: Another node has the name.
            StateError: There is no way in, or the key cannot be kept.
        UntrustedError: TLS does not come about.
            DisconnectedError: No broker there.
        """
        ways = self._ways
        if ways.given is not None:
            return await self._with_given(ways.given)
        kept = ways.key_file.read()
        if kept is not None:
            return await self._with_kept(kept)
        if ways.join_token:
            return await self._joined()
        if ways.operator is not None:
            return await self._adopted(ways.operator)
        if ways.request_approval:
            return await self._approved(self._new_key())
        raise StateError(
            f"node {self._slug!r} has no key yet. One of these gets it in: --creds with a file of "
            "its API key (`meshctl nodes register`), MESH_NODE__API_KEY, MESH_NODE__JOIN_TOKEN "
            "(`meshctl nodes join-token create`), --state-dir of a mesh on this machine, or "
            "--request-approval and `meshctl nodes approve`"
        )

    # -- with a key --------------------------------------------------------------------------------

    async def _with_given(self, login: Login) -> tuple[Login, B]:
        try:
            return login, await self._patiently(login)
        except UntrustedError:
            raise
        except UnauthorizedError as error:
            raise UnauthorizedError(self._why_refused("the key it was given")) from error

    async def _with_kept(self, kept: Login) -> tuple[Login, B]:
        """A key that is not good any more: whoever has another way in may have been removed, and
        started again on purpose.
        """
        ways = self._ways
        try:
            return kept, await self._patiently(kept)
        except UntrustedError:
            raise
        except UnauthorizedError as error:
            refused = error
        log.warning("mesh.node.key_refused", node=self._slug, file=ways.key_file.path)
        if ways.join_token:
            return await self._joined()
        if ways.operator is not None:
            return await self._adopted(ways.operator)
        if ways.request_approval:
            return await self._approved(kept)
        raise UnauthorizedError(self._why_refused(f"the key in {ways.key_file.path}")) from refused

    def _why_refused(self, key: str) -> str:
        return (
            f"the masters refuse node {self._slug!r} with {key}: it was removed, is inactive, or "
            f"has another key by now. `meshctl nodes show {self._slug}` tells; {self._new_one}"
        )

    @property
    def _new_one(self) -> str:
        """How to get another key where it is looked for."""
        return (
            f"`meshctl nodes rotate-key {self._slug} --out {self._ways.key_file.path}` "
            "gives it a new key"
        )

    # -- getting one -------------------------------------------------------------------------------

    async def _joined(self) -> tuple[Login, B]:
        ticket = Login(user=self._random_name(), password=self._ways.join_token)

        async def ask(bus: B) -> str:
            access = AccessApi(Caller(bus, self._clock))
            answer = await access.join(ticket.password, self._node, version=self._version)
            return answer.api_key

        try:
            api_key = await self._asked(ticket, ask)
        except UntrustedError:
            raise
        except UnauthorizedError as error:
            raise UnauthorizedError(
                f"the join token of node {self._slug!r} is not good: used up, expired, revoked or "
                "wrong. `meshctl nodes join-token create` makes another; if the node has joined "
                f"before and lost its key, {self._new_one}"
            ) from error
        except ConflictError as error:
            raise ConflictError(f"{error}. If it is this one: {self._new_one}") from error
        return await self._let_in(api_key, "mesh.node.joined")

    async def _adopted(self, operator: Login) -> tuple[Login, B]:
        async def ask(bus: B) -> str:
            caller = Caller(bus, self._clock)
            try:
                return (await AccessApi(caller).adopt(self._node)).api_key
            except ConflictError as error:
                found = (await RegistryApi(caller).nodes(node=self._slug)).nodes
                if found and found[0].status is not Status.ACTIVE:
                    raise UnauthorizedError(
                        f"node {self._slug!r} is {found[0].status.value}: "
                        f"`meshctl nodes update {self._slug} --status active` lets it in"
                    ) from error
                raise ConflictError(f"{error}. If it is this one: {self._new_one}") from error

        api_key = await self._asked(operator, ask)
        return await self._let_in(api_key, "mesh.node.adopted", by=operator.user)

    async def _asked(self, login: Login, ask: Callable[[B], Awaitable[str]]) -> str:
        """The key that a master gives to whoever logs in so; again while none answers."""
        while True:
            bus = await self._patiently(login)
            try:
                return await ask(bus)
            except (UnavailableError, DeadlineExceededError) as error:
                log.warning("mesh.node.masters_awaited", node=self._slug, error=str(error))
            finally:
                await bus.close()
            await self._clock.sleep(_FIRST_WAIT_S)

    async def _let_in(self, api_key: str, event: str, **how: str) -> tuple[Login, B]:
        """Kept before it is used: from here on no crash loses it."""
        login = Login(user=self._slug, password=api_key)
        self._ways.key_file.write(login)
        log.info(event, node=self._slug, key_file=self._ways.key_file.path, **how)
        return login, await self._patiently(login)

    # -- asking an operator ------------------------------------------------------------------------

    def _new_key(self) -> Login:
        login = self._make_key()
        self._ways.key_file.write(login)
        return login

    async def _approved(self, login: Login) -> tuple[Login, B]:
        """Every login that is refused is a request as well."""
        fingerprint = hashlib.sha256(login.password.encode()).hexdigest()[:_FINGERPRINT_DIGITS]
        wait_s, told_at = _FIRST_WAIT_S, -_REMIND_S
        while True:
            try:
                bus = await self._patiently(login)
            except UntrustedError:
                raise
            except UnauthorizedError:
                now = self._clock.monotonic()
                if now - told_at >= _REMIND_S or told_at < 0:
                    told_at = now
                    log.warning(
                        "mesh.node.approval_awaited",
                        node=self._slug,
                        fingerprint=fingerprint,
                        hint=f"compare the fingerprint in `meshctl nodes pending`, then "
                        f"`meshctl nodes approve {self._slug}`; nothing there: the masters need "
                        "security.approval_queue, or have rejected it",
                    )
                await self._clock.sleep(wait_s)
                wait_s = min(wait_s * 1.5, _LAST_WAIT_S)
            else:
                if told_at >= 0:
                    log.info("mesh.node.approved", node=self._slug)
                return login, bus

    async def _patiently(self, login: Login) -> B:
        """Log in as soon as a master answers."""
        while True:
            try:
                return await self._connect(login)
            except NoMasterError as error:
                log.warning("mesh.node.masters_awaited", node=self._slug, error=str(error))
