import hashlib
import re

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from hf_seg.models.build import locate_encoder_weights
from hf_seg.models.weight_files import verify_download
from hf_seg.problem import Refusal
from hf_seg.recipe.keys import ModelRecipe


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Weights as the Hub's cache has them: a link to a blob that is named by its SHA-256."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--name"
    for folder in ("refs", "blobs", "snapshots/" + "0" * 40):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_file({"weight": torch.zeros(100)}, tmp_path / "file")
    digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    (tmp_path / "file").rename(repository / "blobs" / digest)
    link = repository / "snapshots" / ("0" * 40) / "model.safetensors"
    link.symlink_to(repository / "blobs" / digest)
    return link


def test_a_whole_download_passes(cached):
    verify_download(cached)
    assert locate_encoder_weights(ModelRecipe(arch="fcn", init="imagenet", encoder_weights="owner/name")) == cached


def test_a_damaged_download_is_named_before_anything_trains(cached):
    blob = cached.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    message = re.escape(f"Delete {blob} and try again")
    with pytest.raises(Refusal, match=f"model.safetensors is damaged: its SHA-256 is [0-9a-f]{{64}}.*{message}"):
        verify_download(cached)
    with pytest.raises(Refusal, match=message):
        locate_encoder_weights(ModelRecipe(arch="fcn", init="imagenet", encoder_weights="owner/name"))


def test_files_not_named_by_their_content_are_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"of the user's own")
    verify_download(tmp_path / "model.safetensors")
    (tmp_path / ("a" * 40)).write_bytes(b"small files of the Hub are named by a Git hash")
    verify_download(tmp_path / ("a" * 40))
