"""The fast layer of ConvNet equals the same layers of torch, with all first derivatives."""

import pytest
import torch
import torch.nn.functional as F

from pcdd_core.nn import winograd
from pcdd_core.nn.classifiers import ConvNetModule
from pcdd_core.nn.winograd import convolution_layer
from pcdd_core.seeds import generator


def plain_layer(images, weight, bias, norm_weight, norm_bias, padding):
    """Return the same by torch's layers."""
    convolved = F.conv2d(images.permute(0, 3, 1, 2), weight, bias, padding=padding)
    normed = F.group_norm(convolved, len(weight), norm_weight, norm_bias)
    return F.avg_pool2d(normed.relu(), 2).permute(0, 2, 3, 1)


def arguments(images, height, width, inputs, outputs, dtype=torch.float64, seed=0):
    draws = generator(seed, "layer")
    shapes = (images, height, width, inputs), (outputs, inputs, 3, 3), *[(outputs,)] * 3
    return [torch.randn(shape, generator=draws, dtype=dtype).requires_grad_() for shape in shapes]


SHAPES = [(2, 28, 28, 1, 5, 3), (3, 16, 16, 4, 6, 1), (2, 8, 12, 7, 3, 1), (1, 4, 4, 2, 2, 1)]


@pytest.mark.parametrize("in_cache", [1, winograd.IN_CACHE])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_and_its_gradients_equal_those_of_torch(shape, in_cache, monkeypatch):
    monkeypatch.setattr(winograd, "IN_CACHE", in_cache)  # 1: one image at a time
    *sizes, padding = shape
    given = arguments(*sizes)
    fast, plain = convolution_layer(*given, padding), plain_layer(*given, padding)
    assert plain.abs().max() > 0
    torch.testing.assert_close(fast, plain)
    along = torch.randn(plain.shape, generator=generator(1), dtype=plain.dtype)
    for own, expected in zip(
        torch.autograd.grad(fast, given, along),
        torch.autograd.grad(plain, given, along),
        strict=True,
    ):
        torch.testing.assert_close(own, expected, atol=1e-10, rtol=1e-9)


def test_layer_passes_gradcheck():
    given = arguments(2, 4, 4, 2, 3)
    result = convolution_layer(*given)
    assert result.grad_fn is not None
    assert torch.autograd.gradcheck(convolution_layer, tuple(given))


def test_layer_refuses_a_second_derivative():
    given = arguments(1, 4, 4, 2, 3)
    squares = convolution_layer(*given).square().sum()
    first = torch.autograd.grad(squares, given[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_layer_rounds_little_in_float32():
    given = arguments(4, 16, 16, 128, 128, dtype=torch.float32)
    exact = plain_layer(*[each.detach().double() for each in given], 1)
    with torch.no_grad():
        assert (convolution_layer(*given) - exact).norm() <= 1e-5 * exact.norm()


def test_a_variance_that_overflows_gives_nan():
    given = [each.detach() for each in arguments(2, 4, 4, 2, 3, dtype=torch.float32)]
    given[0][0] *= 1e30
    result = convolution_layer(*given)
    assert result[0].isnan().all() and result[1].isfinite().all()


@pytest.mark.parametrize("size, whole", [((28, 28), True), ((12, 28), True), ((28, 24), False)])
def test_convnet_uses_the_layer_where_images_consist_of_whole_tiles(size, whole, monkeypatch):
    network = ConvNetModule(*size, 10, channels=4)
    network.initialise(generator(0))
    images = torch.rand(3, 1, *size, generator=generator(1))
    calls = []
    layer = winograd.convolution_layer
    monkeypatch.setattr(winograd, "convolution_layer", lambda *a: calls.append(a) or layer(*a))
    logits = network(images)
    assert len(calls) == (3 if whole else 0)
    features = images
    for convolution, norm in zip(network.convolutions, network.norms, strict=True):
        features = F.avg_pool2d(norm(convolution(features)).relu(), 2)
    torch.testing.assert_close(logits, network.head(features.flatten(1)), atol=1e-5, rtol=1e-4)
