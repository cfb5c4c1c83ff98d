"""Images of a request, and how they reach the page."""

import threading

import pytest
from PIL import Image
from toy_pipeline import ADAPTER, BASE

from pipelines.sample.config import Safety
from pipelines.sample.metadata import read_metadata
from pipelines.sample.page_sampler import DemoSampler, Stopped, stream
from pipelines.sample.page_tabs import TABS, read_form
from pipelines.sample.page_uploads import PageStore
from pipelines.sample.safety import SafetyFilter
from pipelines.sample.sampler import PipelineSampler

PROMPT = "an emoji of fox face on blue"
MODELS = ("latent", "pixel")


@pytest.fixture(scope="module")
def sampler():
    return PipelineSampler(str(BASE), str(ADAPTER))


@pytest.fixture
def request_of(sampler, tmp_path):
    """Call with the name of a tab: a request of it."""
    path = tmp_path / "upload.png"
    Image.linear_gradient("L").resize((40, 24)).convert("RGB").save(path)

    def make(name, **form):
        (tab,) = [tab for tab in TABS if tab.name == name]
        images = {"image": str(path), "references": [(str(path), None)], "strength": 0.5}
        return read_form(sampler, tab, {"prompt": PROMPT, "seed": 0, "steps": 2, "latent": True, **images, **form})

    return make


def demo_sampler(sampler, tmp_path, safety=None):
    folder = tmp_path / "page"
    folder.mkdir()
    return DemoSampler(sampler, safety or SafetyFilter(Safety(), "cpu"), PageStore(folder))


@pytest.mark.parametrize(("tab", "steps"), [("text", 2), ("image", 1), ("references", 2)])
def test_steps_previews_and_files(sampler, request_of, tmp_path, tab, steps):
    done = []
    result = demo_sampler(sampler, tmp_path).sample(request_of(tab), done.append)
    assert [(one.model, one.done, one.total) for one in done] == [
        (model, step, steps) for model in MODELS for step in range(steps + 1)
    ]
    previews = [one.preview for one in done]
    assert previews[: steps + 2] == [None] * (steps + 2)
    assert all(one.startswith("data:image/webp;base64,") for one in previews[steps + 2 :])
    assert list(result.files) == list(MODELS)
    assert set(result.metadata["seconds"]) == set(MODELS)
    before, after = (Image.open(path) for path in result.compared)
    assert result.compared[1] == result.files["pixel"]
    assert before.size == after.size
    if tab == "text":
        assert before.tobytes() == Image.open(result.files["latent"]).tobytes()
    source = "compositeWithTrainedAlgorithmicMedia" if tab == "image" else "/trainedAlgorithmicMedia"
    assert source in Image.open(result.files["pixel"]).text["XML:com.adobe.xmp"]


def test_flagged_images_and_previews_are_black(sampler, request_of, tmp_path):
    seen = []

    def flag_all(images):
        seen.extend(images)
        return [Image.new("RGB", image.size) for image in images], [True] * len(images)

    done = []
    result = demo_sampler(sampler, tmp_path, flag_all).sample(request_of("image"), done.append)
    assert result.metadata["flagged"] == {"latent": True, "pixel": True}
    assert len(seen) == 3
    for path in result.files.values():
        assert Image.open(path).getextrema() == ((0, 0),) * 3
        assert read_metadata(path.read_bytes())["flagged"]
    (preview,) = {one.preview for one in done} - {None}
    with urlopen_data(preview) as image:
        assert image.convert("L").getextrema() == (0, 0)


def urlopen_data(url):
    import base64
    import io

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_stream_yields_the_reports_and_the_result():
    def work(report):
        report(1)
        report(2)
        return "done"

    assert list(stream(work)) == [1, 2, "done"]


def test_an_error_of_the_work_is_raised_where_the_stream_is_read():
    def work(report):
        report(1)
        raise ZeroDivisionError("at step 2")

    events = stream(work)
    assert next(events) == 1
    with pytest.raises(ZeroDivisionError, match="at step 2"):
        next(events)


def test_work_ends_when_nobody_reads_its_stream():
    ended, go_on = threading.Event(), threading.Event()

    def work(report):
        try:
            report(1)
            go_on.wait(60)
            report(2)
        except Stopped:
            ended.set()
            raise

    events = stream(work)
    assert next(events) == 1
    events.close()
    go_on.set()
    assert ended.wait(60)
