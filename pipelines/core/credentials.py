"""Passwords and tokens in addresses: refused in settings, which are stored and shown, and hidden in messages."""

import re
from urllib.parse import parse_qsl, urlsplit

_NAMES = re.compile(
    r"password|passwd|pwd|token|secret|signature|credential|api_?key|access_?key|^(key|sig|auth)$", re.IGNORECASE
)
_BY_USER_NAME = ("http", "https", "s3", "ray")
"""Where a name before the host is a credential by itself; a database has user names that are none"""
_URI = re.compile(r"[a-zA-Z][\w+.-]*://[^\s'\"<>]+")


def has_secret(uri: str) -> bool:
    """Return whether a URI carries a password or a token; what has no scheme is a path, and carries none."""
    if "://" not in uri:
        return False
    try:
        parts = urlsplit(uri)
        named = parse_qsl(parts.query, keep_blank_values=True) + parse_qsl(parts.fragment, keep_blank_values=True)
        user = parts.username if parts.scheme.lower() in _BY_USER_NAME else None
        return bool(parts.password is not None or user or any(_NAMES.search(name) for name, _ in named))
    except ValueError:
        return "@" in uri


def hide_secrets(message: str) -> str:
    """Return the message without the addresses that carry a secret."""
    return _URI.sub(lambda match: "(an address with a secret)" if has_secret(match[0]) else match[0], message)
