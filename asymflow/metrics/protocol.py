"""Protocol of a number: everything that it depends on besides the images, and a short hash of it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Protocol = Mapping[str, Any]
"""JSON: the metric's name, its model, the rules of resizing and rounding, and everything else that changes the
number"""


def fingerprint(protocol: Protocol) -> str:
    """Return a hash of a protocol; numbers with equal hashes are comparable.

    Args:
        protocol: The protocol.

    Returns:
        12 hexadecimal digits.
    """
    content = json.dumps(protocol, sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
