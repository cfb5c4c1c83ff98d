"""A stand-in of the hub on loopback: listings, commits, redirects to signed addresses, and ranges."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants
from s3_faults import FaultyServer, serve

from pipelines.core import hub_dataset

SIGNATURE = "planted-signature-5d1e"


@dataclass
class Hub:
    """Data sets by name, each {path: data}; the commit follows from their content.

    With a `token`, everything but the signed addresses needs it. `delay` is in seconds per answer with data.
    """

    data_sets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str = ""
    delay: float = 0.0
    gated: bool = False
    """Whether files may be listed, but not read"""
    corrupt: bytes = b""
    """Replaces the first bytes of each range"""
    server: FaultyServer | None = None
    leaked: bool = False
    """Whether a signed address was requested with the token"""

    def commit_of(self, name: str) -> str:
        content = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in self.data_sets[name].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = unquote(environ["PATH_INFO"])
        signed = path.startswith("/signed/")
        authorized = environ.get("HTTP_AUTHORIZATION") == f"Bearer {self.token}"
        if signed:
            self.leaked |= "HTTP_AUTHORIZATION" in environ
        elif self.token and not authorized:
            return self._fail(start_response, "401 Unauthorized", "RepoNotFound")
        kind, _, rest = path.strip("/").partition("/")
        owner, name, *more = [*rest.removeprefix("datasets/").split("/"), ""]
        files = self.data_sets.get(f"{owner}/{name}")
        if files is None:
            return self._fail(start_response, "404 Not Found", "RepoNotFound")
        commit = self.commit_of(f"{owner}/{name}")
        action, revision, inside = more[0], more[1], "/".join(more[2:-1])
        if revision not in ("main", commit):
            return self._fail(start_response, "404 Not Found", "RevisionNotFound")
        if kind == "api" and action == "revision":
            return self._json(start_response, {"id": f"{owner}/{name}", "sha": commit})
        if kind == "api" and action == "tree":
            below = [file for file in files if file.startswith(f"{inside}/" if inside else "")]
            if not below:
                return self._fail(start_response, "404 Not Found", "EntryNotFound")
            entries = [entry_of(file, files[file]) for file in below]
            if "recursive=true" not in environ["QUERY_STRING"].lower():
                depth = len(inside.split("/")) + 1 if inside else 1
                entries = [entry for entry in entries if entry["path"].count("/") < depth]
                folders = {"/".join(file.split("/")[:depth]) for file in below if file.count("/") >= depth}
                entries += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
            return self._json(start_response, entries)
        if inside not in files:
            return self._fail(start_response, "404 Not Found", "EntryNotFound")
        if self.gated:
            return self._fail(start_response, "403 Forbidden", "GatedRepo")
        if not signed:  # another host, as a CDN is
            address = f"{self.server.url.replace('127.0.0.1', 'localhost')}/signed/{owner}/{name}/resolve"
            start_response("302 Found", [("Location", f"{address}/{commit}/{inside}?X-Amz-Signature={SIGNATURE}")])
            return []
        first, last = map(int, environ["HTTP_RANGE"].removeprefix("bytes=").split("-"))
        time.sleep(self.delay)
        data = files[inside][first : last + 1]
        start_response("206 Partial Content", [("Content-Length", str(len(data)))])
        return [self.corrupt + data[len(self.corrupt) :]]

    def _json(self, start_response: Callable[..., Any], content: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(content).encode()]

    def _fail(self, start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
        start_response(status, [("X-Error-Code", code), ("X-Error-Message", "as the test asked")])
        return []


def entry_of(path: str, data: bytes) -> dict[str, Any]:
    """An entry of the hub's listing; files in LFS, as all large ones are, have their SHA-256."""
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if not path.endswith(".md"):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def serve_hub(data_sets: Mapping[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serve data sets, and make huggingface_hub of this process use the server, with quick retries."""
    hub = Hub(dict(data_sets))
    with serve(hub) as server, pytest.MonkeyPatch.context() as patch:
        hub.server = server
        for variable in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(variable, raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(hub_dataset, "RETRIES", {"max_retries": 4, "base_wait_time": 0.01, "max_wait_time": 0.01})
        yield hub
        hub_dataset._list_commit.cache_clear()
