"""Where settings come from: `mesh.toml` < environment < flags. What they are is `mesh.config`'s.

A setting is named by its dotted key (`node.weight`), in the environment by `MESH_NODE__WEIGHT`.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
import stat
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mesh.config import SECRETS, MeshConfig
from mesh.errors import ConfigError

log = logging.getLogger(__name__)
"""The standard library's: settings are read before the logs are set up, and it has stderr then."""

PREFIX = "MESH_"
BETWEEN_LEVELS = "__"

NOT_SETTINGS = frozenset(
    {
        "MESH_CREDS",
        "MESH_DEBUG",
        "MESH_HTTP_URL",
        "MESH_JOIN_TOKEN",
        "MESH_REFRESH_TOKEN",
        "MESH_STATE_DIR",
        "MESH_TOKEN",
        "MESH_URL",
    }
)
"""Variables that the commands, and clients of the gateway, read themselves."""

ALIASES = {"MESH_JWT_SECRET": "security.jwt_secret"}
"""Other names of settings in the environment."""

BROKER_PREFIX = "MESH_BROKER_"
"""Variables of `nats-server.conf`; those with two underscores are settings of section `broker`."""


class Loaded(NamedTuple):
    """The settings, and by dotted key what set those that do not have their default."""

    config: MeshConfig
    sources: dict[str, str]


class _Given(NamedTuple):
    value: Any
    source: str
    """As a person knows it: `mesh.toml: node.weight`, `MESH_NODE__WEIGHT`, `flag node.weight`."""


def load_settings(
    *, toml: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]
) -> MeshConfig:
    """The settings alone; see `load_with_sources`."""
    return load_with_sources(toml=toml, environ=environ, flags=flags).config


def load_with_sources(
    *, toml: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]
) -> Loaded:
    """Args:
    toml: A file, or None.
    environ: Variables beginning with `MESH_` count; lists are separated by commas or JSON;
        an empty value is the same as none.
    flags: Values by dotted key; None is the same as none.

    Raises:
        ConfigError: A key nobody knows, or a value of the wrong type or beyond its range; names
            the key and where it came from.
    """
    given: dict[str, _Given] = {}
    for layer in (_from_toml(toml), _from_environ(environ), _from_flags(flags)):
        given.update(layer)
    return Loaded(
        _build(MeshConfig, "", given), {key: setting.source for key, setting in given.items()}
    )


@functools.cache
def setting_types() -> dict[str, Any]:
    """The type of every setting by its dotted key, limits included."""
    return dict(_leaves(MeshConfig, ""))


def variable(key: str) -> str:
    """`node.weight` → `MESH_NODE__WEIGHT`."""
    return PREFIX + key.replace(".", BETWEEN_LEVELS).upper()


def of_broker(name: str) -> bool:
    """Whether that variable is for `nats-server.conf`."""
    return name.startswith(BROKER_PREFIX) and not name.startswith(f"{PREFIX}BROKER{BETWEEN_LEVELS}")


def _leaves(section: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in typing.get_type_hints(section, include_extras=True).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from _leaves(kind, f"{prefix}{name}.")
        elif name in section.__struct_fields__:
            yield prefix + name, kind


# -- the three sources -----------------------------------------------------------------------------


def _from_toml(path: Path | None) -> Iterator[tuple[str, _Given]]:
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    given = list(_tables(content, MeshConfig, "", str(path)))
    _warn_if_open(path, [key for key, setting in given if _is_secret(key) and setting.value])
    yield from given


def _warn_if_open(path: Path, secrets: Sequence[str]) -> None:
    """Others who may read the file may read the secrets in it."""
    if secrets and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning(
            "%s holds secrets (%s) and others can read it: chmod 600 it, or give them by variables",
            path,
            ", ".join(secrets),
        )


def _tables(
    content: Mapping[str, Any], section: type[msgspec.Struct], prefix: str, file: str
) -> Iterator[tuple[str, _Given]]:
    kinds = typing.get_type_hints(section)
    for name, value in content.items():
        key, source = prefix + name, f"{file}: {prefix}{name}"
        if name not in section.__struct_fields__:
            raise _unknown(source, name, section.__struct_fields__)
        if key in setting_types():
            yield key, _checked(key, value, source, strict=True)
        elif isinstance(value, Mapping):
            yield from _tables(value, kinds[name], f"{key}.", file)
        else:
            raise ConfigError(f"{source}: is a table, write [{key}]")


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, _Given]]:
    keys = {variable(key): key for key in setting_types()} | ALIASES
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS or of_broker(name):
            continue
        if name not in keys:
            raise _unknown(name, name, [*keys, *NOT_SETTINGS])
        if text:
            key = keys[name]
            if name in ALIASES and environ.get(variable(key), text) not in ("", text):
                raise ConfigError(f"{name} and {variable(key)} say different things; set one")
            yield key, _checked(key, _parsed(key, text, name), name, strict=False)


def _parsed(key: str, text: str, source: str) -> Any:
    """Text, or the list it stands for."""
    if typing.get_origin(_bare(setting_types()[key])) is not list:
        return text
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{source}: not a JSON list: {error}") from error


def _bare(kind: Any) -> Any:
    """A type without its limits: `Annotated[list[str], …]` → `list[str]`."""
    return typing.get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _from_flags(flags: Mapping[str, Any]) -> Iterator[tuple[str, _Given]]:
    for key, value in flags.items():
        source = f"flag {key}"
        if key not in setting_types():
            raise _unknown(source, key, setting_types())
        if value is not None:
            yield key, _checked(key, value, source, strict=True)


# -- checks ----------------------------------------------------------------------------------------


def _unknown(source: str, name: str, known: Iterable[str]) -> ConfigError:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return ConfigError(f"{source}: unknown key{hint}")


def _checked(key: str, value: Any, source: str, *, strict: bool) -> _Given:
    words = _words_of(setting_types()[key])
    if words and isinstance(value, str) and value not in words:
        raise ConfigError(f"{source}: {value!r} is none of {', '.join(words)}")
    try:
        return _Given(msgspec.convert(value, setting_types()[key], strict=strict), source)
    except msgspec.ValidationError as error:
        if _is_secret(key):  # nobody is shown what it was, nor parts of it
            raise ConfigError(f"{source}: {_secret_words(error)}") from None
        raise ConfigError(f"{source}: {_words(error)}") from error


def _words_of(kind: Any) -> tuple[str, ...]:
    """Those that a setting can be, if it is one of a few."""
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _is_secret(key: str) -> bool:
    return key.rpartition(".")[2] in SECRETS


def _build(section: type[msgspec.Struct], prefix: str, given: Mapping[str, _Given]) -> Any:
    """A section of the settings given; rules between its keys are its own `__post_init__`."""
    values: dict[str, Any] = {}
    kinds = typing.get_type_hints(section)
    for name in section.__struct_fields__:
        key = prefix + name
        if key in given:
            values[name] = given[key].value
        elif key not in setting_types():
            values[name] = _build(kinds[name], f"{key}.", given)
    try:
        return section(**values)
    except ValueError as error:
        sources = [setting.source for key, setting in given.items() if key.startswith(prefix)]
        raise ConfigError(f"{', '.join(sources)}: {error}") from error


def _words(error: msgspec.ValidationError) -> str:
    """`Expected `int` >= 1` → `expected int >= 1`."""
    text = str(error).replace("`", "").replace(" - at $", " at ")
    return text[0].lower() + text[1:]


def _secret_words(error: msgspec.ValidationError) -> str:
    """What is wrong with a secret, by its kind alone."""
    wrong_type = re.fullmatch(r"Expected `(\w+)`, got `(\w+)`", str(error))
    if wrong_type:
        return f"expected {wrong_type[1]}, got {wrong_type[2]}"
    return "is too long, or not of the form that such a secret has"
