"""The training losses as modules: a batch's tensors in, the loss and its terms by image out."""

from asymflow.objectives.finetune import FinetuneObjective
from asymflow.objectives.pretrain import PretrainObjective

__all__ = ["FinetuneObjective", "PretrainObjective"]
