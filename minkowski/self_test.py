"""Test the installed MinkowskiEngine on all devices.

Compare its convolution and pooling with PyTorch's dense ones.
"""

import sys
import warnings

import torch

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about a build without CUDA
        import MinkowskiEngine
except ImportError as problem:
    sys.exit(f"minkowski: it cannot be imported: {problem}")


def check(device: str) -> None:
    """Compare forward pass and gradients on two full grids of 5 x 6 x 4 cells, in float64."""
    draws = torch.Generator().manual_seed(0)
    dense = torch.randn(2, 3, 5, 6, 4, generator=draws, dtype=torch.float64).to(device)
    coordinates = torch.ones(2, 5, 6, 4).nonzero().int().contiguous().to(device)
    features = dense.movedim(1, -1).reshape(-1, 3).clone().requires_grad_()
    dense = dense.requires_grad_()
    convolution = (
        MinkowskiEngine.MinkowskiConvolution(3, 4, kernel_size=3, dimension=3).double().to(device)
    )
    pooling = MinkowskiEngine.MinkowskiMaxPooling(kernel_size=2, stride=2, dimension=3)
    result = pooling(convolution(MinkowskiEngine.SparseTensor(features, coordinates=coordinates)))

    # (27, in, out) -> (out, in, depth, height, width): the first axis of kernel offsets is fastest
    weight = convolution.kernel.unflatten(0, (3, 3, 3)).permute(4, 3, 2, 1, 0)
    expected = torch.nn.functional.conv3d(dense, weight, padding=1)
    expected = torch.nn.functional.max_pool3d(expected, 2, ceil_mode=True)

    cloud, depth, height, width = result.C.long().unbind(1)
    expected = expected[cloud, :, depth // 2, height // 2, width // 2]
    torch.testing.assert_close(result.F, expected, rtol=1e-10, atol=1e-10)
    sparse_gradients = torch.autograd.grad(result.F.square().sum(), [features, convolution.kernel])
    dense_gradients = torch.autograd.grad(expected.square().sum(), [dense, convolution.kernel])
    torch.testing.assert_close(
        sparse_gradients[0],
        dense_gradients[0].movedim(1, -1).reshape(-1, 3),
        rtol=1e-10,
        atol=1e-10,
    )
    torch.testing.assert_close(sparse_gradients[1], dense_gradients[1], rtol=1e-10, atol=1e-10)


devices = ["cpu"] + ["cuda"] * MinkowskiEngine.is_cuda_available() * torch.cuda.is_available()
for device in devices:
    check(device)
print(f"minkowski: MinkowskiEngine {MinkowskiEngine.__version__} works on {' and '.join(devices)}")
