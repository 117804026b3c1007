"""What looks like a secret of ours or of the broker's is hidden, wherever it stands in a text.

Every pattern takes a time that grows with the text's length alone: anybody may make us log things.
"""

from __future__ import annotations

import re

HIDDEN = "…"

_NAMES = re.compile(
    r"(^|[_\-.])(password|passwd|pwd|passphrase|token|key|apikey|nkey|seed|jwt|secret|credential"
    r"|authorization|cookie)(s|[_\-.]?hash)?$",
    re.IGNORECASE,
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
"""Between the words of `apiKey`."""
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s]*@")
_KEY_OF_OURS = re.compile(r"(nm[kjr]_)[A-Za-z0-9_-]{16,}")
"""API keys, join tokens and refresh tokens; cut off ones too."""
_SEED = re.compile(r"(S[UANOCX]A)[A-Z2-7]{32,}")
"""Source: NATS nkeys, seeds of users, accounts, servers, operators, clusters and curves."""
_BEARER = re.compile(r"(\bbearer(?:\s|%20|\+){1,8})[^\s\"',;]{8,}", re.IGNORECASE)
_AUTHORIZATION = re.compile(
    r"(authorization[\"']?\s{0,4}[:=,]\s{0,4}(?:b(?=[\"']))?[\"']?"
    r"(?:(?:basic|bearer|digest|token)\s{1,8})?)"
    r"[^\s\"']+",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"((?:password|passwd|pwd|passphrase|secret|api[_-]?key|token|nkey|credential)s?(?:_?hash)?"
    r"(?:\\{0,3}[\"']\s{0,4}[:=]|\s{0,4}=)\s{0,4}"
    r"|(?:password|passwd|pwd|passphrase|x-api-key)s?\s{0,4}:\s{0,4})"
    r"(?:(\\{0,3}[\"'])(?:(?!\2)(?:\\.|[^\\]))*(\2)?|[^\s&]+)",
    re.IGNORECASE | re.DOTALL,
)
"""`password=…`, `"api_key": "…"` and `password: …`: to the end of the quotes, and without quotes to
the next space or `&`. `token: …` is what errors say of a setting.
"""
_MARKED = (
    (_KEY_OF_OURS, ("nmk_", "nmj_", "nmr_")),
    (_SEED, ("sua", "saa", "sna", "soa", "sca", "sxa")),
    (_BEARER, ("bearer",)),
    (_AUTHORIZATION, ("authorization",)),
    (_NAMED, ("pass", "pwd", "secret", "api", "token", "nkey", "credential")),
)
"""With what must be in a text, in lower case, for the pattern to find anything."""
_DOTTED = re.compile(r"[A-Za-z0-9_.-]+")
_JWT = "eyJ"
"""`{"` in base64."""
_JWT_DOTS = 2


def names_secret(name: str) -> bool:
    """Whether what stands under that name is a secret whatever it looks like: `api_key`."""
    return _NAMES.search(_HUMP.sub("_", name)) is not None


def hide_secrets(text: str) -> str:
    """`text` with a `…` for each API key, join or refresh token, JWT, NATS seed, bearer, password
    beside its name and login in a URL.
    """
    if "://" in text:
        text = _LOGIN_IN_URL.sub(f"{HIDDEN}@", text)
    lower = text.lower()
    for pattern, marks in _MARKED:
        if any(mark in lower for mark in marks):  # most texts have none: spared a slower search
            text = pattern.sub(_hidden, text)
    return _DOTTED.sub(_without_jwt, text) if _JWT in text else text


def _hidden(found: re.Match[str]) -> str:
    """What is before the secret, and the quotes around it."""
    before, *quotes = found.groups("")
    return HIDDEN.join([before + quotes[0], quotes[1]] if quotes else [before, ""])


def _without_jwt(run: re.Match[str]) -> str:
    word = run[0]
    at = word.find(_JWT)
    if at < 0 or word.count(".", at) < _JWT_DOTS:
        return word
    return f"{word[:at]}{HIDDEN}"
