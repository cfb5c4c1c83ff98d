"""Export of runs that exist only as files: no Ray, no base weights, no network."""

import json
import runpy
import socket
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow_server import serve_mlflow
from safetensors.torch import load_file, save_file

from asymflow.adapters import (
    CONFIG,
    SUBSPACE,
    WEIGHTS,
    load_adapter,
    read_adapter,
    read_defaults,
    save_adapter,
)
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace, pca_basis
from pipelines.core import storage
from pipelines.core.artifacts import MissingArtifact, write_manifest
from pipelines.core.config import ConfigError, validate
from pipelines.core.preflight import check_tracking
from pipelines.core.step import find_inputs, identify
from pipelines.core.tracking import open_run
from pipelines.train.checkpoint import DamagedCheckpoint, folder_of, write_checkpoint
from pipelines.train.finetune.card import CARD
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export import check_export, export_adapter, read_average, register, sampling_defaults
from pipelines.train.finetune.model import adapt
from pipelines.train.finetune.step import STEP
from pipelines.train.metrics_log import AVERAGE

ROOT = Path(__file__).parents[4]
SIZE = (48, 64)
"""(height, width) of the bucket that is nearest to a square, and of those the largest"""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail on any request to a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    connect = socket.socket.connect

    def local_only(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"the network was asked for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return one MLflow store for all tests: creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


class Run:
    """A finetune's inputs, base and folder on disk, and its models."""

    def __init__(self, folder, make_transformer, store, **changes):
        self.make_transformer = make_transformer
        base = folder / "base"
        make_transformer(96).save_config(base / "transformer")
        (base / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
        for step in ("curate", "encode", "basis"):
            config = {"buckets": [[16, 64], [64, 48], [32, 24]], "text": "stored"}
            manifest = {"id": step, "step": step, "config": config}
            storage.write_bytes(f"{folder}/{step}/manifest.json", json.dumps(manifest).encode())
        X = torch.randn(768, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.subspace = Subspace(pca_basis(X @ X.T, 128).float(), 2.4, "channel_first", RELEASED, {"method": "pca"})
        self.subspace.save(folder / "basis/subspace.safetensors")
        self.tree = {
            "run": {"storage": str(folder / "runs"), "experiment": folder.name, "tracking_uri": store},
            "curated": str(folder / "curate"),
            "encoded": str(folder / "encode"),
            "basis": str(folder / "basis"),
            "base": str(base),
            "optim": {"steps": 9},
            "lora": {"rank": 4, "dropout": 0.0},
            "export": {"alias": "newest"},
            **changes,
        }
        self.config = folder / "config.yaml"
        self.config.write_text(json.dumps(self.tree))  # JSON is YAML
        self.settings = validate(FinetuneSettings, self.tree)
        self.id = identify(STEP, self.settings, find_inputs(STEP, self.settings))
        self.folder = f"{folder}/runs/finetune/{self.id}"

    def start(self):
        with open_run(self.settings.run, "finetune") as tracker:
            storage.write_bytes(f"{self.folder}/.run.json", json.dumps({"mlflow_run": tracker.run_id}).encode())
        return tracker

    def model(self, seed):
        model = adapt(self.settings, self.make_transformer(96), self.subspace)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return model

    def average(self, seed):
        return {name: p.detach().clone() for name, p in self.model(seed).trainable().items()}

    def checkpoint(self, step, attempt="a"):
        """Write a checkpoint whose average is the model seeded with its step."""
        average = self.average(step)
        tensors = {"trainable": {n: 0 * v for n, v in average.items()}, "average": average}
        return write_checkpoint(folder_of(self.folder), tensors, {"step": step}, attempt)

    def finish(self):
        storage.write_file(f"{self.folder}/{AVERAGE}", lambda path: save_file(self.average(9), path))
        ids = {"curated": "curate", "encoded": "encode", "basis": "basis"}
        return write_manifest(self.folder, "finetune", self.id, self.settings, ids, {})

    def same(self, adapter, seed):
        """Return whether the adapter equals the one saved from the model with these values."""
        expected = self.config.parent / f"expected_{seed}"
        save_adapter(self.model(seed), expected, sampling_defaults(self.settings, SIZE))
        return all((Path(adapter) / f.name).read_bytes() == f.read_bytes() for f in expected.iterdir())


@pytest.fixture
def make_run(tmp_path, tiny_transformer, store):
    return lambda **changes: Run(tmp_path, tiny_transformer, store, **changes)


@pytest.fixture
def job(monkeypatch, capsys):
    """Run `python jobs/export.py ARGUMENTS`.

    Returns (exit status, last line or None, stderr). Starting Ray is an error.
    """

    def no_ray(run):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipelines.core.step.start_ray", no_ray)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jobs/export.py", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / "jobs/export.py"), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code
        out, err = capsys.readouterr()
        return status, json.loads(out.splitlines()[-1]) if out else None, err

    return run


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("asymflow", {WEIGHTS, CONFIG, SUBSPACE}),
        ("ddt", {WEIGHTS, CONFIG, SUBSPACE}),
        ("l2p", {WEIGHTS, CONFIG, SUBSPACE}),
        ("latent", {WEIGHTS, CONFIG}),
    ],
)
def test_files_are_those_that_the_model_itself_saves(make_run, tmp_path, kind, files):
    sizes = {"ddt": {"blocks": 1, "heads": 2, "head_width": 8}, "l2p": {"blocks": 1, "channels": 4}}
    lora = None if kind == "l2p" else {"rank": 4, "alpha": 6, "dropout": 0.0}
    run = make_run(model=kind, loss={"kind": "flow_matching"}, lora=lora, **sizes)
    adapter = export_adapter(run.settings, run.subspace, run.average(3), str(tmp_path / "out"), SIZE)
    assert adapter == f"{tmp_path}/out/adapter"
    assert {f.name for f in Path(adapter).iterdir()} == {CARD, *files}
    assert run.same(adapter, 3)
    load_adapter(run.model(1), adapter)


def test_files_on_s3(make_run, tmp_path, s3):
    run = make_run()
    adapter = export_adapter(run.settings, run.subspace, run.average(3), s3, SIZE)
    assert adapter == f"{s3}/adapter"
    local = Path(export_adapter(run.settings, run.subspace, run.average(3), str(tmp_path), SIZE))
    assert len(storage.list_files(adapter)) == 4
    assert all(storage.read_bytes(f"{adapter}/{f.name}") == f.read_bytes() for f in local.iterdir())
    register(run.start(), adapter, run.settings, run.folder, 3)
    loaded = mlflow.diffusers.load_model(_location(run, f"models:/{run.tree['run']['experiment']}@newest"))
    assert load_file(Path(loaded.adapter_path) / WEIGHTS).keys() == load_file(local / WEIGHTS).keys()


def _location(run, uri):
    name, alias = uri.removeprefix("models:/").split("@")
    client = mlflow.MlflowClient(run.settings.run.tracking_uri)
    return client.get_model_version_download_uri(name, client.get_model_version_by_alias(name, alias).version)


def test_average_of_a_run(make_run):
    run = make_run()
    with pytest.raises(MissingArtifact, match="has no complete checkpoint yet"):
        read_average(run.folder)
    run.checkpoint(3)
    newest = run.checkpoint(6)
    for wanted, step in ((None, 6), (3, 3)):
        average = read_average(run.folder, wanted)
        assert (average.step, average.final) == (step, False)
        assert all(torch.equal(average.values[n], v) for n, v in run.average(step).items())
    with pytest.raises(MissingArtifact, match=r"no checkpoint of step 4 in .*; there are: \[3, 6\]"):
        read_average(run.folder, 4)
    (Path(newest.uri) / "average.safetensors").write_bytes(b"damaged")
    assert read_average(run.folder).step == 3
    with pytest.raises(DamagedCheckpoint):
        read_average(run.folder, 6)
    run.finish()
    assert read_average(run.folder)[::2] == (9, True)
    assert read_average(run.folder, 9).final
    assert read_average(run.folder, 3).final is False


def test_job_exports_a_running_run_and_then_the_finished_one(make_run, job, tmp_path):
    run = make_run()
    source = f"finetune={run.config}"
    tracker = run.start()
    name, client = run.settings.run.experiment, tracker.client
    status, done, err = job(source)
    assert (status, done) == (1, None)
    assert err == f"error: {run.folder} has no complete checkpoint yet: wait for one, or run the finetune\n"

    run.checkpoint(3)
    run.checkpoint(6)
    status, done, _ = job(source)
    assert status == 0
    assert set(done) == {"adapter", "step", "registered"}
    assert done["adapter"] == f"{tmp_path}/runs/exports/{run.id}/00000006/adapter"
    assert run.same(done["adapter"], 6)
    assert (done["step"], done["registered"]) == (6, f"{name}/1")

    again = job(source)[1]
    assert again == done
    assert len(client.search_model_versions(f"run_id='{tracker.run_id}'")) == 1

    out = f"out={tmp_path}/out"
    status, earlier, _ = job(source, "checkpoint=3", out, "add_to_registry=false", "changes.optim.lr=1e-4")
    assert status == 0
    assert earlier == {"adapter": f"{tmp_path}/out/adapter", "step": 3, "registered": None}
    assert run.same(earlier["adapter"], 3)
    assert job(source, "checkpoint=4")[0] == 1

    run.finish()
    done = job(source)[1]
    assert done == {"adapter": f"{run.folder}/adapter", "step": 9, "registered": f"{name}/2"}
    assert run.same(done["adapter"], 9)
    version = client.get_model_version_by_alias(name, "newest")
    assert (str(version.version), version.run_id, version.status) == ("2", tracker.run_id, "READY")
    base = str(tmp_path / "base")
    (logged,) = [o.model_id for o in client.get_run(tracker.run_id).outputs.model_outputs if o.step == 9]
    expected = {"artifact": run.folder, "base": base, "kind": "asymflow", "step": "9", "model_id": logged}
    assert version.tags == expected


def test_job_writes_other_formats_beside_the_released_one(make_run, job, tmp_path):
    run = make_run()
    run.start()
    run.checkpoint(6)
    status, done, _ = job(f"finetune={run.config}", "format=comfyui", "add_to_registry=false")
    exports = f"{tmp_path}/runs/exports/{run.id}/00000006"
    assert (status, done["adapter"], done["comfyui"]) == (0, f"{exports}/adapter", f"{exports}/comfyui")
    assert run.same(done["adapter"], 6)
    assert done["registered"] is None
    released, comfyui = (read_adapter(done[name]) for name in ("adapter", "comfyui"))
    assert released[1] == comfyui[1]
    assert released[0].keys() == comfyui[0].keys()
    assert all(torch.equal(released[0][name], tensor) for name, tensor in comfyui[0].items())
    assert read_defaults(comfyui_folder := done["comfyui"]) == sampling_defaults(run.settings, SIZE)
    # and back, from a folder alone
    status, back, _ = job(f"adapter={comfyui_folder}", f"out={tmp_path}/back")
    assert (status, back) == (0, {"adapter": f"{tmp_path}/back"})
    assert run.same(back["adapter"], 6)
    assert (tmp_path / "back/subspace.pth").is_file()


def test_model_in_the_registry_is_the_adapter(make_run, tmp_path, monkeypatch):
    run = make_run()
    tracker = run.start()
    adapter = export_adapter(run.settings, run.subspace, run.average(9), str(tmp_path), SIZE)
    other = f"sqlite:///{tmp_path}/other.db"
    mlflow.set_tracking_uri(other)  # the process-wide registry, not the run's
    try:
        register(tracker, adapter, run.settings, run.folder, 9)
        assert mlflow.get_tracking_uri() == other
        assert mlflow.active_run() is None
        assert not (tmp_path / "other.db").exists()
    finally:
        mlflow.set_tracking_uri(None)
    loaded = mlflow.diffusers.load_model(_location(run, f"models:/{run.settings.run.experiment}@newest"))
    assert loaded.base_model == str(tmp_path / "base")
    assert loaded.base_model_revision is None
    model = run.model(1)
    load_adapter(model, loaded.adapter_path)
    assert all(torch.equal(model.trainable()[n], v.half().float()) for n, v in run.average(9).items())
    assert torch.equal(Subspace.load(Path(loaded.adapter_path) / SUBSPACE).A, run.subspace.A)
    outputs = tracker.client.get_run(tracker.run_id).outputs.model_outputs
    assert [output.step for output in outputs] == [9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alias": "latest"}, "export.alias='latest': MLflow reserves"),
        ({"alias": "v3"}, "export.alias='v3': MLflow reserves"),
        ({"alias": "newest", "model_name": "a/b"}, "export.model_name='a/b': a name in MLflow's registry has no '/'"),
    ],
)
def test_names_that_mlflow_refuses(make_run, job, changes, message):
    run = make_run(export=changes)
    with pytest.raises(ConfigError, match=message):
        check_export(run.settings)
    assert job(f"finetune={run.config}")[0] == 2


def test_bad_arguments(make_run, job, tmp_path):
    run = make_run()
    check_tracking(run.settings.run)  # MLflow reports the creation of its database on stderr
    source, adapter, out = f"finetune={run.config}", f"adapter={tmp_path}", f"out={tmp_path}/out"
    for arguments, message in [
        ([], "give either finetune (the configuration file of a run) or adapter (a folder to convert)"),
        ([source, adapter, out], "give either finetune"),
        ([f"finetune={tmp_path}/absent.yaml"], f"config file '{tmp_path}/absent.yaml' does not exist"),
        ([adapter, "format=comfyui"], "out: missing, the folder or s3:// URI to write to"),
        ([adapter, out, "format=merged"], "base: missing, the folder of the latent model"),
        ([adapter, out, "checkpoint=3"], "checkpoint: belongs to finetune; an adapter has none"),
        ([source, "changes.optim.lr=0"], f"finetune='{run.config}' with changes: optim.lr=0"),
        ([source, f"changes.basis={tmp_path}/absent"], "basis: no finished basis artifact"),
        ([source, f"changes.base={tmp_path}/absent"], "base="),
        ([run.config, "--step", 3], "--step: settings are written key=value, like checkpoint=STEP; --help lists them"),
        ([run.config, "--no-register"], "--no-register: settings are written key=value, like add_to_registry=false"),
        ([tmp_path, "--format=merged"], "--format=merged: settings are written key=value, like format=merged"),
    ]:
        status, _, err = job(*arguments)
        assert status == 2, err
        assert err.startswith(f"error: {message}"), err
        assert err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()
    status, _, err = job(adapter, out, "format=comfyui")
    assert status == 1
    assert err.startswith(f"error: there is no adapter in {tmp_path}")
    assert err.count("\n") == 1
    run.checkpoint(3)
    message = f"error: {run.folder} has no MLflow run to register under: run the finetune first\n"
    assert job(source)[::2] == (1, message)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start an MLflow server that stores artifacts itself."""
    with serve_mlflow(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.mark.slow
def test_on_a_server(make_run, job, server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run = make_run(run={**make_run().tree["run"], "tracking_uri": server, "experiment": "on_a_server"})
    tracker = run.start()
    run.checkpoint(3)
    assert job(f"finetune={run.config}")[1]["registered"] == "on_a_server/1"
    run.checkpoint(6)
    assert [job(f"finetune={run.config}")[1]["registered"] for _ in range(2)] == ["on_a_server/2", "on_a_server/2"]
    version = tracker.client.get_model_version_by_alias("on_a_server", "newest")
    assert str(version.version) == "2"
    assert version.tags["step"] == "6"
    mlflow.set_tracking_uri(server)
    try:
        loaded = mlflow.diffusers.load_model("models:/on_a_server@newest")
    finally:
        mlflow.set_tracking_uri(None)
    assert run.same(loaded.adapter_path, 6)
