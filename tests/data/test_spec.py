import json
import re

import pytest

from hf_seg.data import load_spec
from hf_seg.data.sources import OFFICIAL, cityscapes, oxford_pet
from hf_seg.data.spec import IGNORE_INDEX, INVALID, DatasetSpec, build_label_table
from hf_seg.problem import Problem, Refusal

CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
CITYSCAPES |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


@pytest.mark.parametrize("name", ["oxford_pet", "synthetic_pet"])
def test_pet_trimap_values(recipe, name):
    spec = load_spec(recipe(name))
    assert spec.name == name
    assert spec.class_names == ("foreground", "background", "boundary")
    assert spec.label_table == (INVALID, 0, 1, 2, *[INVALID] * 252)


@pytest.mark.parametrize("name", ["cityscapes", "synthetic_cityscapes"])
def test_cityscapes_label_ids(recipe, name):
    spec = load_spec(recipe(name))
    assert spec.num_labels == 19
    for value, label in enumerate(spec.label_table):
        if value in CITYSCAPES:
            assert label == CITYSCAPES[value]
        else:
            assert label == (IGNORE_INDEX if value < 34 or value == 255 else INVALID)
    assert spec.id2label[0] == "road" and spec.id2label[18] == "bicycle" and spec.label2id["sky"] == 10


TITLES = {
    "oxford_pet": "Oxford-IIIT Pet",
    "cityscapes": "Cityscapes",
    "synthetic_pet": "Generated pets",
    "synthetic_cityscapes": "Generated streets",
}


@pytest.mark.parametrize("name", list(TITLES))
def test_what_is_said_of_a_data_set(recipe, name):
    said = load_spec(recipe(name)).describe()
    assert json.loads(json.dumps(said)) == said
    assert said["title"] == TITLES[name] and said["class_names"] == list(load_spec(recipe(name)).class_names)
    assert said["terms"] and said["split_rule"] and said["limits"]
    generated = name.startswith("synthetic_")
    # only what we drew ourselves may be shown, and binds nobody
    assert said["publish_images"] is generated
    for key in ("homepage", "license_name", "official_size"):
        assert (said[key] is None) == generated
    if not generated:
        module = {"oxford_pet": oxford_pet, "cityscapes": cityscapes}[name]
        assert said["split_rule"] == module.SPLIT_RULE and said["homepage"].rstrip("/") in module.__doc__
        assert re.fullmatch(r"[a-z0-9-]+", said["license_name"])


def test_of_other_data_nothing_is_claimed():
    said = DatasetSpec(name="mine", class_names=("a",), palette=((0, 0, 0),), label_table=(0,) * 256).describe()
    assert said == {
        "title": "mine",
        "homepage": None,
        "terms": None,
        "license_name": None,
        "split_rule": None,
        "publish_images": False,
        "official_size": None,
        "limits": [],
        "class_names": ["a"],
    }


def test_a_contradictory_spec_is_refused():
    table = build_label_table({1: 0, 2: 1})
    colours = ((0, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="2 classes need as many different names and colours"):
        DatasetSpec(name="x", class_names=("a", "a"), palette=colours, label_table=table)
    with pytest.raises(ValueError, match="255 entries instead of 256"):
        DatasetSpec(name="x", class_names=("a", "b"), palette=colours, label_table=table[:-1])
    with pytest.raises(ValueError, match=r"maps to \[7\]"):
        DatasetSpec(name="x", class_names=("a", "b"), palette=colours, label_table=build_label_table({1: 7}))


def test_a_refusal_names_ten_problems_and_counts_the_rest():
    problems = [Problem(place=f"n{number}", what="is bad", remedy="Mend it.", code="x") for number in range(12)]
    lines = str(Refusal(problems=problems, heading="data: 12 of 20 are bad:")).splitlines()
    assert lines[:2] == ["data: 12 of 20 are bad:", "  n0: is bad"]
    assert lines[10:] == ["  n9: is bad", "  … and 2 more", "Mend it."]


@pytest.mark.parametrize("source", OFFICIAL.values(), ids=OFFICIAL)
def test_an_official_source_says_how_to_get_it(source):
    assert {archive.part for archive in source.ARCHIVES} == {*source.PARTS}
    assert all(archive.url for archive in source.ARCHIVES) or "{folder}" in source.HOW_TO_GET
