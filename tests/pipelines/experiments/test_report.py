"""The page that compares evaluations: its content, and its layout in a real browser."""

import io
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipelines.core.config import ConfigError
from pipelines.experiments.report import (
    TABLE_3,
    TABLE_4,
    bars_of,
    compare,
    read_evaluation,
    read_workflow,
    render,
)

ROOT = Path(__file__).parents[3]
PAPER = {  # transcribed from the paper independently
    "AsymFLUX.2 klein (variance reduction)": (12.99, 0.296, 0.925, 0.280, 18.5, 27.8),
    "FLUX.2 klein Base + DDT finetune": (10.33, 0.291, 0.922, 0.273, 20.4, 26.0),
    "AsymFLUX.2 klein (pixel)": (10.66, 86.8, 0.82),
    "FLUX.2 klein Base": (9.50, 85.2, 0.80),
}


@pytest.fixture
def evaluation(tmp_path):
    """Return a function of name and rows (model, metric, category, value, low, high, protocol): a folder."""

    def make(name, rows, suite="coco10k", adapter="some/adapter"):
        folder = tmp_path / name
        folder.mkdir()
        fields = ("model", "metric", "category", "value", "low", "high", "fingerprint")
        table = [{**dict(zip(fields, row, strict=True)), "prompts": 4, "pictures": 4} for row in rows]
        for row in table:
            row["better"] = {"fid": "low", "spectrum": "low", "high_frequency_power": ""}.get(row["metric"], "high")
        (folder / "table.json").write_text(json.dumps(table))
        (folder / "protocols.json").write_text(json.dumps({"numbers": {row[-1]: {"metric": row[1]} for row in rows}}))
        Image.new("RGB", (60, 40), "orange").save(folder / "samples.png")
        config = {name: "" for name in ("registered", "finetuned", "pictures", "base")}
        manifest = {
            "step": "evaluate", "id": f"{name}0123456789", "config": {**config, "suite": suite, "adapter": adapter},
            "files": {"samples.png": {}, "table.json": {}}, "metrics": {},
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return str(folder)

    return make


@pytest.fixture
def two(evaluation):
    first = [("trained", "hpsv3", "", 12.9, 12.7, 13.1, "p"), ("trained", "fid", "", 18.5, 18.0, 19.0, "q")]
    second = [("trained", "hpsv3", "", 12.0, 11.8, 12.2, "p"), ("trained", "fid", "", 17.0, None, None, "other")]
    return evaluation("first", first), evaluation("second", second, adapter="<script>alert(1)</script>")


def test_scores_side_by_side(two):
    columns, whole, parts = compare([read_evaluation("ours", two[0]), read_evaluation("theirs", two[1])])["coco10k"]
    assert columns == ["ours", "theirs"]
    assert not parts
    hpsv3, fid = whole
    assert [cell.value for cell in hpsv3.cells] == [12.9, 12.0]
    assert [cell.best for cell in hpsv3.cells] == [True, False]
    assert hpsv3.comparable
    assert not fid.comparable
    assert not any(cell.best for cell in fid.cells)
    ends = [(cell.left, cell.left + cell.width) for cell in hpsv3.cells]
    assert ends == [pytest.approx((100 * 0.9 / 1.3, 100)), pytest.approx((0, 100 * 0.4 / 1.3))]


def test_small_distances_are_the_best_and_some_numbers_have_no_best(evaluation):
    def rows(fid, power):
        power_row = ("trained", "high_frequency_power", "", power, None, None, "r")
        return [("trained", "fid", "", fid, None, None, "q"), power_row]

    evaluations = [read_evaluation(args[0], evaluation(*args)) for args in (("a", rows(3, 1.0)), ("b", rows(2, 1.4)))]
    fid, power = compare(evaluations)["coco10k"][1]
    assert [c.best for c in fid.cells] == [False, True]
    assert [c.best for c in power.cells] == [False, False]


def test_models_categories_and_suites(evaluation):
    rows = [(m, "geneval-hf", c, 0.5, 0.4, 0.6, "p") for m in ("latent", "trained") for c in ("", "colors")]
    demo = [("trained", "spectrum", "", 0.2, None, None, "p")]
    found = [
        read_evaluation("a", evaluation("a", rows, "geneval")),
        read_evaluation("b", evaluation("b", demo, "demo")),
    ]
    suites = compare(found)
    assert list(suites) == ["geneval", "demo"]
    columns, whole, parts = suites["geneval"]
    assert columns == ["a latent", "a trained"]
    assert [line.name for line in whole] == ["geneval-hf"]
    assert [line.name for line in parts] == ["geneval-hf / colors"]


def test_the_page_is_self_contained_and_escaped(two):
    page = render([read_evaluation(Path(uri).name, uri) for uri in two])
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert "@import" not in page
    assert "url(" not in page
    assert "not comparable" in page
    assert page.count("data:image/webp;base64,") == 2
    assert page.count("(quoted)") == 2
    assert "They were not measured here" in page


def test_quoted_tables_equal_the_paper():
    quoted = {**TABLE_3[1], **TABLE_4[1]}
    assert {name: quoted[name] for name in PAPER} == PAPER
    assert all(len(values) == len(columns) for columns, rows in (TABLE_3, TABLE_4) for values in rows.values())


def job(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["jobs/report.py", *arguments])
    capsys.readouterr()
    status = 0
    try:
        runpy.run_path(str(ROOT / "jobs/report.py"), run_name="__main__")
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


def test_the_job(two, tmp_path, mlflow_store, monkeypatch, capsys):
    out = str(tmp_path / "page.html")
    own, other = (f"evaluations.{Path(uri).name}={uri}" for uri in two)
    status, printed, err = job(monkeypatch, capsys, f"out={out}", own, other)
    assert (status, printed, err) == (0, f"{out}\n", "")
    assert Path(out).read_text().startswith("<!doctype html>")
    status, printed, err = job(monkeypatch, capsys, f"out={out}", f"evaluations.ours={tmp_path}/absent")
    assert status == 2
    assert err.startswith("error: no finished evaluate artifact at ")
    assert err.count("\n") == 1
    status, printed, err = job(
        monkeypatch, capsys, f"out={out}", f"evaluations.ours={'0' * 32}", f"tracking_uri={mlflow_store}"
    )
    last = err.splitlines()[-1]  # MLflow reports its new database before
    assert status == 2
    assert last.startswith(f"error: {'0' * 32}: Run with id")
    assert "set tracking_uri" in last
    for arguments, message in [
        ([], "out: missing"),
        ([f"out={out}", "evaluations={}"], "evaluations={}: dictionary should have at least 1 item"),
        (["--tracking-uri", mlflow_store], "--tracking-uri: settings are written key=value, like tracking_uri=VALUE"),
    ]:
        status, printed, err = job(monkeypatch, capsys, *arguments)
        assert status == 2, err
        assert err.startswith(f"error: {message}"), err
        assert err.count("\n") == 1, err


def test_a_run_of_mlflow_is_found(two, tmp_path, mlflow_store, monkeypatch, capsys):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow_store)
    run = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "a"))).info.run_id
    arguments = f"out={tmp_path}/o.html", f"evaluations.night={run}", f"tracking_uri={mlflow_store}"
    assert job(monkeypatch, capsys, *arguments)[0] == 2
    client.set_tag(run, "artifact", two[0])
    status, *_ = job(monkeypatch, capsys, *arguments)
    assert status == 0
    assert "<td>night</td>" in (tmp_path / "o.html").read_text()


def test_it_can_be_read_in_a_browser(two, tmp_path, browser):
    page = tmp_path / "page.html"
    page.write_text(render([read_evaluation(Path(uri).name, uri) for uri in two]))
    browser.get(f"file://{page}")
    assert browser.title == "AsymFlow: evaluations compared"
    assert not browser.get_log("browser")
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(loaded)
    texts = "return [...document.querySelectorAll('td.best')].map(cell => cell.textContent.trim())"
    best = browser.execute_script(texts)
    assert len(best) == 1
    assert best[0].startswith("12.9")
    screenshot = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
    assert len(set(screenshot.convert("RGB").resize((64, 64)).getdata())) > 10


def test_the_steps_of_the_workflow_are_shown_with_their_times(two, tmp_path):
    rows = [
        {"name": "curate", "needs": [], "state": "made", "started": 50.0, "seconds": 10.0},
        {
            "name": "encode",
            "needs": ["curate"],
            "state": "failed",
            "started": 60.0,
            "seconds": 30.0,
            "reason": "<full>",
        },
        {"name": "evaluate", "needs": ["encode"], "state": "skipped"},
    ]
    with pytest.raises(ConfigError, match=r"workflow='.*': .* has no steps\.json; a workflow writes it when it ends"):
        read_workflow(str(tmp_path))
    (tmp_path / "steps.json").write_text(json.dumps(rows))
    timeline = read_workflow(str(tmp_path))
    assert [(bar.left, bar.width) for bar in bars_of(timeline)] == [(0, 25), (25, 75), (0, 0)]
    page = render([read_evaluation("ours", two[0])], timeline)
    assert "The workflow" in page
    assert 'title="&lt;full&gt;">failed' in page
    assert "left: 25.0%; width: 75.0%" in page
    assert "The workflow" not in render([read_evaluation("ours", two[0])])
