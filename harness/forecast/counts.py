"""AlexNet in numbers: what each layer computes, holds and hands on, and what crosses between ranks in each scheme."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config import PARALLEL

SCHEMES = PARALLEL
BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Layer:
    """Counts of one image, forward, as printed in the paper; `inputs` and `outputs` are numbers before any pool."""

    name: str
    macs: int
    parameters: int
    inputs: int
    outputs: int
    own_column: bool = False

    @property
    def kind(self) -> str:
        return "conv1" if self.name == "conv1" else "conv2 to conv5" if self.is_conv else "fc6 to fc8"

    @property
    def normalised(self) -> bool:
        return self.name in ("conv1", "conv2")

    @property
    def products(self) -> int:
        """Forward, gradient of the weights, gradient of the inputs, which conv1 needs not."""
        return 2 if self.name == "conv1" else 3

    @property
    def is_conv(self) -> bool:
        return self.name.startswith("conv")


ALEXNET = (
    Layer("conv1", 105_415_200, 34_944, 224 * 224 * 3, 55 * 55 * 96),
    Layer("conv2", 223_948_800, 307_456, 27 * 27 * 96, 27 * 27 * 256, own_column=True),
    Layer("conv3", 149_520_384, 885_120, 13 * 13 * 256, 13 * 13 * 384),
    Layer("conv4", 112_140_288, 663_936, 13 * 13 * 384, 13 * 13 * 384, own_column=True),
    Layer("conv5", 74_760_192, 442_624, 13 * 13 * 384, 13 * 13 * 256, own_column=True),
    Layer("fc6", 37_748_736, 37_752_832, 9216, 4096),
    Layer("fc7", 16_777_216, 16_781_312, 4096, 4096),
    Layer("fc8", 4_096_000, 4_097_000, 4096, 1000),
)
PARAMETERS = sum(layer.parameters for layer in ALEXNET)
CONV_PARAMETERS = sum(layer.parameters for layer in ALEXNET if layer.is_conv)
FC_PARAMETERS = PARAMETERS - CONV_PARAMETERS
CLASSES = 1000
BUCKETS = 10  # all-reduces of 25 MiB for the gradients of the whole network
# Of the paper's two GPUs, the first, which also holds fc8, and the second.
COLUMN_PARAMETERS = (32_531_112, 28_434_112)
# What a column sends the other forward, numbers an image: into conv3, fc6 and fc7; the second also sends its fc7 to fc8.
COLUMN_SENDS = (13 * 13 * 128 + 6 * 6 * 128 + 2048, 13 * 13 * 128 + 6 * 6 * 128 + 2048 + 2048)


def training_macs() -> int:
    """Multiply-adds an image: three times the forward pass, less conv1's gradient by the image."""
    return 3 * sum(layer.macs for layer in ALEXNET) - ALEXNET[0].macs


# --- what crosses between ranks -----------------------------------------------------------------------------------


def columns_numbers_an_image() -> int:
    """Activations that both columns together send forward; as many gradients come back."""
    return sum(COLUMN_SENDS)


def hybrid_numbers_an_image(ranks: int, classes: int = CLASSES) -> int:
    """Of one image, forward, what all ranks together send: features into fc6, units into fc7, partial sums of fc8."""
    return (9216 + 4096 + classes) * (ranks - 1)


def gathered_bytes(ranks: int, images_per_gpu: int, word_bytes: int) -> int:
    """What hybrid holds on every rank of all ranks' images: features and fc6's units."""
    return (9216 + 4096) * ranks * images_per_gpu * word_bytes


def ring_bytes_a_rank(parameters: int, ranks: int) -> float:
    """What each rank sends to all-reduce fp32 gradients around a ring."""
    return 2 * (ranks - 1) / ranks * parameters * 4


@dataclass(frozen=True)
class Sent:
    """What the busiest rank sends in a training step, and in how many collectives."""

    gradient_bytes: float
    gradient_collectives: int
    activation_bytes: float
    activation_collectives: int


def sent(scheme: str, ranks: int, images_per_gpu: int, word_bytes: int) -> Sent:
    """`images_per_gpu` as in a row: a pair of columns computes twice as many."""
    if scheme == "columns" and ranks > 1:
        replicas = ranks // 2
        gradients = ring_bytes_a_rank(max(COLUMN_PARAMETERS), replicas)
        return Sent(
            gradients, BUCKETS if replicas > 1 else 0, 2 * max(COLUMN_SENDS) * 2 * images_per_gpu * word_bytes, 8
        )
    if scheme == "hybrid" and ranks > 1:
        activations = 2 * hybrid_numbers_an_image(ranks) * images_per_gpu * word_bytes
        return Sent(ring_bytes_a_rank(CONV_PARAMETERS + CLASSES, ranks), 1, activations, 6)
    return Sent(ring_bytes_a_rank(PARAMETERS, ranks), BUCKETS if ranks > 1 else 0, 0, 0)


def exchanged_bytes(scheme: str, ranks: int, images_per_gpu: int, word_bytes: int, classes: int = CLASSES) -> float:
    """Bytes that all ranks send in a training step; for fewer classes fc8 is smaller."""
    if ranks == 1:
        return 0
    fewer, images = (CLASSES - classes) * (4096 + 1), ranks * images_per_gpu
    if scheme == "columns":
        first, second = (ring_bytes_a_rank(parameters, ranks // 2) for parameters in (COLUMN_PARAMETERS[0] - fewer, COLUMN_PARAMETERS[1]))  # fmt: skip
        return (first + second) * (ranks // 2) + 2 * columns_numbers_an_image() * images * word_bytes
    if scheme == "hybrid":
        activations = 2 * hybrid_numbers_an_image(ranks, classes) * images * word_bytes
        return activations + ranks * ring_bytes_a_rank(CONV_PARAMETERS + classes, ranks)
    return ranks * ring_bytes_a_rank(PARAMETERS - fewer, ranks)


# --- what a rank holds ---------------------------------------------------------------------------------------------


def parts(scheme: str, ranks: int, images_per_gpu: int, layer: Layer) -> tuple[int, int]:
    """Images that a rank computes in a layer, and in how many parts the layer lies; the busiest rank's."""
    if ranks > 1 and scheme == "columns":
        return 2 * images_per_gpu, 1 if layer.name == "fc8" else 2
    if ranks > 1 and scheme == "hybrid" and not layer.is_conv:
        return ranks * images_per_gpu, ranks
    return images_per_gpu, 1


def parameters_held(scheme: str, ranks: int) -> float:
    if ranks > 1 and scheme == "columns":
        return max(COLUMN_PARAMETERS)
    return CONV_PARAMETERS + FC_PARAMETERS / ranks if scheme == "hybrid" else PARAMETERS
