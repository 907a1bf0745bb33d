"""hf_seg: semantic segmentation models on the Hugging Face stack, one JSON recipe each.

Importing the package is instant. `import hf_seg.models` registers hf_seg's own models with the Auto classes of
transformers.
"""

import os

# OpenMP reads it when torch is loaded. Threads that spin while they wait make two trainings on one machine several
# times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0"
