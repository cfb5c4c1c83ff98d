"""The moving average of a training, finished or not."""

from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from pipelines.core import storage
from pipelines.core.artifacts import MANIFEST, MissingArtifact, load_artifact
from pipelines.train.checkpoint import folder_of, list_checkpoints, load_newest
from pipelines.train.metrics_log import AVERAGE


class Average(NamedTuple):
    """Named as the model's `trainable()`."""

    step: int
    values: dict[str, Tensor]
    final: bool
    """Of the finished artifact"""


def read_average(artifact: str, step: int | None = None, made_by: str = "finetune") -> Average:
    """That of the training in the folder `artifact`, at `step`: the finished one's, else a checkpoint's. Without `step`
    the last that stands.

    Raises:
        MissingArtifact: there is no such checkpoint.
        DamagedCheckpoint: the one of `step` has other bytes than were written.
    """
    if storage.exists(storage.join(artifact, MANIFEST)):
        finished = load_artifact(artifact, made_by)
        last = finished.manifest["config"]["optim"]["steps"]
        if step in (None, last):
            return Average(last, storage.read_file(finished.file(AVERAGE), load_file), final=True)
    if step is None:
        newest = load_newest(folder_of(artifact), ["average"])
        if newest is None:
            raise MissingArtifact(f"no whole checkpoint stands yet in {artifact}: wait for one, or run the {made_by}")
        return Average(newest[0].step, newest[1]["average"], final=False)
    checkpoints = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(folder_of(artifact))}
    if step not in checkpoints:
        raise MissingArtifact(f"no checkpoint of step {step} in {artifact}; there are: {sorted(checkpoints) or 'none'}")
    return Average(step, checkpoints[step].read("average"), final=False)
