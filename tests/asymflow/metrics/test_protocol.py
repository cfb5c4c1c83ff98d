import pytest

from asymflow.metrics.protocol import fingerprint


def test_equal_protocols_have_one_fingerprint_and_any_change_another():
    protocol = {"metric": "fid", "resize": "bicubic", "pictures": 10_000}
    assert fingerprint(protocol) == fingerprint(dict(reversed(protocol.items())))
    assert len(fingerprint(protocol)) == 12
    assert fingerprint(protocol | {"resize": "bilinear"}) != fingerprint(protocol)
    assert fingerprint(protocol | {"pictures": 9_999}) != fingerprint(protocol)


def test_non_json_numbers_are_refused():
    with pytest.raises(ValueError):
        fingerprint({"scale": float("nan")})
