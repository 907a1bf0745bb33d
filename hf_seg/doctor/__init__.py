"""Before a run: what about data and machine would hurt it, and the recipe for your own data.

The advice is written where a problem is found: in survey.py (pairs, splits, duplicates), in environment.py (the
machine) and, for what training refuses, in hf_seg/data. doctor.py puts it together.
"""
