"""Operators and applications, and their keys."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from mesh.errors import ConflictError, InvalidError, NotFoundError
from mesh.ports import Audit, Clock, LoginStore, Verb
from mesh.runtime.access_api import digest_of
from mesh.runtime.admission import API_KEY
from mesh.runtime.exclusion import Exclusion
from mesh.runtime.issued_tokens import distinct, secret, who
from mesh.runtime.key_rotation import KeyRotation
from mesh.wire import subjects
from mesh.wire.messages import (
    Request,
    User,
    UserCreate,
    UserKey,
    UserKeyRotate,
    UserList,
    UserName,
)

log = structlog.get_logger()


class Users:
    """Everybody with a key who is no node."""

    def __init__(
        self,
        exclusion: Exclusion,
        keys: KeyRotation,
        *,
        logins: LoginStore,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self._exclusion = exclusion
        self._keys = keys
        self._logins = logins
        self._audit = audit
        self._clock = clock
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "user-create": (UserCreate, self._create),
            "user-remove": (UserName, self._remove_another),
            "user-rotate-key": (UserKeyRotate, self._rotate_key),
            "users": (Request, self._list),
        }

    async def _list(self, _: Request, _caller: str) -> UserList:
        return UserList(users=await self._logins.users())

    async def _create(self, asked: UserCreate, caller: str) -> UserKey:
        user = User(
            name=subjects.free_name(asked.name),
            scopes=distinct(asked.scopes),
            description=asked.description,
            created_at=self._clock.unix_ms(),
        )
        api_key = secret(API_KEY)
        try:
            await self._logins.create_user(user, digest_of(api_key))
        except ConflictError as error:
            holder = await self._logins.find(user.name)
            kind = "node" if holder is not None and holder.node else "user"
            raise ConflictError(
                f"there is a {kind} {user.name!r} already; choose another name"
            ) from error
        by = who(asked, caller)
        self._audit.note(
            "user-created", actor=by, subject=user.name, origin=asked.origin, scopes=user.scopes
        )
        log.info("mesh.user.created", user=user.name, scopes=user.scopes, by=by)
        return UserKey(user=user, api_key=api_key)

    async def _remove_another(self, asked: UserName, caller: str) -> User:
        """Whoever removed himself would be cut off before the answer, and may be the last one who
        can let anybody in.
        """
        if asked.name == caller:
            message = "is you: somebody else has to remove you"
            raise InvalidError(f"name: {message}", fields={"name": [message]})
        return await self._remove(asked, caller)

    async def _remove(self, asked: UserName, caller: str) -> User:
        by = who(asked, caller)
        try:
            user = await self._logins.remove_user(asked.name, at=self._clock.unix_ms())
        except NotFoundError:
            # A try before may have got only so far; unless the name is somebody else's by now.
            if await self._logins.find(asked.name) is None:
                await self._exclusion.shut_out(asked.name, by=by)
            raise
        self._audit.note("user-removed", actor=by, subject=user.name, origin=asked.origin)
        await self._exclusion.shut_out(user.name, by=by)
        log.info("mesh.user.removed", user=user.name, by=by)
        return user

    async def _rotate_key(self, asked: UserKeyRotate, caller: str) -> UserKey:
        if asked.name == caller and not asked.overlap_s:
            message = "your own key: give --overlap, so that the answer reaches you"
            raise InvalidError(f"overlap_s: {message}", fields={"overlap_s": [message]})
        rotated = await self._keys.rotate(asked.name, asked, caller, node=False)
        name = rotated.before.name
        user = next((one for one in await self._logins.users() if one.name == name), None)
        if user is None:
            raise NotFoundError(f"user {name!r} was removed meanwhile")
        return UserKey(user=user, api_key=rotated.api_key, previous_until=rotated.previous_until)
