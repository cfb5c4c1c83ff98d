"""What a number means: everything that it depends on besides the pictures, and a short name for that."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Protocol = Mapping[str, Any]
"""JSON: the metric's name, its model, the rules of resizing and rounding, and whatever else moves the number"""


def fingerprint(protocol: Protocol) -> str:
    """12 hexadecimal digits; two numbers can be compared where it is the same."""
    content = json.dumps(protocol, sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
