"""Find, download and verify weight files, local or on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.initialization import meta_device_safe_creation_ops
from transformers.utils import cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files

from hf_seg.problem import RecipeError, Refusal, one_line
from hf_seg.recipe.rules import HUB_ID

KEY = "model.encoder_weights"
# Some repositories have the second one only; it is read as data (`weights_only=True`), so no code in it is run.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
LARGEST_CONFIG = 2**24  # bytes of config.json; 20,000 classes take 1 MB
MOST_CLASSES = 2**16  # a mask has 16 bits a pixel
MOST_PARAMETERS = 4  # times those in the file: some files on the Hub lack what the forward pass never uses
REMEDY = (
    "Download it once with `hf download` while online (the cache is then also used offline), or name a local file or "
    "folder in model.encoder_weights."
)


def find_in_folder(folder: Path, source: str, is_checkpoint: bool) -> Path:
    """Return the weight file in a folder, which the recipe calls `source`; a [`RecipeError`] when there is none."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    what = f"{source} is a folder without {WEIGHT_FILES[0]}"
    if is_checkpoint:
        what += ": a run has one when it has finished"
    raise RecipeError(KEY, what, "finish the run, or name another source" if is_checkpoint else REMEDY)


def download(source: str, is_checkpoint: bool) -> Path:
    """Download the weight file of a Hub id, and for a checkpoint also config.json, into the cache; return its path.

    Raises:
        RecipeError: when `source` is not a Hub id, or the files cannot be downloaded and are not in the cache.
    """
    is_file = Path(source).suffix in (".safetensors", ".bin", ".pth", ".pt")
    if is_file or not HUB_ID.fullmatch(source):
        raise RecipeError(KEY, f"{source} does not exist, and is not a Hub id such as nvidia/mit-b0 either", REMEDY)
    try:
        if is_checkpoint:
            hf_hub_download(source, "config.json")
        try:
            return Path(hf_hub_download(source, WEIGHT_FILES[0]))
        except RemoteEntryNotFoundError:
            return Path(hf_hub_download(source, WEIGHT_FILES[1]))
        except LocalEntryNotFoundError:  # no connection: a second request would wait just as long
            if isinstance(cached := try_to_load_from_cache(source, WEIGHT_FILES[1]), str):
                return Path(cached)
            raise
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        out_of_reach = f"the Hub cannot be reached, and the cache does not have it ({error.__cause__ or 'offline'})"
        # The order matters: the first class is a subclass of the fourth, and the second of the third.
        reasons = (
            (LocalEntryNotFoundError, out_of_reach),
            (GatedRepoError, "access is gated: accept its terms on its page and log in with `hf auth login`"),
            (RepositoryNotFoundError, "no such repository, or a private one (then log in with `hf auth login`)"),
            (EntryNotFoundError, f"it has no {WEIGHT_FILES[0]}{' or no config.json' if is_checkpoint else ''}"),
            (Exception, one_line(error)),
        )
        reason = next(text for kind, text in reasons if isinstance(error, kind))
        what = f"{source} is not a file or folder here, and could not be fetched from the Hub: {reason}"
        raise RecipeError(KEY, what, REMEDY) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_download(path: Path) -> None:
    """Refuse a damaged file in the Hub's cache. A large file is named there by its SHA-256; others are not checked."""
    stored = path.resolve()  # `path` is a link with the name that the file has in its repository
    if re.fullmatch("[0-9a-f]{64}", stored.name) and (found := sha256(stored)) != stored.name:
        what = f"{path.name} is damaged: its SHA-256 is {found}, not that of the file on the Hub"
        raise Refusal("", what, f"Delete {stored} and try again, which downloads it once more.")


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide transformers' progress bars: there is one for each weight file that is read or written, also in logs."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


Header = dict[str, tuple[int, ...]]


def read_header(model: str | Path) -> Header | None:
    """Return the tensors in the safetensors files of a folder or Hub id, name → shape; None if there is no file."""
    may_lack = {"_raise_exceptions_for_missing_entries": False}
    file = cached_file(model, WEIGHT_FILES[0], **may_lack)
    index = None if file else cached_file(model, f"{WEIGHT_FILES[0]}.index.json", **may_lack)
    if not file and not index:
        return None
    header = {}
    for path in [file] if file else get_checkpoint_shard_files(model, index)[0]:
        with safe_open(path, "pt") as tensors:
            header |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return header


def check_config(model: str | Path, header: Header | None) -> None:
    """Raise a ValueError for a config.json that is too large, or whose numbers of classes or layers do not fit the
    tensors in `header`."""
    path = cached_file(model, "config.json")
    if path is None:
        raise ValueError("it has no config.json")
    if os.path.getsize(path) > LARGEST_CONFIG:
        raise ValueError(f"its config.json has more than {LARGEST_CONFIG >> 20} MB")
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("its config.json is not a JSON object")
    if header is None:
        return
    labels = config.get("id2label")
    classes = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    rows = {shape[0] for shape in header.values() if shape}
    # a model with queries has an extra class, for queries that found nothing
    if classes > MOST_CLASSES or not {classes, classes + 1} & rows:
        raise ValueError(f"its config.json has {classes:,} classes, but no tensor in its weight file has as many rows")
    for key, count in _counts(config):
        if count > len(header):
            weights = f"its weight file has only {len(header):,} tensors"
            raise ValueError(f"its config.json has {key} {count:,}, but {weights}")


def _counts(config: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield numbers of parts in a configuration: `num_hidden_layers`, `depths`, the lengths of lists of numbers."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _counts(value, name)
    elif isinstance(config, list):
        if config and all(isinstance(value, (int, float)) for value in config):
            yield key, len(config)
        for value in config:
            yield from _counts(value, key)
    elif isinstance(config, int) and re.search("layers|depth|blocks|stages|convs", key):
        yield key, config


def check_parameters(auto: type, config: PreTrainedConfig, header: Header | None) -> None:
    """Raise a ValueError for a model that has more than `MOST_PARAMETERS` times the parameters in its weight file. No
    memory is allocated for it."""
    if header is None:
        return
    with torch.device("meta"), meta_device_safe_creation_ops():
        model = auto.from_config(config, trust_remote_code=False)
    there, needed = sum(map(prod, header.values())), sum(tensor.numel() for tensor in model.state_dict().values())
    if needed > MOST_PARAMETERS * there:
        raise ValueError(f"its config.json gives a model of {needed:,} parameters, but its weight file has {there:,}")
