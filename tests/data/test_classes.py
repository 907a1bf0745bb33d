"""classes.json: what it may say, and every way it can be wrong, by its message."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_seg.data.classes import Classes, distinct_colors, load_classes, read_classes
from hf_seg.problem import DataError

CAT, DOG = {"name": "cat", "id": 0}, {"name": "dog", "id": 7}
RED, BLUE = {"name": "red", "color": [255, 0, 0]}, {"name": "blue", "color": "#0000fF"}


def problems(**content):
    with pytest.raises(DataError) as caught:
        read_classes(content)
    found = caught.value.problems
    assert {(problem.code, problem.place) for problem in found} == {("classes-json", "classes.json")}
    return ["; ".join(filter(None, (problem.what, problem.remedy))) for problem in found]


def test_ids():
    classes = read_classes({"classes": [CAT, DOG | {"color": "#010203"}], "ignore": [255, 9]})
    assert (classes.names, classes.by_color) == (("cat", "dog"), False)
    assert classes.meaning == {0: 0, 7: 1, 255: 255, 9: 255}
    assert classes.palette[1] == (1, 2, 3) and classes.palette[0] != classes.palette[1]


def test_colors():
    classes = read_classes({"classes": [RED, BLUE], "ignore": ["#ffffff"], "label_map": {"#880000": "red"}})
    assert classes.by_color and classes.palette == ((255, 0, 0), (0, 0, 255))
    assert classes.meaning == {0xFF0000: 0, 0x0000FF: 1, 0x880000: 0, 0xFFFFFF: 255}


def test_several_ids_fold_into_a_class_and_255_may_be_one():
    classes = read_classes(
        {"classes": [{"name": "a", "id": 255}, {"name": "b", "id": 40000}], "label_map": {"3": "a", "4": "a"}}
    )
    assert classes.meaning == {255: 0, 40000: 1, 3: 0, 4: 0}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"classes": [CAT, DOG], "ignored": []},
            'ignored: unknown key; did you mean "ignore"?',
        ),
        (
            {"classes": [CAT | {"colour": "#000000"}, DOG]},
            'classes[0].colour: unknown key; did you mean "color"?',
        ),
        (
            {"classes": [CAT]},
            "classes: must have 2 to 255 classes, but has 1; the background is a class, too",
        ),
        (
            {"classes": [{"name": str(number), "id": number} for number in range(256)]},
            "classes: must have 2 to 255 classes, but has 256; merge some",
        ),
        ({"classes": [CAT, "dog"]}, "classes[1]: must be an object with name, id or color"),
        ({"classes": [CAT, {"id": 1}]}, "classes[1].name: is missing or not text; give the class a name"),
        ({"classes": [CAT, {"name": " ", "id": 1}]}, "classes[1].name: is missing or not text; give the class a name"),
        ({"classes": [CAT, DOG | {"name": "do\x1b[31mg"}]}, 'classes[1].name: "do\\u001b[31mg" contains a control'),
        (
            {"classes": [CAT, DOG | {"name": "dog\n"}]},
            'classes[1].name: "dog\\n" contains a control character; remove',
        ),
        ({"classes": [CAT, DOG | {"name": "\x85dog"}]}, 'classes[1].name: "\x85dog" contains a control character'),
        ({"classes": [CAT, DOG | {"name": "\ud800"}]}, 'classes[1].name: "\ud800" contains a control character'),
        (
            {"classes": [CAT, DOG | {"name": "cat"}]},
            'classes[1].name: "cat" is already used in classes[0].name; each may',
        ),
        (
            {"classes": [CAT, DOG | {"id": 0}]},
            "classes[1].id: 0 is already used in classes[0].id; each may occur only once",
        ),
        (
            {"classes": [CAT, DOG | {"id": 65536}]},
            "classes[1].id: must be a whole number from 0 to 65535, but is 65536",
        ),
        ({"classes": [CAT, DOG | {"id": True}]}, "classes[1].id: must be a whole number from 0 to 65535, but is true"),
        (
            {"classes": [CAT, {"name": "dog", "color": "#000000"}]},
            "classes[1].id: is missing; give a whole number from 0 to 65535: either all classes have one, or none",
        ),
        (
            {"classes": [{"name": "a"}, {"name": "b", "color": "#000000"}]},
            "classes[0].color: is missing; give a colour",
        ),
        (
            {"classes": [RED, BLUE | {"color": [0, 0, 256]}]},
            'classes[1].color: must be a colour, "#rrggbb" or [red, green, blue] from 0 to 255, but is [0, 0, 256]',
        ),
        ({"classes": [CAT | {"color": "red"}, DOG]}, 'classes[0].color: must be a colour, "#rrggbb" or [red,'),
        (
            {"classes": [RED, BLUE | {"color": "#FF0000"}]},
            "classes[1].color: #ff0000 is already used in classes[0].color",
        ),
        (
            {"classes": [CAT | {"color": "#000001"}, DOG | {"color": "#000001"}]},
            "classes[1].color: #000001 is already used in classes[0].color",
        ),
        ({"classes": [CAT, DOG], "ignore": 255}, "ignore: must be a list of ids, but is 255"),
        ({"classes": [CAT, DOG], "ignore": [7]}, "ignore[0]: 7 is already used in classes[1].id"),
        ({"classes": [CAT, DOG], "ignore": ["#ffffff"]}, "ignore[0]: must be a whole number from 0 to 65535, but is"),
        ({"classes": [CAT, DOG], "label_map": [1]}, 'label_map: must be an object {"id": "name of a class"}'),
        (
            {"classes": [CAT, DOG], "label_map": {"1": "cta"}},
            'label_map.1: there is no class "cta"; did you mean "cat',
        ),
        ({"classes": [CAT, DOG], "label_map": {"7": "cat"}}, "label_map.7: 7 is already used in classes[1].id"),
        ({"classes": [CAT, DOG], "label_map": {"-1": "cat"}}, "label_map.-1: must be a whole number from 0 to 65535"),
    ],
)
def test_what_is_wrong_is_said(content, expected):
    [problem] = problems(**content)
    assert problem.startswith(expected)


def test_everything_wrong_comes_at_once_with_the_file(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text('{"classes": [{"nam": "a\\nb", "id": -1}, 3], "x\\ny": 1}')
    with pytest.raises(DataError) as caught:
        load_classes(tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and all(line.startswith(f"{path}: ") for line in lines)
    assert any(r"x\ny: unknown key" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "classes.json: must be an object .*: a list of classes, each with a name and an id or a color"),
        (b'{"classes": {}}', "classes.json: must be an object .*: a list of classes"),
        (b'{"classes": [],}', "classes.json: is not JSON: .* at line 1"),
        (b'{"classes": [], "classes": []}', 'the key "classes" is given twice'),
        (b"\xff\xfe", "classes.json: is not text in UTF-8"),
    ],
)
def test_a_file_that_is_none(tmp_path, text, message):
    (tmp_path / "classes.json").write_bytes(text)
    with pytest.raises(DataError, match=message):
        load_classes(tmp_path)


def test_an_absent_file(tmp_path):
    with pytest.raises(DataError, match=f"classes.json: is missing.*`hf-seg init {tmp_path}` writes it"):
        load_classes(tmp_path)
    (tmp_path / "classes.json").mkdir()
    with pytest.raises(DataError, match="classes.json: cannot be read: Is a directory"):
        load_classes(tmp_path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6)
COLOR = st.from_regex("#[0-9a-f]{6}", fullmatch=True) | st.lists(st.integers(-1, 256), min_size=3, max_size=3) | PLAIN
ID = st.integers(-1, 300) | PLAIN
ENTRY = st.fixed_dictionaries({}, optional={"name": st.text(max_size=3) | PLAIN, "id": ID, "color": COLOR, "x": PLAIN})
CONTENT = st.fixed_dictionaries(
    {"classes": st.lists(ENTRY | PLAIN, max_size=4) | PLAIN},
    optional={
        "ignore": st.lists(ID | COLOR, max_size=3) | PLAIN,
        "label_map": st.dictionaries(st.text(max_size=5) | ID.map(str), PLAIN | st.just("a"), max_size=3) | PLAIN,
        "y": PLAIN,
    },
)


@settings(deadline=None)
@given(CONTENT | st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_whatever_the_file_holds_is_classes_or_problems(content):
    content = json.loads(json.dumps(content))
    try:
        classes = read_classes(content)
    except DataError as error:
        assert all(problem.what and problem.code == "classes-json" for problem in error.problems)
    else:
        assert isinstance(classes, Classes)
        assert len(set(classes.names)) == len(set(classes.palette)) == len(classes.names) >= 2
        assert set(classes.meaning.values()) - {255} == set(range(len(classes.names)))


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_whatever_the_bytes_are_only_a_data_error_comes_out(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("root")
    (root / "classes.json").write_bytes(content)
    with pytest.raises(DataError):
        load_classes(root)


def test_colors_are_many_and_different():
    taken = list(itertools.islice(distinct_colors(), 3))
    colors = list(itertools.islice(distinct_colors(taken), 255))
    assert len(set(colors)) == 255 and not set(colors) & set(taken)
