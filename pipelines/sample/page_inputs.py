"""Inputs of the demo page that take files from visitors, without decoding them.

Gradio's own inputs decode what they receive, and keep in memory whatever a request names. Their methods are replaced on
the instances: defining a subclass would make Gradio write a file beside this one.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

_MAX_LAYER = 1 << 20
_KEPT_LAYERS = 64


def uploaded_image(gradio: Any, **options: Any) -> Any:
    """Return an input for one image, whose value is the path of the uploaded file."""
    sources = ["upload", "clipboard"]
    image = gradio.Image(type="filepath", image_mode=None, sources=sources, format="png", height=220, **options)
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def mask_editor(gradio: Any, **options: Any) -> Any:
    """Return an editor with a brush, whose value is the PNG of what is painted, or None."""
    from gradio.components.base import server

    painted: OrderedDict[str, bytes] = OrderedDict()

    @server
    def accept_blobs(data: Any) -> None:
        """Keep the painted layer; the page does not use the other images that the browser sends."""
        given, content = data.data, data.files[0][1] if data.files else b""
        if (given.get("type"), str(given.get("index"))) != ("layer", "0") or len(content) > _MAX_LAYER:
            return
        painted[str(given.get("id"))[:64]] = content
        while len(painted) > _KEPT_LAYERS:
            painted.popitem(last=False)

    def preprocess(payload: Any) -> bytes | None:
        if payload is None:
            return None
        if payload.id is not None:
            return painted.pop(payload.id, None)
        return Path(payload.layers[0].path).read_bytes() if payload.layers else None

    brush = gradio.Brush(colors=["#ff00ff"], color_mode="fixed", default_size=40)
    editor = gradio.ImageEditor(
        type="filepath", format="png", sources=(), transforms=(), layers=False, brush=brush, buttons=[], **options
    )
    editor.accept_blobs, editor.preprocess = accept_blobs, preprocess
    return editor
