"""The HTTP gateway: the mesh for clients outside it."""

from __future__ import annotations

from agents.gateway.run import gateway as gateway
from agents.gateway.run import run as run
