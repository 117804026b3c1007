"""Wires adapters into the runtime; the only importer of `mesh.adapters`.

Everything loads when it is first used: a client never imports LanceDB or SQLAlchemy, a master never
LanceDB.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.adapters.document_files import read_documents as read_documents
    from mesh.adapters.document_files.import_place import ImportPlace as ImportPlace
    from mesh.adapters.logs import configure_logs as configure_logs
    from mesh.adapters.nats.broker import EmbeddedBroker as EmbeddedBroker
    from mesh.adapters.nats.keys import BrokerKeys as BrokerKeys
    from mesh.adapters.settings import load_settings as load_settings
    from mesh.adapters.state import MeshFile as MeshFile
    from mesh.adapters.state import StateFolder as StateFolder
    from mesh.adapters.state import read_credentials as read_credentials
    from mesh.adapters.state import read_mesh as read_mesh
    from mesh.adapters.state import write_json as write_json
    from mesh.bootstrap.clients import connect as connect
    from mesh.bootstrap.clients import connect_bus as connect_bus
    from mesh.bootstrap.gateways import Gateway as Gateway
    from mesh.bootstrap.gateways import gateway as gateway
    from mesh.bootstrap.masters import master as master
    from mesh.bootstrap.nodes import load_app as load_app
    from mesh.bootstrap.nodes import node as node
    from mesh.bootstrap.places import find_operator as find_operator
    from mesh.bootstrap.places import make_credentials as make_credentials
    from mesh.bootstrap.places import read_broker_keys as read_broker_keys
    from mesh.bootstrap.places import read_master_credentials as read_master_credentials
    from mesh.bootstrap.places import resolve_nats as resolve_nats
    from mesh.core.backoff import Backoff as Backoff
    from mesh.core.rate_limit import RateLimiter as RateLimiter
    from mesh.core.scopes import allows as allows
    from mesh.core.scopes import allows_some_action as allows_some_action
    from mesh.core.scopes import allows_some_search as allows_some_search
    from mesh.core.scopes import readable_actions as readable_actions
    from mesh.core.scopes import searchable_collections as searchable_collections
    from mesh.runtime.action_progress import hear_progress as hear_progress
    from mesh.runtime.caller import request_origin as request_origin
    from mesh.runtime.gatekeeper import Gatekeeper as Gatekeeper
    from mesh.runtime.node import NodeServer as NodeServer
    from mesh.wire.codec import decode as decode
    from mesh.wire.codec import invalid as invalid
    from mesh.wire.subjects import slug_of as slug_of
    from mesh.wire.subjects import token as token

_LAZY = {
    "Backoff": "mesh.core.backoff",
    "BrokerKeys": "mesh.adapters.nats.keys",
    "EmbeddedBroker": "mesh.adapters.nats.broker",
    "Gatekeeper": "mesh.runtime.gatekeeper",
    "Gateway": "mesh.bootstrap.gateways",
    "ImportPlace": "mesh.adapters.document_files.import_place",
    "MeshFile": "mesh.adapters.state",
    "NodeServer": "mesh.runtime.node",
    "RateLimiter": "mesh.core.rate_limit",
    "StateFolder": "mesh.adapters.state",
    "allows": "mesh.core.scopes",
    "allows_some_action": "mesh.core.scopes",
    "allows_some_search": "mesh.core.scopes",
    "configure_logs": "mesh.adapters.logs",
    "connect": "mesh.bootstrap.clients",
    "connect_bus": "mesh.bootstrap.clients",
    "decode": "mesh.wire.codec",
    "find_operator": "mesh.bootstrap.places",
    "gateway": "mesh.bootstrap.gateways",
    "invalid": "mesh.wire.codec",
    "hear_progress": "mesh.runtime.action_progress",
    "load_app": "mesh.bootstrap.nodes",
    "load_settings": "mesh.adapters.settings",
    "make_credentials": "mesh.bootstrap.places",
    "master": "mesh.bootstrap.masters",
    "node": "mesh.bootstrap.nodes",
    "read_broker_keys": "mesh.bootstrap.places",
    "read_credentials": "mesh.adapters.state",
    "read_documents": "mesh.adapters.document_files",
    "read_master_credentials": "mesh.bootstrap.places",
    "read_mesh": "mesh.adapters.state",
    "readable_actions": "mesh.core.scopes",
    "request_origin": "mesh.runtime.caller",
    "resolve_nats": "mesh.bootstrap.places",
    "searchable_collections": "mesh.core.scopes",
    "slug_of": "mesh.wire.subjects",
    "token": "mesh.wire.subjects",
    "write_json": "mesh.adapters.state",
}


def __getattr__(name: str) -> Any:
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(name) from None
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found
