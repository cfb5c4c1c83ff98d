"""Read the moving average of a training from its artifact or a checkpoint."""

from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from pipelines.core import storage
from pipelines.core.artifacts import MANIFEST, MissingArtifact, load_artifact
from pipelines.train.checkpoint import folder_of, list_checkpoints, load_newest
from pipelines.train.metrics_log import AVERAGE


class Average(NamedTuple):
    """A moving average, named like the model's `trainable()`."""

    step: int
    values: dict[str, Tensor]
    final: bool
    """Whether it is from the finished artifact"""


def read_average(artifact: str, step: int | None = None, made_by: str = "finetune") -> Average:
    """Return the moving average of the training in the folder `artifact`.

    Args:
        artifact: folder of the training's artifact, finished or not.
        step: optimizer step; None for the newest.
        made_by: name of the step that trains.

    Raises:
        MissingArtifact: there is no such checkpoint.
        DamagedCheckpoint: the checkpoint of `step` is damaged.
    """
    if storage.exists(storage.join(artifact, MANIFEST)):
        finished = load_artifact(artifact, made_by)
        last = finished.manifest["config"]["optim"]["steps"]
        if step in (None, last):
            return Average(last, storage.read_file(finished.file(AVERAGE), load_file), final=True)
    if step is None:
        newest = load_newest(folder_of(artifact), ["average"])
        if newest is None:
            raise MissingArtifact(f"{artifact} has no complete checkpoint yet: wait for one, or run the {made_by}")
        return Average(newest[0].step, newest[1]["average"], final=False)
    checkpoints = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(folder_of(artifact))}
    if step not in checkpoints:
        raise MissingArtifact(f"no checkpoint of step {step} in {artifact}; there are: {sorted(checkpoints) or 'none'}")
    return Average(step, checkpoints[step].read("average"), final=False)
