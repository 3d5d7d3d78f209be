"""Weight initialisation. One generator draws all weights, so that a seed determines a network."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def global_generator_of(generator: torch.Generator) -> Iterator[None]:
    """Give torch's global generator the state of `generator`, and restore it at the end.

    Layers initialise their weights from the global generator. Inside the context their weights
    depend on `generator` only, and the caller's stream of random numbers is not disturbed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield


def initialise_convolution(
    weight: Tensor, scheme: str, inputs: int, outputs: int, volume: int, generator: torch.Generator
) -> None:
    """Initialise the weights of a convolution in place.

    scheme: "default" or "kaiming_normal", see `GridNetwork.weights`.
    inputs, outputs: numbers of channels. volume: number of cells of the kernel.
    """
    if scheme == "kaiming_normal":  # He et al. 2015: fan out, gain of ReLU
        weight.normal_(0.0, (2 / (outputs * volume)) ** 0.5, generator=generator)
    else:  # the default of both torch and MinkowskiEngine
        bound = (inputs * volume) ** -0.5
        weight.uniform_(-bound, bound, generator=generator)


def initialise_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """Initialise weight and bias in place with the distributions of torch's default."""
    bound = linear.in_features**-0.5
    linear.weight.uniform_(-bound, bound, generator=generator)
    linear.bias.uniform_(-bound, bound, generator=generator)
