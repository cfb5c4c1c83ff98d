"""Start a local Ray that only this job can use.

Ray executes code for anyone who can reach its ports. By default it listens on all interfaces without authentication, so
anyone on the network could run code as the job's user and read its credentials.
"""

import logging
import os
import secrets

import ray
from ray._private import ray_constants

from pipelines.core.prebuild import put_ninja_on_path

OBJECT_STORE_BYTES = 512 << 20


def start_local_ray() -> None:
    """Start Ray with a token for this process, listening on loopback only, without writing to the home folder."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # bounds the delay after a training's end
    put_ninja_on_path()  # workers inherit PATH; DeepSpeed calls ninja at every start
    _require_token()
    _listen_on_loopback()
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        # instead of a runtime environment's hook, which a separate process would set up before each worker starts
        _system_config={"preload_python_modules": ["pipelines.core.warning_filters"]},
    )


def _require_token() -> None:
    """Make Ray's processes, which inherit the environment, require a random token.

    Ray caches the token per process, so a second Ray in the same process uses the same one.
    """
    os.environ.pop("RAY_AUTH_MODE", None)  # if unset, Ray selects "token" and re-reads its cached configuration
    os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)  # else written to ~/.ray
    # Ray logs a warning that token authentication is on
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def _listen_on_loopback() -> None:
    """Make Ray listen on 127.0.0.1 only, as it does by default on macOS and Windows.

    `ray.init` has no argument for it and replaces 127.0.0.1 by the external address. Ray reads the variable on import,
    which has already happened, so the constant is set too.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
