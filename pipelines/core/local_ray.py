"""A Ray of one job's own on this machine, which nobody else can use.

Ray runs the code of whoever reaches its ports. Without this it listens on all interfaces and asks for nothing: a
stranger on the network runs code as the job's user and reads its credentials.
"""

import logging
import os
import secrets

import ray
from ray._private import ray_constants

from pipelines.core.prebuild import put_ninja_on_path

OBJECT_STORE_BYTES = 512 << 20


def start_local_ray() -> None:
    """Start Ray with a token of this process, listening on loopback alone; nothing is written into the home folder."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how late a training's end is noticed
    put_ninja_on_path()  # workers inherit it; DeepSpeed calls it at every start
    _require_token()
    _listen_on_loopback()
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        # not a hook of the runtime environment: a process of its own would set that up before each worker's
        _system_config={"preload_python_modules": ["pipelines.core.quiet"]},
    )


def _require_token() -> None:
    """Let Ray's processes, which inherit the environment, refuse whoever does not know a random token.

    Ray caches the token for the process, so a second Ray in it uses the same one.
    """
    os.environ.pop("RAY_AUTH_MODE", None)  # unset, Ray chooses "token" and re-reads its cached configuration
    os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)  # else written to ~/.ray
    # Ray warns that it has done so
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def _listen_on_loopback() -> None:
    """As Ray does by default on macOS and Windows. `ray.init` has no argument for it: it replaces 127.0.0.1 by the
    outer address; the variable is read when Ray is imported, which it already is."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
