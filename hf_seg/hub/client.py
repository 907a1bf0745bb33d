"""Access to the Hugging Face Hub: checks of write permission, uploads with retries, errors that name a remedy."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, get_session, get_token, hf_hub_download, is_offline_mode, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_seg.problem import HubError, one_line
from hf_seg.recipe import Recipe
from hf_seg.runs.card import without_private_parts
from hf_seg.runs.record import changed_keys
from hf_seg.text import without_secrets

WAITS = (4.0, 16.0, 64.0)  # seconds before each further attempt; huggingface_hub itself retries several times
LONGEST_WAIT = 300.0  # seconds; a longer Retry-After of the server is cut to this
TIMEOUT = httpx2.Timeout(connect=10, read=60, write=60, pool=60)  # seconds; by default huggingface_hub waits for ever
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
HUB_KEYS = {"repo_id": "model_id", "revision": "revision", "private": "private_repo"}  # in a recipe with "hub_" before
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Destination:
    """The repository and branch that a run is pushed to."""

    repo_id: str  # owner/name
    revision: str | None = None  # a branch, created if it does not exist; None is main
    private: bool | None = None  # applies if the repository is created; None is the owner's default


def destinations(recipes: Iterable[Recipe], overwrite: Iterable[str] = ()) -> dict[str, Destination]:
    """Find the [`Destination`] of each recipe with `push_to_hub`, by recipe name; call it before anything trains.

    Args:
        overwrite: names of the recipes that may replace a run of another recipe on the Hub.

    Raises:
        HubError: when there is no token, the token may not write there, two recipes have the same destination, a
            repository holds something else, or the Hub cannot be reached.
    """
    found: dict[str, Destination] = {}
    for recipe in recipes:
        if not recipe.training.push_to_hub:
            continue
        asked = {key: recipe.training.arguments.get(f"hub_{name}") for key, name in HUB_KEYS.items()}
        where = Destination(**asked | {"repo_id": full_name(asked["repo_id"] or recipe.name, "training.hub_model_id")})
        for name, other in found.items():
            if (other.repo_id, other.revision) == (where.repo_id, where.revision):
                what = f"{name} and {recipe.name} would both be pushed to {where.repo_id}"
                raise HubError("training.hub_model_id", what, "give each its own hub_model_id or hub_revision")
        remedy = "choose another hub_model_id or hub_revision, or delete it"
        check_free(where, recipe.to_dict(), remedy, overwrite=recipe.name in overwrite)
        found[recipe.name] = where
    return found


def full_name(repo: str, option: str) -> str:
    """Complete a repository's name to `owner/name`, by default the user's. Raise a [`HubError`] if the token may not
    write there, or if the name is not valid; then the message names the `option` that sets another one."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        what = f"is not a valid name for a repository ({one_line(error)})"
        raise HubError(repo, what, f"name another one with {option}") from None
    if is_offline_mode():
        raise HubError(repo, "cannot be pushed, since HF_HUB_OFFLINE is set", "unset it")
    if get_token() is None:
        raise HubError(repo, "cannot be pushed without a token", "run `hf auth login`, or set HF_TOKEN")
    who = attempt(lambda: HfApi().whoami(), repo)
    owner = repo.rpartition("/")[0] or who["name"]
    repo_id = f"{owner}/{repo.rpartition('/')[2]}"
    organisations = {organisation["name"]: organisation.get("roleInOrg") for organisation in who.get("orgs", [])}
    if owner != who["name"] and organisations.get(owner, "read") == "read":
        what = f"the token belongs to {who['name']}, who may not write to {owner}"
        raise HubError(repo_id, what, "name a repository of your own or of an organisation that lets you write")
    token = who.get("auth", {}).get("accessToken", {})
    may_write = token.get("role") != "read"
    if token.get("role") == "fineGrained":
        may_write = any(
            scope.get("entity", {}).get("name") in (owner, repo_id) and "repo.write" in scope.get("permissions", [])
            for scope in token.get("fineGrained", {}).get("scoped", [])
        )
    if not may_write:
        remedy = (
            "create one that may write at https://huggingface.co/settings/tokens, and use it in `hf auth login` or"
        )
        raise HubError(repo_id, "the token may only read", f"{remedy} HF_TOKEN")
    return repo_id


def check_free(where: Destination, recipe: dict[str, Any], remedy: str, *, overwrite: bool | None = None) -> None:
    """Refuse a repository that holds something other than this recipe's run, by a [`HubError`].

    Args:
        overwrite: whether a run of another recipe may be replaced; None means no, where the command has no
            --overwrite.
    """
    repo_id = where.repo_id
    files = list_files(repo_id, revision=where.revision)
    if not files:
        return
    if "recipe.json" not in files:
        raise HubError(repo_id, "exists on the Hub and is not a run of hf_seg", remedy)
    if overwrite:
        return
    there = attempt(lambda: hf_hub_download(repo_id, "recipe.json", revision=where.revision), repo_id)
    try:
        theirs = json.loads(Path(there).read_text(encoding="utf-8"))
        changed = changed_keys(without_private_parts(recipe), theirs)  # what is published has no private parts
    except (ValueError, AttributeError, TypeError) as error:
        raise HubError(repo_id, f"its recipe.json is not a recipe ({error})", remedy) from error
    if changed:
        what = f"holds a run of a different recipe ({'; '.join(changed)})"
        raise HubError(repo_id, what, remedy if overwrite is None else f"{remedy}, or pass --overwrite")


def list_files(repo_id: str, **where: str | None) -> set[str]:
    """Names of a repository's files except those that the Hub creates (`.gitattributes`, `README.md`); empty if no
    such repository or revision exists. `where` is passed on to `list_repo_files`."""
    try:
        files = attempt(lambda: HfApi().list_repo_files(repo_id, **where), repo_id, expected=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return set()
    return set(files) - {".gitattributes", "README.md"}


def create(where: Destination) -> None:
    """Create the repository and the branch if they do not exist. A new branch starts from the first commit, which
    holds no run: a later commit of main would put another run's files beside this run's."""
    api, repo_id = HfApi(), where.repo_id
    attempt(lambda: api.create_repo(repo_id, private=where.private, exist_ok=True), repo_id)
    if where.private and not attempt(lambda: api.model_info(repo_id), repo_id).private:
        remedy = "make it private on the Hub, or name another repository"
        raise HubError(repo_id, "exists and is public, but the run is to be private", remedy)
    if where.revision:
        first = attempt(lambda: api.list_repo_commits(repo_id)[-1].commit_id, repo_id)
        attempt(lambda: api.create_branch(repo_id, branch=where.revision, revision=first, exist_ok=True), repo_id)


def upload(folder: Path, where: Destination, message: str) -> str:
    """Upload a folder as one commit and return its URL. Files that the Hub already has are not sent again."""
    what = {"folder_path": folder, "repo_id": where.repo_id, "revision": where.revision, "commit_message": message}
    return attempt(lambda: HfApi().upload_folder(**what), where.repo_id).commit_url


def attempt(action: Callable[[], T], what: str, expected: bool = False) -> T:
    """Call `action`, which uses the Hub; after a temporary error try again, up to `len(WAITS)` times. The wait before
    each attempt is the one that the server asks for, else that of `WAITS`.

    Args:
        what: the repository or file, for messages.
        expected: raise "there is no such repository or revision" as huggingface_hub's own error.

    Raises:
        HubError: with the remedy, and without any token.
    """
    _limit_waiting()
    waits = iter(WAITS)
    while True:
        try:
            return action()
        except Exception as error:  # huggingface_hub, httpx2 and hf_xet raise a dozen types; all become HubError
            if expected and isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
                raise
            cause: BaseException = error
            while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
                cause = cause.__cause__  # huggingface_hub wraps the error of a large file
            wait = next(waits, None)
            if wait is None or not _may_pass(cause):
                raise explain(cause, what) from None  # the chained error may hold request headers
            time.sleep(_retry_after(cause) or wait)


@functools.cache
def _limit_waiting() -> None:
    hooks = get_session().event_hooks  # the hooks that huggingface_hub runs for every request
    # this closes the current client, so it must not happen during an upload
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=TIMEOUT))


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    # hf_xet, the Hub's own transport, raises RuntimeError when a connection is lost
    return isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError, RuntimeError))


def _retry_after(error: BaseException) -> float | None:
    try:
        return min(float(error.response.headers["Retry-After"]), LONGEST_WAIT)
    except (AttributeError, KeyError, ValueError):
        return None


def explain(error: BaseException, what: str) -> HubError:
    """Turn an error into a [`HubError`] that says what failed and the remedy, without tokens and signed URLs."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    if status == 401:
        text, remedy = "the Hub does not accept the token (401)", "run `hf auth login`, or set HF_TOKEN to a valid one"
    elif status == 403:
        text, remedy = f"the Hub does not allow it (403: {said})", "use a token that may write there"
    elif status is not None:
        text = f"the Hub answered {status} ({said})"
        remedy = "try again later" if status in TRANSIENT else "see the answer"
    elif isinstance(error, httpx2.TransportError):
        text, remedy = f"the Hub cannot be reached ({type(error).__name__}: {said})", "check the network and try again"
    else:
        text, remedy = f"{type(error).__name__}: {said}", "correct the cause and try again"
    return HubError(redact(what), redact(" ".join(text.split())), remedy)


def redact(text: str) -> str:
    """Return the text without the current token, anything that looks like a token or password, and queries of URLs."""
    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", without_secrets(text))
