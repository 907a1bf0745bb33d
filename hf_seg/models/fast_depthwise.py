"""Depthwise convolutions whose gradients a CPU computes several times as fast: the same function, up to rounding.

Each class here is a convolution with another `forward`. `make_fast` changes modules of a built model to these classes.
"""

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PART = 2**19  # elements that are multiplied at once, so that the product stays in the processor's cache


def fast_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class here that computes the same as `module`; None if it is fast, or not a depthwise convolution."""
    if type(module) not in IN_FP32 or not module.groups == module.in_channels == module.out_channels > 1:
        return None
    if max(module.stride) > 1:
        return IN_FP32[type(module)]
    same = tuple(d * (k // 2) for d, k in zip(module.dilation, module.kernel_size, strict=True))
    keeps_size = module.padding == same and module.padding_mode == "zeros" and all(k % 2 for k in module.kernel_size)
    slow = max(module.dilation) > 1 or max(module.kernel_size) > 3
    return FastDepthwise if type(module) is nn.Conv2d and keeps_size and slow else None


class FastDepthwise(nn.Conv2d):
    """A depthwise convolution of stride 1 that keeps the size of maps, with gradients of its own on a CPU.

    oneDNN has no fast gradients for dilated depthwise convolutions, and no fast weight gradient for kernels above 3×3.
    `Gradients` computes them instead. A map may be smaller than a dilated kernel: the kernel's outer rows and columns
    then meet only padding and are left out, since with them oneDNN's forward pass is slow, too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map `(batch, channels, height, width)` to the same shape."""
        if input.device.type != "cpu" or input.ndim != 4 or torch.compiler.is_compiling():
            return super().forward(input)
        weight, bias = self.weight, self.bias
        for axis in (2, 3):
            reach = (input.shape[axis] - 1) // self.dilation[axis - 2]
            unused = max(0, weight.shape[axis] // 2 - reach)
            weight = weight.narrow(axis, unused, weight.shape[axis] - 2 * unused)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight, bias = input.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
        return Gradients.apply(input, weight, bias, self.dilation)


class Gradients(torch.autograd.Function):
    """A depthwise convolution of stride 1 with zero padding that keeps the size of maps.

    The output is `y[i] = Σ_u w[u] x[i + u·d]`, with taps u (-1, 0, 1 for a kernel of 3) and dilation d. Let g be its
    gradient. The gradient of the input is `Σ_u w[u] g[i - u·d]`: the same convolution with the kernel flipped. The
    gradient of a tap is `Σ_i g[i] x[i + u·d]`: the product of two shifted maps, summed.
    """

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.dilation = dilation
        return _convolve(input, weight, bias, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_input = _convolve(gradient, weight.flip(2, 3), None, ctx.dilation)
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            images = max(1, PART // input[0].numel())
            for maps, gradients in zip(input.split(images), gradient.split(images), strict=True):
                for row in range(weight.shape[2]):
                    for column in range(weight.shape[3]):
                        down = (row - weight.shape[2] // 2) * ctx.dilation[0]
                        right = (column - weight.shape[3] // 2) * ctx.dilation[1]
                        product = _from(maps, down, right) * _from(gradients, -down, -right)
                        of_weight[:, 0, row, column] += product.sum((0, 2, 3))
            of_weight = of_weight.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_input, of_weight, of_bias, None


def _convolve(maps: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]) -> Tensor:
    padding = [d * (size // 2) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    return F.conv2d(maps, weight, bias, padding=padding, dilation=dilation, groups=len(weight))


def _from(maps: Tensor, down: int, right: int) -> Tensor:
    """Return the values of `maps` `(…, height, width)` at `(row + down, column + right)`, for all rows and columns for
    which that position is in the map."""
    height, width = maps.shape[-2:]
    rows = slice(max(0, down), height + min(0, down))
    return maps[..., rows, max(0, right) : width + min(0, right)]


class InFp32:
    """Mixin for a strided depthwise convolution: on a CPU under autocast it trains in fp32 and casts its output to
    autocast's dtype (bf16). oneDNN has fast gradients for it in fp32 only."""

    def forward(self, input: Tensor) -> Tensor:
        """Call the `forward` of the next class, in fp32 where that is faster."""
        slow = input.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        if not slow or torch.compiler.is_compiling():
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))


class DepthwiseInFp32(InFp32, nn.Conv2d): ...


class DepthwiseSameInFp32(InFp32, Conv2dSame): ...


IN_FP32 = {nn.Conv2d: DepthwiseInFp32, Conv2dSame: DepthwiseSameInFp32}
