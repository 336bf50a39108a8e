"""What the predictions of `harness.forecast.roofline` start from: intervals, devices, links, and everything that is assumed.

A figure says where it is from: `datasheet` (the vendor's, dense, never sparse), `published` (someone's measurement),
`measured` (by `python -m harness predict --measure`), `counted` (from the network or our kernels) or `assumed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KINDS = ("datasheet", "published", "measured", "counted", "assumed")


@dataclass(frozen=True)
class Interval:
    """A quantity, and the range that it is thought to lie in nine times out of ten."""

    low: float
    middle: float
    high: float

    def __post_init__(self) -> None:
        assert 0 <= self.low <= self.middle <= self.high, self

    def times(self, number: float) -> Interval:
        return Interval(self.low * number, self.middle * number, self.high * number)


@dataclass(frozen=True)
class Figure(Interval):
    kind: str
    source: str


def datasheet(value: float, source: str) -> Figure:
    return Figure(value, value, value, "datasheet", source)


def published(low: float, middle: float, high: float, source: str) -> Figure:
    return Figure(low, middle, high, "published", source)


def measured(low: float, middle: float, high: float, source: str) -> Figure:
    return Figure(low, middle, high, "measured", source)


def counted(low: float, middle: float, high: float, source: str) -> Figure:
    return Figure(low, middle, high, "counted", source)


def assumed(low: float, middle: float, high: float, source: str) -> Figure:
    return Figure(low, middle, high, "assumed", source)


# --- links --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """Between two ranks: gigabytes/s each way by its datasheet, and the share of them that a collective reaches."""

    name: str
    gb_per_s: Figure
    share: Figure
    collective_us: Figure


NCCL_TESTS = "docs.alayanew.com, NCCL-tests in practice: bus bandwidth of 8 GPUs, A100 230 to 250, H100 460 to 480 GB/s with in-switch sums"
NVLINK_SHARE = published(0.55, 0.75, 0.85, f"{NCCL_TESTS}; less where buckets are small")
NVLINK_US = assumed(8, 15, 40, "start of a collective inside a node")
NVLINK3 = Link("NVLink 3", datasheet(300, "A100: 600 GB/s both ways"), NVLINK_SHARE, NVLINK_US)
NVLINK4 = Link("NVLink 4", datasheet(450, "H100, H200: 900 GB/s both ways"), NVLINK_SHARE, NVLINK_US)
NVLINK5 = Link("NVLink 5", datasheet(900, "B200: 1,800 GB/s both ways"), NVLINK_SHARE, NVLINK_US)
PCIE_SHARE = assumed(0.4, 0.65, 0.85, "peers that reach each other directly; 55 of 63 GB/s are published for gen 5")
PCIE_US = assumed(10, 25, 60, "start of a collective over PCIe")
PCIE4 = Link("PCIe 4 x16", datasheet(32, "PCIe 4 x16, each way"), PCIE_SHARE, PCIE_US)
PCIE5 = Link("PCIe 5 x16", datasheet(64, "PCIe 5 x16, each way"), PCIE_SHARE, PCIE_US)
PCIE4_BY_HOST = Link(
    "PCIe 4 x16 by way of the host", PCIE4.gb_per_s,
    assumed(0.12, 0.35, 0.65, "GeForce drivers let no GPU reach another's memory: everything passes through the host's"),
    assumed(15, 40, 100, "start of a collective through host memory"),
)  # fmt: skip
ETHERNET_100G = Link(
    "Ethernet 100G", datasheet(12.5, "100 Gbit/s each way"),
    assumed(0.4, 0.7, 0.9, "plain TCP at the low end, RDMA at the high"),
    assumed(30, 60, 200, "start of a collective between nodes"),
)  # fmt: skip
INFINIBAND_400G = Link(
    "InfiniBand 400G a GPU", datasheet(50, "400 Gbit/s each way"),
    assumed(0.55, 0.8, 0.93, "a share of the line rate that large messages reach"),
    assumed(10, 20, 60, "added to the start of a collective for each doubling of nodes"),
)  # fmt: skip
LINKS = (NVLINK3, NVLINK4, NVLINK5, PCIE4, PCIE5, PCIE4_BY_HOST, ETHERNET_100G, INFINIBAND_400G)

# --- what is assumed ----------------------------------------------------------------------------------------------

EVERYWHERE = {
    "passes over conv1's and conv2's outputs beside the convolutions": counted(4.0, 4.5, 14.4, "docs/kernels.md: 1.5 + 2.5 fused, 6.2 + 8.2 as separate operations"),
    "passes over other layers' outputs": assumed(4, 5, 9, "bias and ReLU forward, their gradients backward, dropout, a pool"),
    "optimiser, bytes a parameter": assumed(20, 26, 36, "20 where it reads weight, gradient and momentum, writes two; more with bf16 copies"),
    "speed lost to stragglers a doubling of ranks": assumed(0.001, 0.005, 0.015, "every step waits for the slowest rank"),
    "original JPEG, images/s a host core": assumed(200, 320, 550, "rrc; with colour jitter at the low end"),
    "prepared JPEG, images/s a host core": assumed(800, 1400, 2000, "256x256, quality 95: docs/input.md has it about four times the original"),
    "prepared raw, images/s a host core": assumed(2500, 4500, 7500, "docs/input.md has it about thirteen times the original"),
}  # fmt: skip
ON_GPU = EVERYWHERE | {
    "conv1, share of the peak": assumed(0.05, 0.12, 0.25, "of the dense peak; three input channels fill no tensor core"),
    "conv2 to conv5, share of the peak": assumed(0.12, 0.28, 0.5, "of the dense peak; two groups, whose kernels vary widely"),
    "fc6 to fc8, share of the peak": assumed(0.3, 0.55, 0.75, "of the dense peak; products as large as the batch"),
    "share of memory bandwidth": assumed(0.55, 0.75, 0.9, "of the datasheet's; long copies reach 0.9"),
    "kernels a step": assumed(60, 100, 180, "three a layer that has weights, what lies between, the optimiser"),
    "microseconds lost a kernel": assumed(1, 3, 8, "launches run ahead of the device; gaps remain"),
    "share of the step that gradients may hide under": assumed(0.2, 0.45, 0.6, "the fully connected layers' come first in the backward pass"),
    "share of gradients' transfer that is seen anyway": assumed(0.05, 0.15, 0.4, "the last bucket, and what NCCL takes from the multiprocessors"),
    "share of activations' transfer that is seen": assumed(0.6, 0.9, 1.0, "the next layer waits for them"),
    "speed left where input and model run together": assumed(0.75, 0.92, 1.0, "of the slower one's; decoding on a GPU takes from the model"),
    "prepared JPEG against original, decoded by the GPU": assumed(1.2, 2.0, 3.0, "a third of the pixels, as many images"),
    "kept for the backward pass, times the least": assumed(1.1, 1.5, 2.5, "gradients, workspaces and the allocator's holes come on top"),
    "batches held by DALI": assumed(2, 3, 5, "float crops and decoded originals, two batches ahead"),
    "GiB beside tensors": assumed(0.7, 1.3, 2.5, "CUDA's context, libraries, NCCL's buffers"),
    "usable share of the memory": assumed(0.97, 0.98, 0.99, "the rest is the driver's"),
}  # fmt: skip
ON_CPU = EVERYWHERE | {
    "conv1, share of the peak": assumed(0.25, 0.5, 0.85, "of the measured product; three input channels"),
    "conv2 to conv5, share of the peak": assumed(0.4, 0.65, 0.9, "of the measured product; two groups"),
    "fc6 to fc8, share of the peak": assumed(0.4, 0.7, 1.0, "of the measured product; few images a step"),
    "share of memory bandwidth": assumed(0.25, 0.5, 0.9, "of the measured copy; normalisation and pooling compute as they pass"),
    "share of gradients' transfer that is seen anyway": assumed(0.6, 0.9, 1.0, "transfers need the cores that compute"),
    "share of activations' transfer that is seen": assumed(0.8, 1.0, 1.0, "the next layer waits for them"),
}  # fmt: skip

# --- devices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """What a rank computes on: a GPU with its share of a host, or some cores of a CPU (figures are then of one core)."""

    name: str
    names: tuple[str, ...]  # `gpu_name`, or `cpu_name` and cores, of rows that ran on it
    tflop_per_s: dict[str, Figure]
    memory_gb_per_s: Figure
    link: Link
    cores: Figure  # host cores a rank
    decode: dict[str, Figure] = field(default_factory=dict)  # images/s a rank where the GPU decodes
    memory_gib: Figure | None = None
    host_link: Link | None = None
    images_per_s_a_core: Figure | None = None  # from original JPEGs, where it was measured
    assumed: dict[str, Figure] = field(default_factory=lambda: ON_GPU)

    @property
    def is_cpu(self) -> bool:
        return self.assumed is ON_CPU


BLOG = "NVIDIA's blog on DALI and the A100's JPEG decoder, as read in DALI issue 5362"
GUESSED = "no rate published that we know of: the A100's, and what the card has more of"
HOST = "cores of usual servers over their GPUs: 128/8 (DGX A100), 112/8 (DGX H100, H200, B200)"
SXM_CORES = assumed(8, 14, 28, HOST)

CARDS = (
    Device(
        "A100 SXM 80GB", ("NVIDIA A100-SXM4-80GB",),
        {"bf16": datasheet(312, "A100 datasheet"), "fp32": datasheet(19.5, "A100 datasheet, outside tensor cores")},
        datasheet(2039, "A100 datasheet"), NVLINK3, SXM_CORES,
        {
            "mixed": published(4000, 6000, 6500, f"{BLOG}: 6,000, all on CUDA cores"),
            "mixed, hardware engine": published(5000, 7000, 7500, f"{BLOG}: 7,000 at 75 % of the load, 5,000 at all of it"),
        },
        datasheet(80, "A100 datasheet"), PCIE4,
    ),
    Device(
        "H100 SXM", ("NVIDIA H100 80GB HBM3",),
        {"bf16": datasheet(989.4, "H100 datasheet"), "fp32": datasheet(66.9, "H100 datasheet, outside tensor cores")},
        datasheet(3350, "H100 datasheet"), NVLINK4, SXM_CORES,
        {
            "mixed": assumed(5000, 8000, 12000, GUESSED),
            "mixed, hardware engine": assumed(6000, 12000, 25000, f"{GUESSED}; its datasheet counts 7 JPEG engines"),
        },
        datasheet(80, "H100 datasheet"), PCIE5,
    ),
    Device(
        "H200", ("NVIDIA H200",),
        {"bf16": datasheet(989.4, "H200 datasheet"), "fp32": datasheet(66.9, "H200 datasheet, outside tensor cores")},
        datasheet(4800, "H200 datasheet"), NVLINK4, SXM_CORES,
        {
            "mixed": assumed(5000, 8000, 12000, GUESSED),
            "mixed, hardware engine": assumed(6000, 12000, 25000, f"{GUESSED}; its datasheet counts 7 JPEG engines"),
        },
        datasheet(141, "H200 datasheet"), PCIE5,
    ),
    Device(
        "B200", ("NVIDIA B200",),
        {"bf16": datasheet(2250, "B200 in an HGX board, 1,000 W"), "fp32": datasheet(80, "B200 in an HGX board")},
        datasheet(8000, "B200, at most"), NVLINK5, SXM_CORES,
        {
            "mixed": assumed(5000, 10000, 16000, GUESSED),
            "mixed, hardware engine": assumed(6000, 14000, 30000, GUESSED),
        },
        datasheet(180, "HGX B200"), PCIE5,
    ),
    Device(
        "RTX 4090", ("NVIDIA GeForce RTX 4090",),
        {"bf16": datasheet(165.2, "Ada whitepaper, sums in fp32"), "fp32": datasheet(82.6, "Ada whitepaper")},
        datasheet(1008, "Ada whitepaper"), PCIE4_BY_HOST, assumed(6, 12, 24, "a workstation's cores over its GPUs"),
        {"mixed": assumed(3500, 6000, 9000, f"{GUESSED}; no hardware JPEG engine is taken to be there")},
        datasheet(24, "Ada whitepaper"), PCIE4,
    ),
)  # fmt: skip

MEASURED = "python -m harness predict --measure, three times on a machine that others share: least, middle, most"
LOOPBACK = Link(
    "gloo over loopback", measured(1.2, 1.5, 2.0, MEASURED),
    assumed(0.5, 0.85, 1.0, "buckets and small pieces instead of one long buffer"),
    assumed(100, 400, 1500, "start of a collective whose ranks compute on the same cores"),
)  # fmt: skip
CPUS = (
    Device(
        "AMD EPYC, 2 cores", ("AMD EPYC, 2 cores",),
        {"fp32": measured(0.062, 0.083, 0.088, MEASURED)}, measured(14, 20, 24, MEASURED), LOOPBACK,
        counted(2, 2, 2, "cores of this machine"), images_per_s_a_core=measured(230, 380, 450, MEASURED), assumed=ON_CPU,
    ),
)  # fmt: skip


def datasheet_tflop_per_s(gpu_name: str | None, precision: str) -> float | None:
    """The dense figure of one GPU's datasheet in a precision; None for a card that is not here: none is guessed."""
    card = next((card for card in CARDS if gpu_name in card.names), None)
    return card.tflop_per_s[precision].middle if card else None
