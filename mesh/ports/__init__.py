"""What the runtime needs from the world; `mesh.adapters` gives it. Implementations raise only
`MeshError`s: a driver's own errors are translated at the edge.
"""

from __future__ import annotations

from mesh.ports.access import AccessTokenRecord as AccessTokenRecord
from mesh.ports.access import JoinTokenRecord as JoinTokenRecord
from mesh.ports.access import NodeAccess as NodeAccess
from mesh.ports.access import RefreshTokenRecord as RefreshTokenRecord
from mesh.ports.access import TokenSigner as TokenSigner
from mesh.ports.access import TokenStore as TokenStore
from mesh.ports.access import TokenVerifier as TokenVerifier
from mesh.ports.access import UnknownKeyError as UnknownKeyError
from mesh.ports.actions import History as History
from mesh.ports.actions import Journal as Journal
from mesh.ports.actions import JournalEntry as JournalEntry
from mesh.ports.bus import Bus as Bus
from mesh.ports.bus import Handler as Handler
from mesh.ports.bus import Message as Message
from mesh.ports.bus import Subscription as Subscription
from mesh.ports.clock import Clock as Clock
from mesh.ports.data import Documents as Documents
from mesh.ports.data import Embedder as Embedder
from mesh.ports.data import Written as Written
from mesh.ports.registry import Registry as Registry
