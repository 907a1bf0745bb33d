"""Files of weights, here or on the Hub: found, downloaded, verified."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

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

# The second one is all that some repositories have; it is read as data only (`weights_only=True`).
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
REMEDY = (
    "Where there is network, `hf download` it once (its cache is then used offline too), or name a local file or "
    "folder in model.encoder_weights."
)


class WeightsError(ValueError):
    """The model of a recipe cannot be built, or its initial weights cannot be had."""

    @classmethod
    def of(cls, source: str, problem: str) -> WeightsError:
        return cls(f"model.encoder_weights: {source} {problem}")


def find_in_folder(folder: Path, source: str, is_checkpoint: bool) -> Path:
    """Return the file of weights in a folder, which the recipe calls `source`."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    hint = "a run has one when it has finished: finish it, or name another source" if is_checkpoint else REMEDY[:-1]
    raise WeightsError.of(source, f"is a folder without {WEIGHT_FILES[0]}: {hint}.")


def download(source: str, is_checkpoint: bool) -> Path:
    """Fetch the file of weights of a Hub id, and for a checkpoint config.json into the same folder."""
    is_file = Path(source).suffix in (".safetensors", ".bin", ".pth", ".pt")
    if is_file or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise WeightsError.of(source, f"does not exist, and is not a Hub id such as nvidia/mit-b0 either. {REMEDY}")
    try:
        if is_checkpoint:
            hf_hub_download(source, "config.json")
        try:
            return Path(hf_hub_download(source, WEIGHT_FILES[0]))
        except RemoteEntryNotFoundError:
            return Path(hf_hub_download(source, WEIGHT_FILES[1]))
        except LocalEntryNotFoundError:  # no connection: a second attempt would only wait as long again
            if isinstance(cached := try_to_load_from_cache(source, WEIGHT_FILES[1]), str):
                return Path(cached)
            raise
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        # The order matters: a gated repository is a kind of missing one, a missing cache entry a kind of missing file.
        reasons = (
            (
                LocalEntryNotFoundError,
                f"the Hub is out of reach, and the cache lacks it ({error.__cause__ or 'offline'})",
            ),
            (GatedRepoError, "access is gated: accept its terms on its page and log in with `hf auth login`"),
            (RepositoryNotFoundError, "no such repository, or a private one (then log in with `hf auth login`)"),
            (EntryNotFoundError, f"it has no {WEIGHT_FILES[0]}{' or no config.json' if is_checkpoint else ''}"),
            (Exception, " ".join(str(error).split())),
        )
        reason = next(text for kind, text in reasons if isinstance(error, kind))
        raise WeightsError.of(
            source, f"is not a file or folder here, and could not be fetched from the Hub: {reason}. {REMEDY}"
        ) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_download(path: Path) -> None:
    """Compare a large file in the Hub's cache with its SHA-256, which it is named by there; others are left alone.

    Raises:
        WeightsError: when it is not the file that the Hub has: the download was damaged, or the disk has done it.
    """
    stored = path.resolve()  # the name that a repository gives it is a link
    if re.fullmatch("[0-9a-f]{64}", stored.name) and (found := sha256(stored)) != stored.name:
        raise WeightsError(
            f"{path.name} is damaged: its SHA-256 is {found}, not that of the file on the Hub. Delete {stored} and "
            "try again, which downloads it once more."
        )
