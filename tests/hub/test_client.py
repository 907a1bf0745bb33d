"""Who may write where, and what happens on a bad day: against a Hub on loopback, by the real huggingface_hub."""

import json
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from hub_server import ANOTHER, READER, WRITER, Blob
from huggingface_hub import get_session

from hf_seg import train
from hf_seg.hub import client as hub_module
from hf_seg.hub.client import (
    Destination,
    attempt,
    check_free,
    create,
    destinations,
    explain,
    full_name,
    list_files,
    redact,
    upload,
)
from hf_seg.problem import HubError
from hf_seg.recipe import load_recipes


@pytest.fixture
def waits(monkeypatch):
    """Nobody sleeps; what was slept for is recorded."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "segformer"}')
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    return path


ALICES = Destination(repo_id="alice/pet")


def logged_in_as(key, **more):
    def change(hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", key)
        hub.users.get(key, {}).update(more)

    return change


def fine_grained(name, *permissions):
    scope = {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}
    return {"token": {"role": "fineGrained", "fineGrained": {"scoped": [scope]}}}


def no_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def offline(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def gone(hub, monkeypatch):
    hub.close()


def holds_something_else(hub, monkeypatch):
    create(ALICES)
    hub.repositories["model", "alice/pet"].commit("main", {"thesis.txt": Blob(b"years of work", False)}, "mine")


def holds_another_recipe(hub, monkeypatch):
    create(ALICES)
    recipe = {"model": {"arch": "fcn"}, "data": {}, "training": {}}
    files = {"recipe.json": Blob(json.dumps(recipe).encode(), False)}
    hub.repositories["model", "alice/pet"].commit("main", files, "another run")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (no_token, {}, "pet: cannot be pushed without a token; run `hf auth login`, or set HF_TOKEN"),
        (offline, {}, "pet: cannot be pushed, since HF_HUB_OFFLINE is set; unset it"),
        (logged_in_as("hf_" + "x" * 34), {}, "pet: the Hub does not accept the token (401); run `hf auth login`"),
        (logged_in_as(READER), {}, "alice/pet: the token may only read; create one that may write at https://"),
        (logged_in_as(WRITER, **fine_grained("alice", "repo.content.read")), {}, "alice/pet: the token may only read"),
        (logged_in_as(WRITER, **fine_grained("lab", "repo.write")), {}, "alice/pet: the token may only read"),
        (None, {"hub_model_id": "museum/pet"}, "museum/pet: the token belongs to alice, who may not write to museum"),
        (None, {"hub_model_id": "bob/pet"}, "bob/pet: the token belongs to alice, who may not write to bob"),
        (None, {"hub_model_id": "alice/p e t"}, "alice/p e t: is not a valid name for a repository (Repo"),
        (
            holds_something_else,
            {},
            "alice/pet: exists on the Hub and is not a run of hf_seg; choose another hub_model",
        ),
        (
            holds_another_recipe,
            {},
            "alice/pet: holds a run of a different recipe (model.arch: 'fcn' there, 'segformer' ",
        ),
        (gone, {}, "pet: the Hub cannot be reached (ConnectError"),
    ],
)
def test_refused_before_anything_trains(
    hub, waits, write_recipe, monkeypatch, tmp_path, capsys, change, options, words
):
    monkeypatch.chdir(tmp_path)
    if change:
        change(hub, monkeypatch)
    recipe = write_recipe("pet", training={"push_to_hub": True, **options})
    assert train.main([str(recipe)]) == 2
    said = capsys.readouterr().err
    assert f"error: {words}" in said and "hf_x" not in said
    assert not Path("runs").exists()
    assert len(hub.repositories) <= 1 and hub.count("PUT", "/storage") == 0


def test_two_runs_into_one_repository(hub, write_recipe):
    together = {"push_to_hub": True, "hub_model_id": "lab/pets"}
    recipes = load_recipes([write_recipe("a", training=together), write_recipe("b", training=together)])
    with pytest.raises(
        HubError, match="a and b would both be pushed to lab/pets; give each its own hub_model_id or hub_revision"
    ):
        destinations(recipes)
    recipes[1].training.arguments["hub_revision"] = "second"
    found = destinations(recipes)
    assert found["b"] == Destination(repo_id="lab/pets", revision="second")
    assert hub.count("POST", "/create") == 0  # looking changes nothing


def test_names(hub):
    assert full_name("pet", "--repo") == "alice/pet" and full_name("lab/pet", "--repo") == "lab/pet"
    hub.users[WRITER] |= fine_grained("alice", "repo.write")
    assert full_name("pet", "--repo") == "alice/pet"


@pytest.mark.parametrize("name", ["My run", "größe", "a--b", "a/b/c"])
def test_names_that_the_hub_does_not_take(name):
    with pytest.raises(HubError, match=f"^{name}: is not a valid name for a repository .*; name another .* --repo$"):
        full_name(name, "--repo")


def test_a_repository_that_is_ours_or_free(hub, write_recipe):
    (recipe,) = load_recipes([write_recipe("pet")])
    check_free(ALICES, recipe.to_dict(), "delete it")  # there is none
    create(ALICES)
    check_free(ALICES, recipe.to_dict(), "delete it")  # there is one, and nothing in it
    mine = json.dumps(recipe.to_dict() | {"data": recipe.to_dict()["data"] | {"root": "elsewhere"}}).encode()
    repository = hub.repositories["model", "alice/pet"]
    repository.commit("main", {"recipe.json": Blob(mine, False)}, "the same recipe on another machine")
    check_free(ALICES, recipe.to_dict(), "delete it")
    recipe.training.seed = 1
    with pytest.raises(HubError, match=r"\(training.seed: 0 there, 1 here\); delete it, or pass --overwrite$"):
        check_free(ALICES, recipe.to_dict(), "delete it", overwrite=False)
    with pytest.raises(HubError, match=r"\(training.seed: 0 there, 1 here\); delete it$"):  # `hf-seg push`
        check_free(ALICES, recipe.to_dict(), "delete it")
    check_free(ALICES, recipe.to_dict(), "delete it", overwrite=True)
    check_free(
        Destination(repo_id="alice/pet", revision="seed-1"), recipe.to_dict(), "delete it"
    )  # a branch that is not there yet
    repository.commit("main", {"recipe.json": Blob(b"[]", False)}, "not a recipe")
    with pytest.raises(HubError, match="its recipe.json is not a recipe"):
        check_free(ALICES, recipe.to_dict(), "delete it")


def test_a_public_repository_gets_no_private_run(hub):
    create(Destination(repo_id="lab/open"))
    with pytest.raises(HubError, match="lab/open: exists and is public, but the run is to be private"):
        create(Destination(repo_id="lab/open", private=True))


def test_private_and_branch(hub):
    create(Destination(repo_id="lab/secret", private=True, revision="seed-1"))
    create(Destination(repo_id="lab/secret", private=True, revision="seed-1"))  # once more does no harm
    made = hub.repositories["model", "lab/secret"]
    assert made.private and set(made.branches) == {"main", "seed-1"}


def test_a_new_branch_holds_nothing_of_another_run(hub):
    create(ALICES)
    hub.repositories["model", "alice/pet"].commit("main", {"recipe.json": Blob(b"{}", False)}, "a run")
    create(Destination(repo_id="alice/pet", revision="seed-1"))
    assert list_files("alice/pet") == {"recipe.json"} and list_files("alice/pet", revision="seed-1") == set()


PUT, COMMIT, BATCH = ("PUT", "/storage/"), ("POST", "/commit/"), ("POST", "/objects/batch")


@pytest.mark.parametrize(
    ("where", "fault", "waited"),
    [
        (COMMIT, {"status": 500}, [4.0]),
        (COMMIT, {"status": 429, "headers": {"Retry-After": "7"}}, [7.0]),
        (COMMIT, {"status": 503, "times": 3}, [4.0, 16.0, 64.0]),
        (COMMIT, {"drop": True}, [4.0]),
        (COMMIT, {"delay": 1.5, "status": 200}, [4.0]),  # longer than we wait for an answer
        # these huggingface_hub repeats by itself
        (PUT, {"status": 500, "times": 2}, [1, 2]),
        (PUT, {"drop": True}, [1]),
        (PUT, {"delay": 1.5, "status": 200}, [1]),
        (BATCH, {"status": 429, "headers": {"Retry-After": "3"}}, [4.0]),
    ],
)
def test_faults_that_pass(hub, waits, folder, monkeypatch, where, fault, waited):
    monkeypatch.setattr(hub_module, "TIMEOUT", httpx2.Timeout(0.5))
    hub_module._limit_waiting.cache_clear()
    create(ALICES)
    hub.fail(*where, **fault)
    url = upload(folder, ALICES, "a message")
    assert waits == waited and hub.faults[0].times == 0
    there = hub.files("alice/pet")
    assert {name: there[name] for name in ("config.json", "model.safetensors")} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert hub.repositories["model", "alice/pet"].messages == ["initial commit", "a message"]
    assert url.endswith(hub.repositories["model", "alice/pet"].branches["main"])
    hub_module._limit_waiting.cache_clear()


@pytest.mark.parametrize(
    ("where", "fault", "words", "attempts"),
    [
        (COMMIT, {"status": 500}, r"alice/pet: the Hub answered 500 \(a fault on purpose\); try again later", 4),
        (COMMIT, {"status": 429}, r"alice/pet: the Hub answered 429 \(a fault on purpose\); try again later", 4),
        (COMMIT, {"drop": True}, r"alice/pet: the Hub cannot be reached \(RemoteProtocolError.*check the network", 4),
        (PUT, {"drop": True}, r"alice/pet: the Hub cannot be reached", 24),
        (COMMIT, {"status": 401}, r"does not accept the token \(401\); run `hf auth login`", 1),
        (COMMIT, {"status": 403}, r"does not allow it \(403: a fault on purpose\); use a token that may write", 1),
        (COMMIT, {"status": 413}, r"alice/pet: the Hub answered 413 \(a fault on purpose\); see the answer", 1),
        (PUT, {"status": 403}, r"does not allow it \(403: a fault on purpose\); use a token that may write", 1),
    ],
)
def test_faults_that_stay(hub, waits, folder, where, fault, words, attempts):
    create(ALICES)
    hub.fail(*where, times=1000, **fault)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(HubError, match=words) as raised:
        upload(folder, ALICES, "a message")
    assert hub.count(*where) == attempts
    assert WRITER not in str(raised.value) and "signature" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__  # a traceback shows no request
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    hub.faults.clear()
    upload(folder, ALICES, "a message")  # what the network spoilt, the next try mends
    assert hub.files("alice/pet")["config.json"] == before["config.json"]


def test_a_token_that_loses_its_rights(hub, waits, folder, monkeypatch):
    create(ALICES)
    monkeypatch.setenv("HF_TOKEN", ANOTHER)
    with pytest.raises(HubError, match="403: You have no write permission"):
        upload(folder, ALICES, "a message")
    assert waits == []


def test_a_server_cannot_make_us_wait_for_ever(hub, waits):
    hub.fail("GET", "/whoami", status=429, headers={"Retry-After": "86400"})
    hub.fail("GET", "/whoami", status=429, headers={"Retry-After": "Wed, 21 Oct 2065 07:28:00 GMT"})
    assert full_name("pet", "--repo") == "alice/pet"
    assert max(waits) <= hub_module.LONGEST_WAIT


def test_only_errors_of_others_become_hub_errors(waits):
    with pytest.raises(HubError, match="thing: FileNotFoundError: .*nowhere.*; correct the cause and try again"):
        attempt(lambda: open("nowhere"), "thing")
    with pytest.raises(KeyboardInterrupt):
        attempt(interrupt, "thing")
    assert waits == []


def interrupt():
    raise KeyboardInterrupt


def test_the_client_is_that_of_huggingface_hub_with_a_time_limit(hub):
    hub_module._limit_waiting.cache_clear()
    attempt(lambda: None, "thing")
    session = get_session()
    default = huggingface_hub.utils._http.default_client_factory()
    assert session.timeout == hub_module.TIMEOUT != default.timeout
    assert session.event_hooks == default.event_hooks and session.event_hooks["request"]
    assert session.follow_redirects == default.follow_redirects


def test_redact(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")
    text = redact(f"Bearer {WRITER}, a-token-of-another-form, https://storage/x?X-Signature=abc&y=1 and http://a/b?c")
    assert text == "Bearer ***, ***, https://storage/x and http://a/b"
    assert redact("cannot reach https://bob:pass@host/x") == "cannot reach https://host/x"


def test_what_a_server_says_is_one_printable_line(capsys):
    said = str(explain(ValueError("\x1b[31mgone\nerror: \x9b by https://bob:pass@host"), "a/b"))
    assert said == r"a/b: ValueError: \x1b[31mgone error: \x9b by https://host; correct the cause and try again"
