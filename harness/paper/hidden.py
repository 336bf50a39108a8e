"""What lies nearest in a network's last hidden layer: its activations, and an exact search over a stream of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.data import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Floats = NDArray[np.floating[Any]]
    Ints = NDArray[np.int64]


class Nearest(NamedTuple):
    """Of each of Q queries the k nearest of a stream, nearest first; k is less where the stream is shorter."""

    places: Ints  # (Q, k): their numbers in the stream
    distances: Floats  # (Q, k): Euclidean, in float64


def nearest(queries: Floats, stream: Iterable[tuple[Ints, Floats]], k: int) -> Nearest:
    """The exact nearest of a stream of (numbers (N,), vectors (N, D)) to each of `queries` (Q, D); of equals the lowest number.

    Only one part of the stream is in memory at a time.
    """
    import numpy as np
    from scipy.spatial.distance import cdist

    places: Ints = np.empty((len(queries), 0), np.int64)
    distances: Floats = np.empty((len(queries), 0))
    for numbers, vectors in stream:
        distances = np.concatenate([distances, cdist(queries, vectors)], axis=1)
        places = np.concatenate([places, np.broadcast_to(numbers, (len(queries), len(numbers)))], axis=1)
        first = np.lexsort((places, distances), axis=1)[:, :k]
        distances = np.take_along_axis(distances, first, axis=1)
        places = np.take_along_axis(places, first, axis=1)
    return Nearest(places, distances)


def last_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """The network's last fully connected layer and its name; its inputs are the last hidden layer's activations."""
    from torch.nn import Linear

    from harness.workload import last_layer_name

    name = last_layer_name(network.state_dict())
    layer = network.get_submodule(name)
    assert isinstance(layer, Linear)
    return name, layer


def activations(network: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Ints, Floats, Tensor]]:
    """Of each batch, padding aside: the images' places (N,), the last layer's inputs (N, D) in float32, and the logits."""
    import torch

    caught: list[Tensor] = []
    hook = last_layer(network)[1].register_forward_pre_hook(lambda _layer, inputs: caught.append(inputs[0]))
    try:
        for batch in batches:
            with torch.inference_mode():
                logits = network(batch.images)
            there = (batch.indices >= 0).cpu()
            inputs = caught.pop().float().cpu()[there]
            yield batch.indices.cpu()[there].numpy(), inputs.numpy(), logits.float().cpu()[there]
    finally:
        hook.remove()


def scores(network: nn.Module, batches: Any) -> tuple[Floats, Floats]:
    """(probabilities (N, classes), last hidden activations (N, D)) of every image that the batches hold."""
    import numpy as np

    try:
        seen = [(logits.softmax(dim=1).numpy(), hidden) for _, hidden, logits in activations(network, batches)]
    finally:
        batches.close()
    probabilities, hidden = (np.concatenate(each) for each in zip(*seen, strict=True))
    return probabilities, hidden


def with_progress(stream: Iterable[tuple[Ints, Floats, Any]], images: int) -> Iterator[tuple[Ints, Floats]]:
    """The stream without its logits, told to the terminal as it goes."""
    done = 0
    with shown("evaluate") as progress:
        for places, hidden, _ in stream:
            done += len(places)
            progress(done, images)
            yield places, hidden
