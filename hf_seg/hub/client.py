"""The Hugging Face Hub: who may write where, uploads that are tried again, and errors that say what to do."""

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
from huggingface_hub import HfApi, get_token, is_offline_mode, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._http import default_client_factory

from hf_seg.problem import HubError
from hf_seg.recipe import Recipe
from hf_seg.runs.card import without_private_parts
from hf_seg.runs.record import changed_keys
from hf_seg.text import printable, without_secrets

WAITS = (4.0, 16.0, 64.0)  # seconds before each further attempt; huggingface_hub has tried several times by itself
LONGEST_WAIT = 300.0  # what a server may ask for by Retry-After
TIMEOUT = httpx2.Timeout(connect=10, read=60, write=60, pool=60)  # seconds; by default huggingface_hub waits for ever
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a run goes.

    Args:
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*): a branch, made when it is not there; None is main.
        private (`bool`, *optional*): of a repository that is still to be made; None is the owner's default.
    """

    repo_id: str
    revision: str | None = None
    private: bool | None = None


def destinations(recipes: Iterable[Recipe], overwrite: Iterable[str] = ()) -> dict[str, Destination]:
    """Find out, before anything trains, where the recipes that are to be pushed go, and whether they may.

    Args:
        recipes (`Iterable[Recipe]`): of one launch; those without `push_to_hub` are passed over.
        overwrite (`Iterable[str]`): names of recipes that may replace another recipe's run on the Hub.

    Returns:
        `dict[str, Destination]`: by the recipe's name.

    Raises:
        HubError: when there is no token or it may not write there, when a repository holds something else, and when
            the Hub cannot be reached.
    """
    found: dict[str, Destination] = {}
    for recipe in recipes:
        if recipe.training.push_to_hub:
            arguments = recipe.training.arguments
            where = Destination(
                repo_id=full_name(arguments.get("hub_model_id") or recipe.name),
                revision=arguments.get("hub_revision"),
                private=arguments.get("hub_private_repo"),
            )
            for name, other in found.items():
                if (other.repo_id, other.revision) == (where.repo_id, where.revision):
                    raise HubError(
                        f"training.hub_model_id: {name} and {recipe.name} would both be pushed to {where.repo_id}; "
                        "give them names or a hub_revision of their own"
                    )
            check_free(where, recipe.to_dict(), recipe.name in overwrite)
            found[recipe.name] = where
    return found


def full_name(repo: str) -> str:
    """`owner/name` of a repository that the token may write to; a bare name is the user's own.

    Raises:
        HubError: when there is no token, it is not valid, or it may not write there.
    """
    if is_offline_mode():
        raise HubError(f"{repo}: cannot be pushed, since HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise HubError(f"{repo}: cannot be pushed without a token; run `hf auth login`, or set HF_TOKEN")
    who = attempt(lambda: HfApi().whoami(), repo)
    owner = repo.rpartition("/")[0] or who["name"]
    repo_id = f"{owner}/{repo.rpartition('/')[2]}"
    organisations = {organisation["name"]: organisation.get("roleInOrg") for organisation in who.get("orgs", [])}
    if owner != who["name"] and organisations.get(owner, "read") == "read":
        raise HubError(
            f"{repo_id}: the token is {who['name']}'s, who may not write to {owner}; name a repository of your own or "
            "of an organisation that lets you write"
        )
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not _granted(token, owner, repo_id)):
        raise HubError(
            f"{repo_id}: the token may read only; make one that may write at https://huggingface.co/settings/tokens, "
            "and give it to `hf auth login` or HF_TOKEN"
        )
    return repo_id


def _granted(token: dict, owner: str, repo_id: str) -> bool:
    scopes = token.get("fineGrained", {}).get("scoped", [])
    return any(
        scope.get("entity", {}).get("name") in (owner, repo_id) and "repo.write" in scope.get("permissions", [])
        for scope in scopes
    )


def check_free(where: Destination, recipe: dict[str, Any], overwrite: bool = False) -> None:
    """Refuse a repository that holds something other than this recipe's run.

    Raises:
        HubError: naming what differs.
    """
    api, repo_id = HfApi(), where.repo_id
    try:
        files = attempt(lambda: api.list_repo_files(repo_id, revision=where.revision), repo_id, expected=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return
    if not set(files) - {".gitattributes", "README.md"}:
        return
    remedy = "choose another hub_model_id or hub_revision, or delete it"
    if "recipe.json" not in files:
        raise HubError(f"{repo_id}: exists on the Hub and is not a run of hf_seg; {remedy}")
    if not overwrite:
        there = attempt(lambda: api.hf_hub_download(repo_id, "recipe.json", revision=where.revision), repo_id)
        try:
            theirs = json.loads(Path(there).read_text(encoding="utf-8"))
            changed = changed_keys(without_private_parts(recipe), theirs)  # what is published has no private parts
        except (ValueError, AttributeError, TypeError) as error:
            raise HubError(f"{repo_id}: its recipe.json is not a recipe ({error}); {remedy}") from error
        if changed:
            raise HubError(
                f"{repo_id}: holds a run of another recipe ({'; '.join(changed)}); {remedy}, or pass --overwrite"
            )


def create(where: Destination) -> None:
    """Make the repository and the branch, where they are not there yet.

    Raises:
        HubError: when the Hub refuses.
    """
    api = HfApi()
    attempt(lambda: api.create_repo(where.repo_id, private=where.private, exist_ok=True), where.repo_id)
    if where.revision:
        attempt(lambda: api.create_branch(where.repo_id, branch=where.revision, exist_ok=True), where.repo_id)


def upload(folder: Path, where: Destination, message: str) -> str:
    """Upload a folder as one commit; returns the commit's URL. What the Hub has already is not sent again.

    Raises:
        HubError: when it did not work after several attempts.
    """
    return attempt(
        lambda: HfApi().upload_folder(
            repo_id=where.repo_id, folder_path=folder, revision=where.revision, commit_message=message
        ),
        where.repo_id,
    ).commit_url


def attempt(action: Callable[[], T], what: str, expected: bool = False) -> T:
    """Do something with the Hub; on errors that may pass, again after a while, or when the server says.

    Args:
        action (`Callable`): may be called several times.
        what (`str`): names it in messages.
        expected (`bool`): let "there is no such repository or branch" through as huggingface_hub's own error.

    Raises:
        HubError: with the remedy, and without any token.
    """
    _use_time_limits()
    for wait in (*WAITS, None):
        try:
            return action()
        except Exception as error:  # huggingface_hub, httpx2 and hf_xet raise a dozen kinds; here they become one
            if expected and isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
                raise
            cause = _cause(error)
            if wait is None or not _may_pass(cause):
                raise HubError(explain(cause, what)) from None  # the chain may hold request headers
            time.sleep(_retry_after(cause) or wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


@functools.cache
def _use_time_limits() -> None:
    set_client_factory(_client)  # closes the client in use, so not in the middle of an upload


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.timeout = TIMEOUT
    return client


def _cause(error: BaseException) -> BaseException:
    """huggingface_hub hides what went wrong with a large file inside a RuntimeError."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    # hf_xet, the Hub's own transport, has no class of its own for a lost connection
    return isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError, RuntimeError))


def _retry_after(error: BaseException) -> float | None:
    try:
        return min(float(error.response.headers["Retry-After"]), LONGEST_WAIT)
    except (AttributeError, KeyError, ValueError):
        return None


def explain(error: BaseException, what: str) -> str:
    """One line that says what the Hub did not do, and the remedy; without tokens and signatures."""
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
        text, remedy = f"the Hub cannot be reached ({type(error).__name__}: {said})", "check the network, try again"
    elif isinstance(error, HFValidationError):
        text, remedy = f"is no name for a repository ({said})", "correct it"
    else:
        text, remedy = f"{type(error).__name__}: {said}", "correct what it names and try again"
    return printable(redact(f"{what}: {' '.join(text.split())}; {remedy}"))


def redact(text: str) -> str:
    """Text without the token in use, without what looks like one or like a password, and without any URL's query."""
    token = get_token()
    text = text.replace(token, "***") if token else text
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", without_secrets(text))
