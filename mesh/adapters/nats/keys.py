"""What the broker and the masters know of each other, and who is in from the start."""

from __future__ import annotations

import hashlib
import re
import secrets

import msgspec

from mesh.adapters.nats.nkey import ACCOUNT, CURVE, USER, decode_public, make_seed, public_of
from mesh.errors import StateError
from mesh.ports import Login, Seedling

_API_KEY = "nmk_"
_API_KEY_BYTES = 32
_API_KEY_FORM = re.compile(r"nmk_[A-Za-z0-9_-]{43}")
_OPERATOR_SCOPES = ["search", "actions", "admin"]
_NODE_SCOPES = ["search", "actions"]


class MasterCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """`master.json`: everything a master needs at the broker. Whoever has it is the mesh: it can
    let anybody in as anything.
    """

    user: str = "master"
    nkey: str
    """Seed of the user `master`."""
    auth_nkey: str
    """Seed of the user that hears who wants to log in."""
    sys_nkey: str
    """Seed of the user that sees and cuts connections."""
    issuer_nkey: str
    """Seed of the account key that signs logins."""
    xkey: str
    """Seed of the curve key with which the broker encrypts what people log in with."""
    seedlings: list[Seedling] = []

    def __repr__(self) -> str:
        return f"MasterCredentials(user={self.user!r}, seedlings={len(self.seedlings)}, …)"

    def login(self) -> Login:
        """Of the masters' own connection: may speak as anybody."""
        return Login(user=self.user, nkey=self.nkey)

    def auth_login(self) -> Login:
        """Of the connection that answers logins (account AUTH)."""
        return Login(user="auth", nkey=self.auth_nkey)

    def sys_login(self) -> Login:
        """Of the connection to the broker's own account (SYS)."""
        return Login(user="sys", nkey=self.sys_nkey)


class BrokerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """`broker.json`: whom nats-server knows by itself, and whose word it takes for the others.
    Public keys, no secret among them.
    """

    master: str
    gateway: str
    auth: str
    sys: str
    issuer: str
    xkey: str

    def check(self) -> None:
        """See that each is the public key it should be.

        Raises:
            StateError
        """
        kinds = {"issuer": ACCOUNT, "xkey": CURVE}
        for name in self.__struct_fields__:
            try:
                decode_public(getattr(self, name), kinds.get(name, USER))
            except ValueError:
                raise StateError(
                    f"the broker is never open: it needs a public key for {name!r} "
                    "(make them with `mesh-agent credentials`)"
                ) from None


def make_master() -> MasterCredentials:
    """All keys new, nobody let in yet."""
    return MasterCredentials(
        nkey=make_seed(USER),
        auth_nkey=make_seed(USER),
        sys_nkey=make_seed(USER),
        issuer_nkey=make_seed(ACCOUNT),
        xkey=make_seed(CURVE),
    )


def make_gateway() -> Login:
    """A new key of the gateway's."""
    return Login(user="gateway", nkey=make_seed(USER))


def make_login(name: str) -> Login:
    """A new API key (256 random bits) for a node or somebody else who logs in by name."""
    return Login(user=name, password=f"{_API_KEY}{secrets.token_urlsafe(_API_KEY_BYTES)}")


def is_api_key(text: str) -> bool:
    """Whether it has the form of one."""
    return _API_KEY_FORM.fullmatch(text) is not None


def seedling_of(login: Login, *, node: bool) -> Seedling:
    """What masters must know to let it in: as a node, or as an operator with all scopes."""
    return Seedling(
        name=login.user,
        digest=hashlib.sha256(login.password.encode()).hexdigest(),
        scopes=_NODE_SCOPES if node else _OPERATOR_SCOPES,
        node=node,
    )


def broker_keys(master: MasterCredentials, gateway: Login) -> BrokerKeys:
    """What the broker must know of them.

    Raises:
        StateError: One of them is damaged.
    """
    try:
        return BrokerKeys(
            master=public_of(master.nkey),
            gateway=public_of(gateway.nkey),
            auth=public_of(master.auth_nkey),
            sys=public_of(master.sys_nkey),
            issuer=public_of(master.issuer_nkey),
            xkey=public_of(master.xkey),
        )
    except ValueError as error:
        raise StateError(f"the credentials of master or gateway are damaged: {error}") from None
