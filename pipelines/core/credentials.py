"""Detect passwords and tokens in URIs: settings, which are stored and shown, reject them, and messages hide them."""

import re
from urllib.parse import parse_qsl, urlsplit

_NAMES = re.compile(
    r"password|passwd|pwd|token|secret|signature|credential|api_?key|access_?key|^(key|sig|auth)$", re.IGNORECASE
)
_BY_USER_NAME = ("http", "https", "s3", "ray", "hf")
"""Schemes in which a user name alone is a credential; for databases it is not"""
_URI = re.compile(r"[a-zA-Z][\w+.-]*://[^\s'\"<>]+")


def has_secret(uri: str) -> bool:
    """Return whether a URI contains a password or a token. A string without a scheme is a path and contains none."""
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
    """Replace each URI in a message that contains a password or a token."""
    return _URI.sub(lambda match: "(an address with a secret)" if has_secret(match[0]) else match[0], message)
