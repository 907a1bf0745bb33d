"""A made-up record of a finished run, as `results.json` holds it."""

import json
from pathlib import Path

from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe, ModelRecipe, TrainingRecipe

CLASSES = ["sky", "tree", "boat"]
_RECIPE = Recipe(
    name="",
    path=Path("made-up.json"),
    model=ModelRecipe(arch="segformer"),
    data=DataRecipe(name="synthetic_pet"),
    training=TrainingRecipe(),
)
_SCORES = {
    **dict.fromkeys(["mean_iou", "mean_accuracy", "overall_accuracy"], 0.5),
    **dict.fromkeys(["per_category_iou", "per_category_accuracy"], dict.fromkeys(CLASSES, 0.5)),
    "confusion_matrix": [[1] * 3] * 3,
}
_RECORD = {
    "format": 1,
    "recipe": _RECIPE.to_dict(),
    "status": "finished",
    "model": {
        "arch": "segformer",
        "parameters": 3_714_915,
        "multiply_adds": 105_426_944,
        "logits_size": [16, 16],
        "init": {
            "init": "scratch",
            "frozen": False,
            "encoder": {"source": "random initialisation", "from_hub": False, "sha256": None, "run": None},
            "head": {"source": "fresh"},
        },
    },
    "data": {
        "name": "synthetic_pet",
        "title": "Boats",
        "homepage": None,
        "terms": None,
        "split_rule": "as drawn.",
        "publish_images": True,
        "fingerprint": "0123456789abcdef",
        "counts": {"train": 800, "validation": 100, "test": 200},
        "class_names": CLASSES,
        "stored_size": {"test": [500, 375]},
    },
    "train": {
        **{"epochs": 3.0, "steps": 39, "best_step": 39, "seconds": 600, "images_per_second": 37.5, "world_size": 1},
        **{"precision": "fp32", "seed": 0, "peak_memory_mb": 1234.5, "history": []},
    },
    "validation": _SCORES,
    "test": _SCORES
    | {
        "boundary_iou": {"distance": 2, "mean": 0.25, "per_category": {}},
        "native": {"mean_iou": 0.4, "ceilings": {"64": 0.9375, "32": 0.875, "16": 0.8125, "8": 0.6875}},
        "roc_auc": {"sky": 0.875, "tree": 0.75, "boat": None},
    },
    "environment": {"hardware": "a computer"},
}


def made_up(name: str) -> dict:
    """A record of your own to change."""
    record = json.loads(json.dumps(_RECORD))  # in which no two parts are the same object
    record["recipe"]["name"] = name
    return record


def as_evaluation(record: dict) -> None:
    """Change a record to that of `hf-seg evaluate`, of a model that was not trained here."""
    record |= {"status": "evaluated", "train": None, "validation": None}
    record["evaluation"] = {"model": "org/model", "precision": "fp32", "label_map": {}}
    record["recipe"]["training"] = record["model"]["init"] = record["model"]["multiply_adds"] = None
