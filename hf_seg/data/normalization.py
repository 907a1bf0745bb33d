"""What `data.normalize` stands for, in training and in the image processor that is saved with the model."""

from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

# name → mean and standard deviation of each channel of RGB in [0, 1]; the names are timm's
NORMALIZATIONS: dict[str, tuple[list[float], list[float]]] = {
    "imagenet": (list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)),
    "inception": (list(IMAGENET_STANDARD_MEAN), list(IMAGENET_STANDARD_STD)),
}
