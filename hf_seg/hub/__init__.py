"""Pushing runs to the Hugging Face Hub: which files are uploaded, and how."""
