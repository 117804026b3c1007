"""What the runtime needs from the world; `mesh.adapters` gives it. Implementations raise only
`MeshError`s: a driver's own errors are translated at the edge.
"""

from __future__ import annotations

from mesh.ports.access import AccessTokenRecord as AccessTokenRecord
from mesh.ports.access import JoinTokenRecord as JoinTokenRecord
from mesh.ports.access import NodeAccess as NodeAccess
from mesh.ports.access import RefreshTokenRecord as RefreshTokenRecord
from mesh.ports.access import TokenStore as TokenStore
from mesh.ports.actions import History as History
from mesh.ports.actions import Journal as Journal
from mesh.ports.actions import JournalEntry as JournalEntry
from mesh.ports.audit import Audit as Audit
from mesh.ports.bus import Bus as Bus
from mesh.ports.bus import Handler as Handler
from mesh.ports.bus import Message as Message
from mesh.ports.bus import Pending as Pending
from mesh.ports.bus import Subscription as Subscription
from mesh.ports.clock import Clock as Clock
from mesh.ports.data import Documents as Documents
from mesh.ports.data import Embedder as Embedder
from mesh.ports.data import Written as Written
from mesh.ports.departures import SHUT_DOWN as SHUT_DOWN
from mesh.ports.departures import Departure as Departure
from mesh.ports.departures import Departures as Departures
from mesh.ports.lease import Lease as Lease
from mesh.ports.lease import TakenError as TakenError
from mesh.ports.login_store import Candidate as Candidate
from mesh.ports.login_store import KeyHolder as KeyHolder
from mesh.ports.login_store import LoginStore as LoginStore
from mesh.ports.login_store import Sown as Sown
from mesh.ports.login_store import Wait as Wait
from mesh.ports.logins import Bouncer as Bouncer
from mesh.ports.logins import Doorman as Doorman
from mesh.ports.logins import Judge as Judge
from mesh.ports.logins import Login as Login
from mesh.ports.logins import LoginAttempt as LoginAttempt
from mesh.ports.logins import LoginGrant as LoginGrant
from mesh.ports.logins import Seedling as Seedling
from mesh.ports.registry import Registry as Registry
from mesh.ports.signing import FormerKey as FormerKey
from mesh.ports.signing import FormerKeys as FormerKeys
from mesh.ports.signing import Mint as Mint
from mesh.ports.signing import SealedKey as SealedKey
from mesh.ports.signing import Sealer as Sealer
from mesh.ports.signing import SigningKeyStore as SigningKeyStore
from mesh.ports.signing import SigningPair as SigningPair
from mesh.ports.signing import TokenSigner as TokenSigner
from mesh.ports.signing import TokenVerifier as TokenVerifier
from mesh.ports.signing import UnknownKeyError as UnknownKeyError
from mesh.ports.verbs import Trail as Trail
from mesh.ports.verbs import Verb as Verb
from mesh.ports.verbs import VerbProvider as VerbProvider
