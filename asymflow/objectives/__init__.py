"""Training losses as modules: from the tensors of a batch to the loss and its terms per image."""

from asymflow.objectives.finetune import FinetuneObjective
from asymflow.objectives.pretrain import PretrainObjective

__all__ = ["FinetuneObjective", "PretrainObjective"]
