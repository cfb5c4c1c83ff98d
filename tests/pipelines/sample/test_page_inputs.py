"""Inputs that keep and decode only what the page uses."""

from types import SimpleNamespace

import pytest

from pipelines.sample.page_inputs import mask_editor, uploaded_image

gradio = pytest.importorskip("gradio")


def blob(name, content=b"png", kind="layer", index="0"):
    files = [("layer.png", content)] if content is not None else []
    return SimpleNamespace(data={"id": name, "type": kind, "index": index}, files=files)


def payload(name=None, layers=()):
    return SimpleNamespace(id=name, layers=[SimpleNamespace(path=str(path)) for path in layers])


def test_an_upload_is_not_decoded(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("not an image")
    image = uploaded_image(gradio)
    assert image.preprocess(None) is None
    assert image.preprocess(SimpleNamespace(path=str(path))) == str(path)


def test_the_painted_layer_is_read_once_or_from_its_file(tmp_path):
    editor = mask_editor(gradio)
    assert editor.accept_blobs in editor.server_fns or "accept_blobs" in editor.get_config()["server_fns"]
    editor.accept_blobs(blob("a", b"painted"))
    assert editor.preprocess(payload("a")) == b"painted"
    assert editor.preprocess(payload("a")) is None
    path = tmp_path / "layer.png"
    path.write_bytes(b"again")
    assert editor.preprocess(payload(layers=[path])) == b"again"
    assert editor.preprocess(payload()) is None
    assert editor.preprocess(None) is None


@pytest.mark.parametrize(
    "sent",
    [
        blob("a", kind="background", index=None),
        blob("a", kind="composite", index="null"),
        blob("a", index="1000000000"),
        blob("a", b"x" * (1 << 20) + b"x"),
        blob("a", None),
    ],
)
def test_other_images_are_not_kept(sent):
    editor = mask_editor(gradio)
    editor.accept_blobs(sent)
    assert not editor.preprocess(payload("a"))
    assert not editor.blob_storage


def test_the_oldest_layers_are_dropped():
    editor = mask_editor(gradio)
    for number in range(1000):
        editor.accept_blobs(blob(str(number)))
    kept = [number for number in range(1000) if editor.preprocess(payload(str(number)))]
    assert 0 < len(kept) <= 64
    assert kept[-1] == 999
