"""Run folders: which folder is a run, of which recipe and data, and that nothing but a run is ever removed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from own_folders import write_folder

from hf_seg.files import write_json
from hf_seg.problem import Refusal
from hf_seg.recipe import Recipe, load_recipes
from hf_seg.recipe.keys import DataRecipe, ModelRecipe, TrainingRecipe
from hf_seg.runs import folder as run_folder
from hf_seg.runs.folder import Run, describe_data, format_plan, hold_runs, load_run, open_run, start_run

CLASSES = {"classes": [{"name": name, "id": number} for number, name in enumerate("abc")]}
# of a finished run, as `find` would print them
FILES = [
    "results.json",
    "hub.json",
    "README.md",
    "test_confusion.npz",
    ".0123456789abcdef.partial",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "modeling_fcn.py",
    "training_args.bin",
    "model.onnx",
    "plots/curves.png",
    "checkpoint-4/optimizer.pt",
    "checkpoint-4/global_step4/zero.pt",
    "runs/Nov27_machine/events.out.tfevents.1.machine.2.0",
    ".push-ab_cd12e/config.json",
]


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def recipe():
    return Recipe(
        name="mine",
        path=Path("mine.json"),
        model=ModelRecipe(arch="segformer"),
        data=DataRecipe(name="synthetic_pet"),
        training=TrainingRecipe(arguments={"logging_steps": 5}),
    )


@pytest.fixture
def own(recipe, tmp_path):
    """A recipe on a folder of ten pairs, `photos`, and its run's folder, in the place that `init` recommends."""
    root = write_folder(tmp_path / "photos", "ids")
    write(root / "classes.json", json.dumps(CLASSES))
    recipe.data = DataRecipe(name="folder", root=str(root))
    return recipe, root / "runs" / "mine"


@pytest.fixture
def run_dir(recipe, tmp_path):
    """A run of which something was trained."""
    folder = tmp_path / "runs" / "mine"
    start_run(Run(recipe, folder, state="new"))
    write(folder / "checkpoint-4" / "optimizer.pt")
    return folder


def test_a_run_folder_through_its_life(recipe, tmp_path):
    run_dir = tmp_path / "runs" / "mine"
    assert open_run(Run(recipe, run_dir)) == "new"
    start_run(Run(recipe, run_dir, state="new"))
    assert json.loads((run_dir / "run.json").read_text()) == {"hf_seg_run": 1, "recipe": recipe.to_dict(), "data": {}}
    assert open_run(Run(recipe, run_dir)) == "interrupted"
    start_run(Run(recipe, run_dir, state="interrupted"))
    for name in FILES:
        write(run_dir / name)
    assert open_run(Run(recipe, run_dir)) == "finished"
    assert open_run(Run(recipe, run_dir, overwrite=True)) == "new"
    start_run(Run(recipe, run_dir, state="new"))
    assert contents(run_dir).keys() == {"run.json"}
    assert [path.name for path in run_dir.parent.iterdir()] == ["mine"]


def test_the_record_of_a_run_is_a_recipe(recipe, run_dir, tmp_path):
    [again] = load_recipes([shutil.copy(run_dir / "run.json", tmp_path / "again.json")])
    assert again.to_dict() == recipe.to_dict() and again.name == "again"


def test_a_launch_killed_while_it_wrote_the_record(recipe, tmp_path):
    write(tmp_path / "mine" / ".0123456789abcdef.partial", '{"hf_seg_run"')
    assert open_run(Run(recipe, tmp_path / "mine")) == "new"
    start_run(Run(recipe, tmp_path / "mine", state="new"))
    assert contents(tmp_path / "mine").keys() == {"run.json"}


def test_a_recipe_in_a_folder_of_photographs_makes_no_run_of_it(own):
    recipe, run_dir = own
    photos = run_dir.parents[1]
    for name in ("recipe.json", "results.json", "config.json"):  # what `init` and other programs may have written
        write(photos / name, json.dumps(recipe.to_dict()))
    before = contents(photos)
    for overwrite in (False, True):
        with pytest.raises(Refusal, match=r"photos: holds no run.json, so it is not a run .*move this one away"):
            open_run(Run(recipe, photos, overwrite))
    assert contents(photos) == before


@pytest.mark.parametrize(
    "stranger",
    [
        "thesis.txt",
        "plots/mine.png",
        "plots/deep/curves.png",
        "images/a.png",
        "checkpoint-best/model.safetensors",
        "checkpoint-4-copy/x",
        "runs/notes.txt",
        ".push-mine/x",
        "plots/run.json",
    ],
)
def test_what_no_run_writes_is_not_removed(recipe, run_dir, stranger):
    write(run_dir / stranger)
    before = contents(run_dir)
    shown = "/".join(stranger.split("/")[: 1 if stranger.startswith(("images", "check", ".push")) else 2])
    with pytest.raises(
        Refusal, match=f"is not removed, since it holds something that no run writes: {shown}; move it"
    ):
        open_run(Run(recipe, run_dir, overwrite=True))
    with pytest.raises(Refusal, match="something that no run writes"):  # put there since
        start_run(Run(recipe, run_dir, state="new"))
    assert contents(run_dir) == before and open_run(Run(recipe, run_dir)) == "interrupted"


def test_an_empty_folder_and_many_strangers_are_named(recipe, run_dir):
    (run_dir / "empty").mkdir()
    for number in range(12):
        write(run_dir / f"note-{number:02}")
    with pytest.raises(Refusal, match=r"run writes: empty, note-00, .*note-08 and 3 more; move"):
        open_run(Run(recipe, run_dir, overwrite=True))


@pytest.mark.parametrize("name", ["config.json", "checkpoint-8", "plots", "run.json"])
def test_links_are_not_removed(recipe, run_dir, tmp_path, name):
    target = tmp_path / "elsewhere"
    write(target / "curves.png")
    if name == "run.json":
        target = shutil.move(run_dir / name, tmp_path / "elsewhere.json")
    (run_dir / name).symlink_to(target)
    with pytest.raises(Refusal, match=f"something that no run writes: {name}; move it away"):
        open_run(Run(recipe, run_dir, overwrite=True))
    whole = tmp_path / "link"
    whole.symlink_to(run_dir)
    with pytest.raises(Refusal, match="link: is a link, and what it points to is not removed"):
        open_run(Run(recipe, whole, overwrite=True))
    assert (tmp_path / "elsewhere" / "curves.png").exists()


@pytest.mark.parametrize("key", ["data.root", "data.path", "model.path", "model.encoder_weights", "the file"])
def test_what_a_run_reads_is_not_removed(recipe, run_dir, key):
    place = run_dir / "checkpoint-4"
    if key == "the file":
        recipe.path = write(run_dir / "hub.json")
    else:
        section, name = key.split(".")
        setattr(getattr(recipe, section), name, str(place / "x" / ".."))
        (place / "x").mkdir()
    with pytest.raises(Refusal, match=f"is not removed, since it contains {key} of mine, .*; choose another"):
        open_run(Run(recipe, run_dir, overwrite=True))


def test_the_folder_of_the_data_is_not_removed(own, monkeypatch):
    recipe, run_dir = own
    photos = run_dir.parents[1]
    start_run(Run(recipe, run_dir, state="new"))
    assert open_run(Run(recipe, run_dir, overwrite=True)) == "new"  # it lies inside data.root, and holds nothing else
    shutil.copy(run_dir / "run.json", photos)
    with pytest.raises(Refusal, match="is not removed, since it contains data.root of mine"):
        open_run(Run(recipe, photos, overwrite=True))
    recipe.data = DataRecipe(name="oxford_pet")
    monkeypatch.setenv("HF_SEG_DATA", str(photos))
    with pytest.raises(Refusal, match="is not removed, since it contains data.root of mine"):
        open_run(Run(recipe, photos, overwrite=True))


def test_keys_of_the_machine_do_not_make_another_recipe(recipe, run_dir):
    recipe.training.gradient_accumulation_steps = 4
    recipe.training.report_to = "none"
    recipe.data.root = "elsewhere"
    recipe.training.arguments["dataloader_num_workers"] = 2
    assert open_run(Run(recipe, run_dir)) == "interrupted"
    recipe.training.arguments["logging_steps"] = 6
    with pytest.raises(Refusal, match="training.logging_steps: 5 there, 6 here"):
        open_run(Run(recipe, run_dir))


def test_a_recipe_that_was_corrected_before_anything_was_trained(recipe, tmp_path):
    run_dir = tmp_path / "mine"
    start_run(Run(recipe, run_dir, state="new"))
    write_json({"repo_id": "a/b", "commit": None}, run_dir / "hub.json")
    recipe.training.arguments["logging_steps"] = 6
    assert open_run(Run(recipe, run_dir)) == "new"
    start_run(Run(recipe, run_dir, state="new"))
    assert contents(run_dir).keys() == {"run.json"} and open_run(Run(recipe, run_dir)) == "interrupted"
    recipe.training.arguments["logging_steps"] = 7
    write(run_dir / "notes.txt")
    with pytest.raises(Refusal, match="a different recipe .*training.logging_steps: 6 there, 7 here"):
        open_run(Run(recipe, run_dir))


def test_a_folder_of_ones_own_is_not_any_folder(own):
    recipe, run_dir = own
    start_run(Run(recipe, run_dir, state="new"))
    write(run_dir / "checkpoint-4" / "optimizer.pt")
    recipe.data.root = "streets"
    with pytest.raises(Refusal, match="data.root: .*photos' there, 'streets' here"):
        open_run(Run(recipe, run_dir))


@pytest.mark.parametrize("state", ["interrupted", "finished"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: write_folder(root, "ids", 13), "train: 3 pairs more, 11 instead of 8"),
        (
            lambda root: [next((root / part).glob("photo_00.*")).unlink() for part in ("images", "masks")],
            "all splits: 1 pairs fewer, 9 instead of 10",
        ),
        (
            lambda root: write_folder(root, "ids", 1, size=(64, 48)),
            "pairs as before, but different ones, by name or size",
        ),
    ],
)
def test_data_that_has_changed_since_the_run_began(own, change, words, state):
    recipe, run_dir = own
    photos = run_dir.parents[1]
    start_run(Run(recipe, run_dir, state="new"))
    assert {name: split["pairs"] for name, split in load_run(run_dir)["data"].items()} == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    write(run_dir / ("results.json" if state == "finished" else "checkpoint-4/optimizer.pt"))
    write_json({"train": [f"photo_{n:02}" for n in range(8)], "validation": ["photo_08"], "test": ["photo_09"]},
               photos / "split.json")  # fmt: skip
    write_json(load_run(run_dir) | {"data": describe_data(recipe.data)}, run_dir / "run.json")
    assert open_run(Run(recipe, run_dir)) == state
    before = (photos / "split.json").read_text()
    change(photos)
    with pytest.raises(Refusal, match=f"holds a run on data that has changed since .*{words}.*restore the data"):
        open_run(Run(recipe, run_dir))
    assert open_run(Run(recipe, run_dir, overwrite=True)) == "new"
    assert (photos / "split.json").read_text() == before  # looking changes nothing


def test_data_of_which_there_is_less():
    then = {"train": {"pairs": 1_200, "fingerprint": "a"}, "test": {"pairs": 2, "fingerprint": "b"}}
    now = {"train": {"pairs": 100, "fingerprint": "c"}, "test": {"pairs": 2, "fingerprint": "b"}}
    assert run_folder._changed_splits(then, now) == ["train: 1,100 pairs fewer, 100 instead of 1,200"]
    assert run_folder._changed_splits(then, then) == run_folder._changed_splits(then, None) == []


def test_a_finished_run_whose_data_is_gone(own, monkeypatch):
    recipe, run_dir = own
    moved = run_dir.parents[2] / "elsewhere"
    start_run(Run(recipe, run_dir, state="new"))
    write(run_dir / "results.json")
    run_dir = Path(shutil.move(run_dir, moved))
    shutil.rmtree(recipe.data.root)
    assert open_run(Run(recipe, run_dir)) == "finished" and describe_data(recipe.data, may_load=False) is None
    monkeypatch.setattr(run_folder, "list_data", lambda data: pytest.fail("a data set would be loaded from the Hub"))
    assert describe_data(DataRecipe(name="hub", path="org/name", root="x"), may_load=False) is None


def test_looking_at_the_data_of_a_run_decodes_nothing(own, monkeypatch):
    recipe, _ = own
    recipe.data.on_bad_pair = "drop"
    (Path(recipe.data.root) / "images" / "photo_03.jpg").write_bytes(b"damaged")
    monkeypatch.setattr("PIL.Image.open", lambda *args, **keys: pytest.fail("a picture was opened"))
    assert sum(split["pairs"] for split in describe_data(recipe.data).values()) == 10


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"hf_seg_run": "1"}',
        '{"hf_seg_run": 1, "recipe": {"model": {}}, "data": {}}',
        '{"format": 1}',
    ],
)
def test_a_folder_whose_record_is_none(recipe, tmp_path, content):
    write(tmp_path / "run.json", content)
    with pytest.raises(Refusal, match="run.json: .*move the folder away"):
        open_run(Run(recipe, tmp_path))


def test_a_run_of_another_version(recipe, run_dir):
    record = json.loads((run_dir / "run.json").read_text())
    write_json({"hf_seg_run": 7, "recipe": "who knows"}, run_dir / "run.json")
    with pytest.raises(Refusal, match=r"another version of hf_seg \(format 7; this version has 1\); choose"):
        open_run(Run(recipe, run_dir))
    assert open_run(Run(recipe, run_dir, overwrite=True)) == "new"
    start_run(Run(recipe, run_dir, state="new"))
    assert json.loads((run_dir / "run.json").read_text()) == record


def test_a_file_where_the_folder_belongs(recipe, tmp_path):
    write(tmp_path / "mine")
    with pytest.raises(Refusal, match="is a file"):
        open_run(Run(recipe, tmp_path / "mine"))


def test_a_place_that_takes_no_files(recipe, tmp_path):
    write(tmp_path / "file")
    with pytest.raises(Refusal, match="file/runs: nothing can be written there .*choose another --output_dir"):
        with hold_runs([Run(recipe, tmp_path / "file" / "runs" / "mine")]):
            raise AssertionError


@pytest.mark.parametrize("removed", range(3))
def test_a_run_that_is_replaced_goes_all_at_once(recipe, run_dir, monkeypatch, removed):
    """Killed after any number of removals, it neither comes back nor passes for an interrupted run."""
    write(run_dir / "results.json")
    left = iter([None] * removed)
    unlink, rmtree = Path.unlink, shutil.rmtree

    def until_killed(remove):
        def call(path):
            if next(left, "killed"):
                raise KeyboardInterrupt
            remove(path)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pathlib.Path.unlink", until_killed(unlink))
        patch.setattr("shutil.rmtree", until_killed(rmtree))
        start_run(Run(recipe, run_dir, state="new"))
    assert open_run(Run(recipe, run_dir, overwrite=True)) == open_run(Run(recipe, run_dir)) == "new"
    start_run(Run(recipe, run_dir, state="new"))
    assert contents(run_dir.parent).keys() == {"mine/run.json"} and len([*run_dir.parent.iterdir()]) == 1


def test_a_folder_of_the_users_in_place_of_what_is_replaced(recipe, run_dir):
    write(run_dir.parent / ".mine.replaced" / "thesis.txt")
    for overwrite in (False, True):
        with pytest.raises(Refusal, match=".mine.replaced: is not removed, since it holds .*thesis.txt"):
            open_run(Run(recipe, run_dir, overwrite))


def test_two_launches_in_one_folder(recipe, run_dir):
    with hold_runs([Run(recipe, run_dir)]):
        with pytest.raises(Refusal, match="mine: another launch is using it; wait until it ends"):
            with hold_runs([Run(recipe, run_dir)]):
                raise AssertionError
    with hold_runs([Run(recipe, run_dir)]):
        pass
    # a finished run is looked at only, which several may do
    write(run_dir / "results.json")
    with hold_runs([Run(recipe, run_dir)]), hold_runs([Run(recipe, run_dir)]):
        pass


def test_the_plan_of_a_launch(recipe, tmp_path):
    def run(name, encoder=None, **known):
        return Run(replace(recipe, name=name, encoder_recipe=encoder), tmp_path / name, **known)

    assert format_plan([run("a", state="new", steps=1280)]) == "a: new, 1,280 steps"
    runs = [
        run("city", state="new", steps=12, named=False),
        run("old", state="finished", named=False),
        run("own", state="new", steps=1),
        run("a", "city", state="interrupted", steps=4),
        run("b", "city", state="new", steps=5),
        run("c", "old", state="finished"),
        run("d", "own", state="new", steps=5),
    ]
    again = " (--overwrite trains it again)"
    assert format_plan(runs).splitlines() == [
        "7 runs, in this order:",
        "city: new, 12 steps",
        "  for the encoder of a, b; it is trained in full, and overrides do not apply to it",
        f"old: finished, in {tmp_path / 'old'}{again}",
        "  for the encoder of c",
        "own: new, 1 step",
        "  for the encoder of d",
        "a: to resume, 4 steps",
        "b: new, 5 steps",
        f"c: finished, in {tmp_path / 'c'}{again}",
        "d: new, 5 steps",
    ]
