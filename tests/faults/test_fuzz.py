"""Random and mutated input: whatever comes in, only the documented error comes out."""

import copy
import io
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_seg.data import load_spec
from hf_seg.data.columns import ClassMask, StoredImage, UprightImage
from hf_seg.data.pairs import StoredPair, decode_pair
from hf_seg.data.sources import cityscapes
from hf_seg.data.sources.download import fetch_parts
from hf_seg.problem import DataError, PairError, RecipeError
from hf_seg.recipe import load_recipes
from hf_seg.recipe.keys import DataRecipe

pytestmark = pytest.mark.faults

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.json"))
SHIPPED = [json.loads(path.read_text(encoding="utf-8")) for path in RECIPES]
KEYS = sorted(
    {key for recipe in SHIPPED for section in recipe.values() if isinstance(section, dict) for key in section}
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(KEYS)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
)


@st.composite
def mutated_recipes(draw):
    """A shipped recipe of which some keys are gone, renamed, new, or have another value."""
    recipe = copy.deepcopy(draw(st.sampled_from(SHIPPED)))
    for _ in range(draw(st.integers(1, 4))):
        section = draw(st.sampled_from(["model", "data", "training", None]))
        place = recipe.get(section) if section else recipe
        if not isinstance(place, dict):
            continue
        key = draw(st.sampled_from(sorted(place)) if place else st.text(max_size=8))
        match draw(st.sampled_from(["drop", "rename", "add", "change"])):
            case "drop":
                place.pop(key, None)
            case "rename":
                place[draw(st.text(max_size=12) | st.sampled_from(KEYS))] = place.pop(key, None)
            case "add":
                place[draw(st.text(max_size=12) | st.sampled_from(KEYS))] = draw(anything)
            case "change":
                place[key] = draw(anything)
    return recipe


def load(folder, text):
    path = folder / "a.json"
    path.write_bytes(text)
    try:
        [recipe] = load_recipes([path])
        json.dumps(recipe.to_dict(), allow_nan=False)  # what was taken is a recipe
    except RecipeError as error:
        assert error.problems and all("\n" not in str(problem) for problem in error.problems)


no_limits = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=1000, **no_limits)
@given(recipe=mutated_recipes() | anything)
def test_recipes(recipe, tmp_path):
    load(tmp_path, json.dumps(recipe).encode())


@settings(max_examples=500, **no_limits)
@given(text=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
def test_files_that_are_no_recipes(text, tmp_path):
    load(tmp_path, text)


@settings(max_examples=500, **no_limits)
@given(data=st.data())
def test_recipes_with_damaged_bytes(data, tmp_path):
    text = bytearray(RECIPES[data.draw(st.integers(0, len(RECIPES) - 1))].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    load(tmp_path, bytes(text))


def mutate(content: bytes, number: int) -> bytes:
    """Some bytes changed, a piece cut out, or the end cut off."""
    draw, content = random.Random(number), bytearray(content)
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    elif draw.random() < 0.3:
        start = draw.randrange(len(content))
        del content[start : start + draw.randint(1, 40)]
    return bytes(content)


def encode(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("own", [False, True])
def test_pictures_with_damaged_bytes(own):
    """500 pairs of which one picture is damaged."""
    draw = np.random.default_rng(0)
    photograph, ids = draw.integers(0, 256, (24, 32, 3), np.uint8), draw.integers(1, 4, (24, 32), np.uint8)
    images = [encode(photograph, "JPEG"), encode(photograph, "PNG"), encode(photograph, "WEBP")]
    images += [encode(photograph, "GIF"), encode(photograph, "TIFF"), encode(photograph, "BMP")]
    mask, spec = encode(ids, "PNG"), load_spec(DataRecipe(name="oxford_pet"))
    if own:
        features = {"image": UprightImage(), "mask": ClassMask(values=[1, 2, 3], labels=[1, 2, 3])}
    else:
        features = {"image": StoredImage(mode="RGB"), "mask": StoredImage()}
    refused = 0
    for number in range(250):
        whole = images[number % len(images)]
        pair = (mutate(whole, number), mask) if number % 2 else (whole, mutate(mask, number))
        image, labels = ({"path": None, "bytes": content} for content in pair)
        try:
            decoded = decode_pair(StoredPair(split="train", index=number, image=image, mask=labels), features, spec)
        except PairError as error:
            assert f"train[{number}], " in error.problem.place and error.problem.what and error.problem.remedy
            refused += 1
        else:
            assert decoded[0].mode == "RGB" and decoded[0].size == decoded[1].size
    assert refused > 50


def test_archives_with_damaged_bytes(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            name = f"gtFine/train/ulm/ulm_{number:06}_000019_gtFine_labelIds.png"
            archive.writestr(name, encode(np.full((16, 16), number, np.uint8), "PNG"))
    images = tmp_path / "leftImg8bit"
    images.mkdir()
    refused = 0
    for number in range(100):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "leftImg8bit").symlink_to(images)
        (place / cityscapes.ARCHIVES[1].file_name).write_bytes(mutate(file.getvalue(), number))
        try:
            fetch_parts(cityscapes, place, may_download=False)
        except DataError:
            refused += 1
            assert not (place / "gtFine").exists()
    assert refused > 20
