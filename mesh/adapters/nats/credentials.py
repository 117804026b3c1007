"""The folder with everybody's credentials: made once, mended where a file is missing.

master.json     every seed, and whom masters let in from the start (`MasterCredentials`)
gateway.json    a login by nkey
operator.json   a login by API key, with all scopes
nodes/<n>.json  a login by API key, for nodes that must not ask anybody for one: containers
broker.json     public keys (`BrokerKeys`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from mesh.adapters.nats.keys import (
    BrokerKeys,
    MasterCredentials,
    broker_keys,
    is_api_key,
    make_gateway,
    make_login,
    make_master,
    seedling_of,
)
from mesh.adapters.nats.nkey import USER, decode_seed
from mesh.errors import StateError
from mesh.ports import Login, Seedling
from mesh.wire.subjects import free_name

log = structlog.get_logger()

_OPERATOR = "operator"
_T = TypeVar("_T")


class Save(Protocol):
    """Writes a file at once and whole."""

    def __call__(self, file: Path, content: Any, *, mode: int) -> None: ...


class CredentialFiles(NamedTuple):
    """What is in the folder now."""

    broker: BrokerKeys
    files: dict[str, Path]
    """By role: `master`, `gateway`, `operator`, `broker`, `nodes/<name>`."""


def make(
    folder: Path, *, nodes: Iterable[str], mode: int, save: Save, read: Callable[[Path], bytes]
) -> CredentialFiles:
    """Make what is missing and leave the rest as it is; files of the format before this one, with
    passwords for roles, are replaced.

    Args:
        folder: Exists.
        nodes: Slugs of the nodes that get a file, besides those that have one.
        mode: Of the files.
        save: Writes one.
        read: Raises StateError for one that is there and cannot be read.

    Raises:
        StateError: A file that cannot be read, written or understood.
        InvalidError: Not the name of a node.
    """
    _forget_earlier_format(folder)
    gateway = _known(read, folder / "gateway.json", Login, _is_gateway) or make_gateway()
    operator = _known(read, folder / "operator.json", Login, _has_api_key) or make_login(_OPERATOR)
    members = _node_logins(folder / "nodes", nodes, read)
    master = _known(read, folder / "master.json", MasterCredentials, _is_master) or make_master()
    seedlings = [seedling_of(operator, node=False)]
    seedlings += [seedling_of(login, node=True) for login in members]
    master = msgspec.structs.replace(master, seedlings=_merged(master.seedlings, seedlings))
    content: dict[str, Any] = {f"nodes/{login.user}": login for login in members}
    content |= {"gateway": gateway, _OPERATOR: operator, "master": master}
    keys = broker_keys(master, gateway)
    content["broker"] = keys
    files = {role: folder / f"{role}.json" for role in content}
    for role, file in files.items():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if not file.exists() or _decoded(read(file), type(content[role])) != content[role]:
            save(file, content[role], mode=mode)
        else:
            file.chmod(mode)
    return CredentialFiles(keys, files)


def _node_logins(folder: Path, asked: Iterable[str], read: Callable[[Path], bytes]) -> list[Login]:
    names = {free_name(name) for name in asked} | {file.stem for file in folder.glob("*.json")}
    return [
        _known(read, folder / f"{name}.json", Login, _has_api_key) or make_login(name)
        for name in sorted(names)
    ]


def _merged(before: list[Seedling], now: list[Seedling]) -> list[Seedling]:
    """Those whose file was given away and removed here stay."""
    by_name = {seedling.name: seedling for seedling in (*before, *now)}
    return [by_name[name] for name in sorted(by_name)]


def _known(
    read: Callable[[Path], bytes], file: Path, kind: type[_T], fits: Callable[[_T], bool]
) -> _T | None:
    if not file.exists():
        return None
    found = _decoded(read(file), kind)
    if found is not None and fits(found):
        return found
    raise StateError(
        f"{file} is damaged: put back a copy, or remove it and a new one is made, which is a new "
        "login for whoever uses it"
    )


def _decoded(data: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_gateway(login: Login) -> bool:
    return login.user == "gateway" and _is_user_seed(login.nkey)


def _has_api_key(login: Login) -> bool:
    return is_api_key(login.password)


def _is_master(master: MasterCredentials) -> bool:
    return _is_user_seed(master.nkey)


def _is_user_seed(seed: str) -> bool:
    try:
        return decode_seed(seed)[0] == USER
    except ValueError:
        return False


class _Earlier(msgspec.Struct, frozen=True, kw_only=True):
    user: str
    password: str


def _forget_earlier_format(folder: Path) -> None:
    """Before keys, five roles had a password each, known to the broker; it knows them no more."""
    for role in ("master", "gateway", _OPERATOR, "node", "sys"):
        file = folder / f"{role}.json"
        try:
            found = msgspec.json.decode(file.read_bytes(), type=_Earlier)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
        if found.user == role and not is_api_key(found.password):
            file.unlink(missing_ok=True)
            log.info("mesh.credentials.replaced", file=str(file), reason="a password, not a key")
