"""hf_seg: semantic segmentation models on the Hugging Face stack, one JSON recipe each.

Importing the package is instant. `import hf_seg.models` registers FCN with the Auto classes of transformers.
"""

__version__ = "0.2.0"
