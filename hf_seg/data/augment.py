"""Augment whole batches on their device: each image gets its own random values, in a few operations for all images.

There is no loop over images: on a GPU it would start hundreds of small kernels for a batch of 64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_SCALE = (0.5, 1.0)  # least and greatest fraction of the area
STRONG_CROP_SCALE = (0.25, 1.0)
ANGLE = 30  # degrees, either way
CROP_RATIO = (3 / 4, 4 / 3)
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.1  # of a full turn
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the luma, ITU-R BT.601


def draw_boxes(
    count: int, generator: torch.Generator | None = None, scale: tuple[float, float] = CROP_SCALE
) -> Tensor:
    """Draw the windows of random resized crops.

    Args:
        generator (`torch.Generator`, *optional*): a CPU generator, here and below; torch's global one if not given.
        scale (`tuple[float, float]`, *optional*): least and greatest fraction of the image's area.

    Returns:
        `torch.FloatTensor` of shape `(B, 4)`: top, left, height and width of each window, as fractions of the image in
        [0, 1]. Area and aspect ratio are drawn as in Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, but
        the ratio is limited so that the window fits into the image.
    """
    draws = torch.rand(count, 4, generator=generator)
    area = scale[0] + draws[:, 0] * (scale[1] - scale[0])
    # neither side may be longer than the image: √(area · ratio) ≤ 1 and √(area / ratio) ≤ 1
    limit = torch.minimum(torch.full_like(area, math.log(CROP_RATIO[1])), -area.log())
    ratio = ((2 * draws[:, 1] - 1) * limit).exp()
    size = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=1).clamp(max=1)
    return torch.cat([draws[:, 2:] * (1 - size), size], dim=1)


def crop_and_resize(
    images: Tensor, labels: Tensor, boxes: Tensor, flipped: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Cut a window out of each image and its mask, mirror some, and resize all to one size.

    Images are interpolated by a triangle filter that gets wider when the window is reduced (torchvision's bilinear
    with antialias), as a product with one small matrix per side. Masks take the pixel under the centre of the target
    pixel, as `NEAREST_EXACT` does.

    Args:
        images (`torch.FloatTensor` of shape `(B, 3, H, W)`), labels (integer tensor of shape `(B, H, W)`).
        boxes (`torch.FloatTensor` of shape `(B, 4)`): from [`draw_boxes`].
        flipped (`torch.BoolTensor` of shape `(B,)`): which images are mirrored left to right.

    Returns:
        The images, `(B, 3, *size)`, and the labels, `(B, *size)`, with their dtypes.
    """
    sides = enumerate(images.shape[-2:])
    samples = [_samples(boxes[:, axis] * side, boxes[:, axis + 2] * side, size[axis], side) for axis, side in sides]
    (rows, row_weights), (columns, column_weights) = samples
    columns = torch.where(flipped[:, None], columns.flip(-1), columns)
    column_weights = torch.where(flipped[:, None, None], column_weights.flip(-2), column_weights)
    images = row_weights[:, None] @ images @ column_weights[:, None].transpose(-1, -2)
    batch = torch.arange(len(labels), device=labels.device)[:, None, None]
    return images, labels[batch, rows[:, :, None], columns[:, None, :]]


def _samples(start: Tensor, length: Tensor, size: int, pixels: int) -> tuple[Tensor, Tensor]:
    """For one side: the pixel under each target pixel's centre `(B, size)` and its filter `(B, size, pixels)`."""
    step = (length / size)[:, None]
    centers = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step
    positions = torch.arange(pixels, device=start.device) + 0.5
    distance = (positions - centers[..., None]).abs() / step.clamp(min=1)[..., None]
    weights = (1 - distance).clamp(min=0)
    return centers.long().clamp(max=pixels - 1), weights / weights.sum(dim=-1, keepdim=True)


def rotate(images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Rotate each image and its mask about the centre, by a random angle of up to 30 degrees either way.

    Beyond the edges, the image and the mask are mirrored, so that no pixel is invented.

    Args:
        images (`torch.FloatTensor` of shape `(B, 3, H, W)`): interpolated bilinearly.
        labels (integer tensor of shape `(B, H, W)`): sampled at the nearest pixel.
    """
    angle = ((2 * torch.rand(len(images), generator=generator) - 1) * math.radians(ANGLE)).to(images.device)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    aspect = images.shape[-2] / images.shape[-1]  # the grid's units are half the height and half the width
    turn = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], dim=-1).unflatten(-1, (2, 3))
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    masks = F.grid_sample(labels[:, None].to(images.dtype), grid, "nearest", "reflection", align_corners=False)
    return F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False), masks[:, 0].to(labels.dtype)


def jitter_colors(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Change contrast, brightness, saturation and hue of each image at random.

    All four are affine in the colour, so one 3×3 matrix and one offset per image do them together. Hue is rotated
    about the grey axis at constant luma, in YIQ.

    Args:
        images (`torch.FloatTensor` of shape `(B, 3, H, W)`): RGB in [0, 1]; so is the result.
    """
    draws = (2 * torch.rand(len(images), 4, generator=generator) - 1).to(images.device)
    limits = enumerate((BRIGHTNESS, CONTRAST, SATURATION))
    brightness, contrast, saturation = ((1 + draws[:, index] * limit)[:, None, None] for index, limit in limits)
    matrix = brightness * contrast * _turn_hue(draws[:, 3] * HUE * 2 * math.pi, saturation)
    luma = torch.tensor(LUMA, device=images.device)
    mean = torch.einsum("bchw,c->b", images, luma) / (images.shape[-2] * images.shape[-1])
    offset = brightness.flatten() * (1 - contrast.flatten()) * mean
    colors = torch.baddbmm(offset[:, None, None], matrix, images.flatten(2))
    return colors.clamp(0, 1).unflatten(2, images.shape[-2:])


def _turn_hue(angle: Tensor, saturation: Tensor) -> Tensor:
    """Matrices `(B, 3, 3)` that rotate the hue by an angle in radians and scale the saturation, at constant luma."""
    to_yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    # inverted on the CPU: on a GPU, `inv` would wait for the device
    from_yiq, to_yiq = torch.linalg.inv(to_yiq).to(angle.device), to_yiq.to(angle.device)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos], dim=-1).unflatten(-1, (3, 3))
    turn[:, 1:] *= saturation
    return from_yiq @ turn @ to_yiq
