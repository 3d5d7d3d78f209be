"""How weights are drawn anew: all from one generator, so that a network is known by a seed."""

import torch
from torch import Tensor, nn


def draw_convolution(
    weight: Tensor, scheme: str, inputs: int, outputs: int, volume: int, generator: torch.Generator
) -> None:
    """Draw the weights of a convolution anew, by NetworkConfig's scheme; volume: cells of its kernel."""
    if scheme == "kaiming_normal":  # He et al. 2015, fan out, gain of ReLU
        weight.normal_(0.0, (2 / (outputs * volume)) ** 0.5, generator=generator)
    else:  # the default of torch and of MinkowskiEngine alike
        bound = (inputs * volume) ** -0.5
        weight.uniform_(-bound, bound, generator=generator)


def draw_linear(linear: nn.Linear, generator: torch.Generator) -> None:
    """Draw weights and bias anew, as torch does by default."""
    bound = linear.in_features**-0.5
    linear.weight.uniform_(-bound, bound, generator=generator)
    linear.bias.uniform_(-bound, bound, generator=generator)
