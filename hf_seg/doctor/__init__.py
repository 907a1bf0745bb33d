"""Before a run: `hf-seg doctor` finds problems of data and machine, `hf-seg init` makes a recipe for your data.

The code that finds a problem also holds the advice: survey.py (pairs, splits, duplicates), environment.py (the
machine), and hf_seg/data for what training refuses. doctor.py collects the problems.
"""
