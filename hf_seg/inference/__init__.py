"""Inference with a trained model: masks of photographs, export to other runtimes, and a demo page."""
