"""Matrices of a network and their cost in floating-point operations, from shapes alone.

A multiplication and an addition are two operations (FLOPs). Counted are linear layers, 2 x inputs x outputs per token,
and the two products of attention, 4 x width x tokens^2 in all; norms, rotations and activations (below 1 %) are not.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Stream = Literal["image", "text", "both", "one"]
"""Input of a layer: image tokens, text tokens, both, or one vector per image (the conditions)"""
Quantization = Literal["nf4", "int8", "fp8"]
"""How a frozen linear layer may be stored; see `asymflow.models.quantized`"""
GgufType = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""Types of GGUF that `asymflow.adapters.single_file` writes, by size"""
NF4_BLOCK = 64
"""Values of a quantized weight that share a scale, in one row: bitsandbytes' CPU kernels take no block of two rows"""
_IN_BLOCK = re.compile(r"^detailer\.|(?:blocks|layers|refiner)(?:\.image)?\.\d+\.")


class Linear(NamedTuple):
    """Linear layer, by its name in the model."""

    name: str
    """Name in the model"""
    inputs: int
    """Width of the input"""
    outputs: int
    """Width of the output"""
    stream: Stream
    """Tokens that pass the layer"""
    first: bool = False
    """No trained layer comes before it, so it passes no gradient on"""
    trained: bool = False
    """Whether the matrix is trained"""
    bias: bool = False
    """Whether there is a bias"""
    uses: int = 1
    """Applications per token: of a convolution, whose inputs are those of its kernel, the pixels of a patch"""

    @property
    def values(self) -> int:
        """Number of weights and biases."""
        return self.inputs * self.outputs + self.bias * self.outputs


class Attention(NamedTuple):
    """Attention of a block, all heads together."""

    width: int
    """Width of all heads together"""
    stream: Stream
    """Tokens that attend to each other"""
    first: bool = False
    """No trained layer comes before it, so it passes no gradient on"""


class Vectors(NamedTuple):
    """Parameters that are not matrices: norms and learned tokens."""

    name: str
    """Name in the model, or what the names of several start with"""
    values: int
    """Number of values"""
    trained: bool = False
    """Whether they are trained"""


@dataclass(frozen=True)
class Network:
    """Layers that an evaluation of one image passes through."""

    linears: tuple[Linear, ...]
    """Linear layers, in order"""
    attentions: tuple[Attention, ...]
    """Attentions, in order"""
    vectors: tuple[Vectors, ...] = ()
    """The other parameters"""

    @property
    def parts(self) -> "list[Linear | Vectors]":
        """All that has parameters."""
        return [*self.linears, *self.vectors]

    def __add__(self, other: "Network") -> "Network":
        return Network(self.linears + other.linears, self.attentions + other.attentions, self.vectors + other.vectors)


class Flops(NamedTuple):
    """Floating-point operations per image."""

    forward: float
    """Forward pass"""
    backward: float
    """Gradients of activations, back to the first trained layer, and of the trained matrices"""
    recomputed: float
    """Operations that gradient checkpointing repeats: the blocks and L2P's detailer"""


class BlockMemory(NamedTuple):
    """Memory of the blocks of one kind."""

    blocks: int
    """Number of blocks"""
    stream: Stream
    """Tokens that pass a block"""
    width: int
    """Width of a block's input, which gradient checkpointing stores"""
    kept: float
    """Values per token that a block stores for its backward pass"""


def count_flops(network: Network, image_tokens: int, text_tokens: int) -> Flops:
    """Count the operations for one image.

    The modulations are assumed to pass a gradient, which needs LoRA on the time embedding or a trained last norm. What
    attention kernels recompute inside their backward pass is not counted.

    Args:
        network: The network. For a network that is not trained, ignore `backward` and `recomputed`.
        image_tokens: Number of image tokens.
        text_tokens: Number of text tokens.

    Returns:
        The operations.
    """
    tokens = tokens_by_stream(image_tokens, text_tokens)
    products = [
        (layer, 2.0 * layer.inputs * layer.outputs * layer.uses * tokens[layer.stream]) for layer in network.linears
    ]
    attentions = [(layer, 4.0 * layer.width * tokens[layer.stream] ** 2) for layer in network.attentions]
    attention = sum(n for _, n in attentions)
    return Flops(
        forward=sum(n for _, n in products) + attention,
        backward=sum(n * ((not layer.first) + layer.trained) for layer, n in products)
        + 2 * sum(n for layer, n in attentions if not layer.first),
        recomputed=sum(n for layer, n in products if _IN_BLOCK.search(layer.name)) + attention,
    )


def tokens_by_stream(image_tokens: int, text_tokens: int) -> dict[Stream, int]:
    """Return the number of tokens in each stream.

    Args:
        image_tokens: Number of image tokens.
        text_tokens: Number of text tokens.

    Returns:
        Numbers by stream.
    """
    return {"image": image_tokens, "text": text_tokens, "both": image_tokens + text_tokens, "one": 1}


def lora_layers(linears: Iterable[Linear], targets: str, rank: int) -> Iterator[Linear]:
    """Return the matrices of LoRA.

    Args:
        linears: Layers of the network.
        targets: Pattern of the whole names of adapted layers.
        rank: Rank of the adapters; 0: no LoRA.

    Yields:
        Two matrices per adapted layer.
    """
    for layer in linears:
        if rank and re.fullmatch(targets, layer.name):
            yield Linear(f"{layer.name}.lora_A", layer.inputs, rank, layer.stream, layer.first, trained=True)
            yield Linear(f"{layer.name}.lora_B", rank, layer.outputs, layer.stream, trained=True)
