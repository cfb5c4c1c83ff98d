"""Demo page: sample from a pixel model and its latent base in the browser, and edit images."""

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.core.config import ConfigError
from pipelines.sample.config import Safety
from pipelines.sample.page_guard import Guard, names_of
from pipelines.sample.page_layout import CSS, build_page
from pipelines.sample.page_sampler import DemoSampler
from pipelines.sample.page_uploads import MAX_BYTES, PageStore
from pipelines.sample.safety import SafetyFilter, check_safety
from pipelines.sample.sampler import open_sampler
from pipelines.sample.step import check_model

_SMALL = 256
_FORM_BYTES = 1 << 16  # around the file in the request of an upload


@contextmanager
def open_page(
    base: str,
    adapter: str,
    device: str = "cpu",
    safety: Safety | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[str]:
    """Serve the page, and yield its address.

    Args:
        base: folder of the latent model or a merged pipeline.
        adapter: folder or repository of the adapter; empty for a merged pipeline.
        device: device of the models.
        safety: safety classifier.
        host: address to listen on.
        port: port; 0 for any free one.
        allowed_hosts: other host names of the page.

    Raises:
        ConfigError: the settings are unsound, as far as known before a model is loaded.
        OSError: files cannot be read.
    """
    safety = safety or Safety()
    check_model(base, adapter, latent=bool(adapter))
    check_safety(safety)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device!r}: PyTorch finds no GPU here")
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="asymflow-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")  # deleted with the page
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        # Gradio's own request to the page must not go through a proxy.
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{direct},127.0.0.1,localhost,{host}"
        gradio = _gradio()
        from starlette.middleware import Middleware  # comes with Gradio

        try:
            sampler = open_sampler(base, adapter, device)
            demo_sampler = DemoSampler(sampler, SafetyFilter(safety, device), PageStore(Path(folder)))
        except ValueError as error:
            raise ConfigError(f"base={base!r}, adapter={adapter!r}: {error}") from error
        page = build_page(gradio, demo_sampler)
        small = max(sampler.defaults.height, sampler.defaults.width) <= _SMALL
        names, limit = names_of(host, allowed_hosts), MAX_BYTES + _FORM_BYTES
        guard = Middleware(Guard, names=names, max_upload=limit, has_room=demo_sampler.store.has_room)
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            # System fonts: Gradio's own bold font has only a few letters.
            app_kwargs={"middleware": [guard]},
            theme=gradio.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
            css=CSS.format(rendering="pixelated" if small else "auto"),
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=MAX_BYTES,
            run_history=False,
            share=False,
            show_error=True,
            ssr_mode=False,
        )
        try:
            yield url
        finally:
            page.close(verbose=False)
            with demo_sampler.running:  # a request that is sampled ends with its step
                pass


def _free_port(host: str, port: int) -> int:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"host={host!r}, port={port}: cannot listen: {error}") from None


def _gradio() -> Any:
    try:
        import gradio  # optional, and reads its folder from the environment at import
    except ModuleNotFoundError:
        raise ConfigError("the page needs Gradio: pip install 'asymflow[ui]'") from None
    return gradio
