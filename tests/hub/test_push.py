"""Runs on the Hub, there and back: pushed while they train or later, loaded where hf_seg is not installed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import ANOTHER, READER, WRITER
from huggingface_hub import ModelCard
from PIL import Image

from hf_seg import cli, train
from hf_seg.hub.push import is_unpushed, model_files, stage
from hf_seg.inference.predict import predict
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.problem import HubError, Refusal
from hf_seg.runs.folder import PLOTS

DIES = Path(__file__).parents[1] / "train_and_die.py"
PUBLISHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.json",
    "results.json",
    "plots/confusion.png",
    "plots/curves.png",
    "plots/roc.png",
    "plots/samples.png",
}
CODE = {"configuration_fcn.py", "modeling_fcn.py"}

# what a stranger does, in a process where hf_seg cannot be imported
STRANGER = """
import json, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_seg":
            raise AssertionError("hf_seg was imported")
sys.meta_path.insert(0, Forbidden())
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
repo, photograph, again = sys.argv[1:]
trust = {"trust_remote_code": True} if "fcn" in repo else {}
segment = pipeline("image-segmentation", model=repo, **trust)
masks = segment(photograph)
ids = np.full(np.asarray(masks[0]["mask"]).shape, 255, np.uint8)
for mask in masks:
    ids[np.asarray(mask["mask"]) > 0] = segment.model.config.label2id[mask["label"]]
Image.fromarray(ids).save("stranger.png")
if again:
    AutoModelForSemanticSegmentation.from_pretrained(repo, **trust).push_to_hub(again)
    AutoImageProcessor.from_pretrained(repo, **trust).push_to_hub(again)
"""


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "photograph.png"
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((100, 75), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs of both architectures, made without a Hub; `finished("fcn")` copies one into the test's folder."""
    made = {}

    def copy(arch, write_recipe):
        if arch not in made:
            folder = tmp_path_factory.mktemp(arch)
            recipe = write_recipe(arch, arch=arch, data={"root": None}, training={"num_train_epochs": 1})
            assert train.main([str(recipe), "--output_dir", str(folder)]) == 0
            made[arch] = folder / arch
        shutil.copytree(made[arch], Path("runs") / arch)
        return Path("runs") / arch

    return copy


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def waits(monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def write(folder, *names, text="x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_only_what_is_named_is_staged(tmp_path):
    run, there = tmp_path / "run", tmp_path / "there"
    model = ["config.json", "preprocessor_config.json", "modeling_fcn.py", "configuration_fcn.py"]
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    strangers = [
        "settings.py",
        "id_rsa",
        "other.safetensors",
        "plots/mine.png",
        ".env",
        "model-00003-of-00003.safetensors",
    ]
    write(run, *model, *shards, *strangers, "plots/roc.png")
    write(run, "model.safetensors.index.json", text=json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    stage(run, there, [*model_files(run), *PLOTS.values()])
    staged = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert staged == {*model, *shards, "model.safetensors.index.json", "plots/roc.png"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "plots/roc.png", "plots"])
def test_links_are_not_pushed(tmp_path, name):
    run, secret = tmp_path / "run", tmp_path / "secret"
    write(run, "config.json", "README.md")
    write(secret, "roc.png", "id_rsa")
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(secret if name == "plots" else secret / "id_rsa")
    with pytest.raises(HubError, match=f"run/{name}: is a link, and links are not pushed"):
        stage(run, tmp_path / "there", [*model_files(run), *PLOTS.values()])


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "names ../../secret.safetensors, which is not part"),
        ('{"weight_map": {"a": "id_rsa"}}', "names id_rsa, which is not part"),
        ('{"weight_map": {"a": 1}}', "cannot be read"),
        ('{"weight_map": {"a": ["x"]}}', "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_a_list_of_shards_that_is_none(tmp_path, index, words):
    write(tmp_path, "model.safetensors.index.json", text=index)
    with pytest.raises(HubError, match=words):
        model_files(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"repo_id": 3, "commit": null}', '{"repo_id": "a/b"}'])
def test_a_note_of_the_last_push_that_is_none(tmp_path, content):
    write(tmp_path, "hub.json", text=content)
    with pytest.raises(HubError, match="hub.json: cannot be read .*; delete it and pass --repo"):
        is_unpushed(tmp_path)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "hub.json")
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest() for path in files}


def ask_a_stranger(repo, photograph, again=""):
    """The stranger's mask of a photograph."""
    # training has set this process's threads, and another number of them may give logits with other last bits
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", STRANGER, repo, photograph, again]
    code = subprocess.run(command, text=True, capture_output=True, env=threads)
    assert code.returncode == 0, code.stderr
    return np.asarray(Image.open("stranger.png")), code.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["fcn", "segformer"])
def test_there_and_back(hub, finished, write_recipe, photograph, capsys, arch):
    run_dir = finished(arch, write_recipe)
    before = contents(run_dir)
    capsys.readouterr()
    assert cli.main(["push", str(run_dir), "--repo", f"lab/{arch}", "--private"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.endpoint}/lab/{arch}/commit/")
    assert contents(run_dir) == before and not is_unpushed(run_dir)
    there = hub.files(f"lab/{arch}")
    assert there.keys() == PUBLISHED | {".gitattributes"} | (CODE if arch == "fcn" else set())
    assert hub.repositories["model", f"lab/{arch}"].private
    card = ModelCard(there["README.md"].decode())
    results = json.loads((run_dir / "results.json").read_text())
    assert card.data.eval_results[0].metric_value == pytest.approx(results["test"]["mean_iou"], abs=1e-4)
    assert f'model="lab/{arch}"' in card.text
    card.validate()

    (local,) = predict(run_dir, [photograph], device="cpu")
    mask, said = ask_a_stranger(f"lab/{arch}", photograph, f"alice/{arch}-again")
    assert np.array_equal(mask, local.mask) and len(np.unique(mask)) > 1
    assert ("is not supported" in said) == (arch == "fcn")  # which the card of an FCN says
    # loaded by a stranger and pushed again, it is as whole as before
    again = hub.files(f"alice/{arch}-again")
    assert again.keys() >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert arch == "segformer" or again.keys() >= CODE
    mask, _ = ask_a_stranger(f"alice/{arch}-again", photograph)
    assert np.array_equal(mask, local.mask)

    # in a process that has hf_seg, by its Hub id
    (remote,) = predict(f"lab/{arch}", [photograph], device="cpu")
    assert np.array_equal(remote.mask, local.mask)

    # pushed again, it goes where it went before, and nothing is sent that is there already
    uploads = hub.count("PUT", "/storage/")
    assert cli.main(["push", str(run_dir), "--revision", "seed-0"]) == 0
    assert hub.count("PUT", "/storage/") == uploads and "seed-0" in hub.repositories["model", f"lab/{arch}"].branches
    assert cli.main(["push", str(run_dir), "--repo", "elsewhere"]) == 0
    assert set(hub.repositories["model", "alice/elsewhere"].branches) == {"main"}


@pytest.mark.slow
@pytest.mark.parametrize(("corrupt", "words"), [("flip", "model.safetensors"), ("cut", "lab/segformer")])
def test_a_corrupt_download(hub, finished, write_recipe, photograph, capsys, corrupt, words):
    run_dir = finished("segformer", write_recipe)
    assert cli.main(["push", str(run_dir), "--repo", "lab/segformer"]) == 0
    fault = hub.fail("GET", "/storage/", corrupt=corrupt, times=1000)
    with pytest.raises(Refusal, match=words):
        load_segmenter("lab/segformer", device="cpu")
    assert fault.times < 1000
    capsys.readouterr()
    assert cli.main(["predict", "lab/segformer", str(photograph), "--out", "masks"]) == 2
    assert "lab/segformer" in capsys.readouterr().err and not Path("masks").exists()


@pytest.mark.slow
def test_what_each_strategy_pushes(hub, write_recipe, waits):
    for strategy, folders in {
        "end": set(),
        "every_save": set(),
        "checkpoint": {"last-checkpoint"},
        "all_checkpoints": {"checkpoint-4", "checkpoint-8"},
    }.items():
        recipe = write_recipe(
            strategy.replace("_", "-"),
            data={"root": None},
            training={
                "push_to_hub": True,
                "hub_strategy": strategy,
                "hub_always_push": True,
                "hub_private_repo": True,
                "hub_revision": "seed-0",
            },
        )
        assert train.main([str(recipe), "--output_dir", str(Path("runs").absolute())]) == 0
        repository = hub.repositories["model", f"alice/{recipe.stem}"]
        assert repository.private and set(repository.branches) == {"main", "seed-0"}
        middle = ["Training in progress, epoch 1", "Training in progress, epoch 2"] if strategy != "end" else []
        assert repository.messages == ["initial commit", *middle, f"{recipe.stem}: finished run"]
        there = hub.files(f"alice/{recipe.stem}", "seed-0")
        assert b'revision="seed-0"' in there["README.md"]
        assert there.keys() >= PUBLISHED
        assert {path.split("/")[0] for path in there if "checkpoint" in path} == folders
        for folder in folders:
            assert {f"{folder}/{name}" for name in ("model.safetensors", "optimizer.pt", "rng_state.pth")} <= {*there}
            state = json.loads(there[f"{folder}/trainer_state.json"])
            assert state["best_model_checkpoint"].startswith("checkpoint-")  # without the place on this machine
        # from the first push on, it can be loaded; pickled arguments never go
        for files in [blobs for blobs in repository.commits.values() if "config.json" in blobs]:
            assert files.keys() >= {"README.md", "recipe.json", "model.safetensors", "preprocessor_config.json"}
            assert not any("training_args" in path for path in files)
        best = Path("runs", recipe.stem, "model.safetensors").read_bytes()
        assert there["model.safetensors"] == best
        assert not list(Path("runs", recipe.stem).glob(".push-*"))
        state = json.loads(Path("runs", recipe.stem, "hub.json").read_text())
        assert state["commit"].endswith(repository.branches["seed-0"])


@pytest.mark.slow
def test_cut_off_after_the_first_checkpoint(hub, write_recipe, launch, photograph, tmp_path):
    options = {"push_to_hub": True, "hub_strategy": "every_save", "num_train_epochs": 4, "hub_always_push": True}
    recipe = write_recipe("fcn", arch="fcn", training=options)
    died = launch(recipe, "--output_dir", tmp_path / "runs", script=DIES, check=False)
    assert died.returncode != 0 and not Path("runs/fcn/results.json").exists()
    repository = hub.repositories["model", "alice/fcn"]
    assert repository.messages[1] == "Training in progress, epoch 1"
    # back to the first push, so that the kill at step 10 is a kill at step 5
    (first,) = [oid for oid, files in repository.commits.items() if len(files) > 1][:1]
    repository.branches["main"] = first
    assert hub.files("alice/fcn").keys() == (PUBLISHED | CODE | {".gitattributes"}) - {"results.json"} - {
        name for name in PUBLISHED if name.startswith("plots/")
    }
    card = hub.files("alice/fcn")["README.md"].decode()
    assert "training" in card.lower() and "epoch 1" in card
    ModelCard(card).validate()
    mask, _ = ask_a_stranger("alice/fcn", photograph)
    assert mask.shape == (75, 100)

    # the same command again finishes the run, and the repository
    launch(recipe, "--output_dir", tmp_path / "runs")
    assert hub.files("alice/fcn").keys() == PUBLISHED | CODE | {".gitattributes"}
    assert not list(Path("runs/fcn").glob(".push-*"))


@pytest.mark.slow
def test_training_outlives_the_hub(hub, write_recipe, waits, capsys):
    recipe = write_recipe("pet", training={"push_to_hub": True, "hub_always_push": True})
    hub.fail("POST", "/commit/", status=500, times=1000)
    assert train.main([str(recipe)]) == 1
    said, shouted = capsys.readouterr()
    reason = "alice/pet: the Hub answered 500 (a fault on purpose); try again later"
    assert f"pet: epoch 1 was not pushed ({reason}); training continues" in said
    assert f"pet: finished in runs/pet, but not pushed ({reason}); push it with `hf-seg push runs/pet`" in said
    assert "| pet " in said and is_unpushed(Path("runs/pet"))
    before = contents(Path("runs/pet"))

    assert train.main([str(recipe)]) == 0  # nothing to train; and it says what is left to do
    assert "pet: is not on the Hub yet; `hf-seg push runs/pet` pushes it" in capsys.readouterr().out

    assert cli.main(["push", "runs/pet"]) == 2
    assert f"error: {reason}" in capsys.readouterr().err
    hub.faults.clear()
    assert cli.main(["push", "runs/pet"]) == 0
    assert contents(Path("runs/pet")) == before and not is_unpushed(Path("runs/pet"))
    assert hub.files("alice/pet").keys() >= PUBLISHED

    everything = [path.read_bytes() for path in Path().rglob("*") if path.is_file()] + [*hub.stored.values()]
    everything += list(hub.files("alice/pet").values()) + [said.encode(), shouted.encode()]
    assert not any(WRITER.encode() in content for content in everything)
    assert os.environ["HF_TOKEN"] == WRITER


@pytest.mark.slow
def test_training_outlives_a_full_disk(hub, write_recipe, monkeypatch, capsys):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_seg.hub.push.os.link", full)
    monkeypatch.setattr("hf_seg.hub.push.shutil.copyfile", full)
    recipe = write_recipe("pet", training={"push_to_hub": True, "num_train_epochs": 1})
    assert train.main([str(recipe)]) == 1
    said = capsys.readouterr().out
    assert "pet: epoch 1 was not pushed ([Errno 28] No space left on device); training continues" in said
    assert "pet: finished in runs/pet, but not pushed ([Errno 28]" in said


@pytest.mark.slow
def test_what_push_refuses(hub, finished, write_recipe, monkeypatch, capsys, waits):
    run_dir = finished("segformer", write_recipe)

    def refused(*arguments):
        before = contents(run_dir)
        assert cli.main(["push", *map(str, arguments)]) == 2
        assert contents(run_dir) == before
        return capsys.readouterr().err

    assert "nowhere: holds no results.json" in refused("nowhere")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda _, mode: mode == os.R_OK)  # root may do all
        assert "segformer: is not writable; make it writable, or push a copy of it: a push records" in refused(run_dir)
    assert "bob/x: the token belongs to alice, who may not write to bob" in refused(run_dir, "--repo", "bob/x")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "alice/segformer: the token may only read" in refused(run_dir)
    monkeypatch.setenv("HF_TOKEN", ANOTHER)
    assert "alice/x: the token belongs to bob" in refused(run_dir, "--repo", "alice/x")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.fail("POST", "/repos/create", status=403)
    assert "alice/segformer: the Hub does not allow it (403: a fault on purpose)" in refused(run_dir)
    (run_dir / "hub.json").write_text("{")
    assert "hub.json: cannot be read" in refused(run_dir)
    (run_dir / "hub.json").unlink()
    results = json.loads((run_dir / "results.json").read_text())
    del results["data"]["publish_images"]
    (run_dir / "results.json").write_text(json.dumps(results))
    said = refused(run_dir)
    assert "runs/segformer/results.json: is not the record of a finished run (data.publish_images is missing)" in said


@pytest.mark.slow
def test_paths_of_this_machine_stay_here(hub, finished, write_recipe):
    run_dir = finished("segformer", write_recipe)
    for name in ("run.json", "results.json"):
        value = json.loads((run_dir / name).read_text())
        value["recipe"]["data"]["root"] = "/home/alice/secret-project/pets"
        (run_dir / name).write_text(json.dumps(value))
    assert cli.main(["push", str(run_dir)]) == 0
    there = hub.files("alice/segformer")
    assert not any(b"secret-project" in content for content in there.values())
    assert cli.main(["push", str(run_dir)]) == 0  # still known as the same run


@pytest.mark.slow
def test_pictures_that_must_not_be_published(hub, finished, write_recipe):
    run_dir = finished("segformer", write_recipe)
    results = json.loads((run_dir / "results.json").read_text())
    results["data"]["publish_images"] = False  # as for Cityscapes
    (run_dir / "results.json").write_text(json.dumps(results))
    assert cli.main(["push", str(run_dir)]) == 0
    there = hub.files("alice/segformer")
    assert "plots/samples.png" not in there and "plots/curves.png" in there
    assert b"samples.png" not in there["README.md"]


@pytest.mark.slow
def test_the_token_is_in_nothing_that_a_run_writes(hub, write_recipe, launch, tmp_path, monkeypatch):
    outputs = []
    for token in (WRITER, READER):  # the second one must not push, and the error says so
        monkeypatch.setenv("HF_TOKEN", token)
        recipe = write_recipe(f"with-{len(outputs)}", training={"num_train_epochs": 1, "push_to_hub": True})
        ended = launch(recipe, "--output_dir", tmp_path / "runs", check=False)
        outputs.append(ended.stdout + ended.stderr)
        assert (ended.returncode == 0) == (token == WRITER), outputs[-1]
    written = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(written) > 10 and hub.files("alice/with-0")
    for content in [*written, *hub.files("alice/with-0").values(), *map(str.encode, outputs)]:
        assert WRITER.encode() not in content and READER.encode() not in content
