"""A Hugging Face Hub on loopback, for tests: real enough for the unmodified `huggingface_hub`, and ill on demand.

It speaks what `huggingface_hub` 2.x speaks over HTTP: whoami, repository creation, branches, YAML validation,
pre-upload, Git LFS (batch, PUT, verify), commits, listings, and files with ETag, redirect and range requests. Xet, the
Hub's other storage, is left out: clients run with `HF_HUB_DISABLE_XET=1`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep  # tests replace time.sleep for the client
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER, ANOTHER = "hf_" + "w" * 34, "hf_" + "r" * 34, "hf_" + "a" * 34
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Fault:
    """What happens to the next `times` requests that match, instead of or to the answer."""

    method: str
    path: str  # regular expression, searched for in the path
    times: int = 1
    skip: int = 0  # let that many through first
    status: int | None = None  # answer with this status
    headers: dict = field(default_factory=dict)
    drop: bool = False  # read half of what is sent, then cut the line
    delay: float = 0.0  # seconds before answering
    corrupt: str | None = None  # "flip" a byte of the body, or "cut" it short


@dataclass
class Blob:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:  # of the blob in Git; an LFS file's is that of its pointer, which nobody compares
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def describe(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        large = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}}
        return entry | large if self.lfs else entry


@dataclass
class Repository:
    private: bool
    branches: dict = field(default_factory=dict)  # name → commit
    commits: dict = field(default_factory=dict)  # commit → path → Blob
    parents: dict = field(default_factory=dict)  # commit → commit
    messages: list = field(default_factory=list)

    def commit(self, branch: str, files: dict, message: str) -> str:
        content = json.dumps([branch, message, len(self.commits), sorted(files)]).encode()
        oid = hashlib.sha1(content).hexdigest()
        self.commits[oid], self.parents[oid], self.branches[branch] = files, self.branches.get(branch), oid
        self.messages.append(message)
        return oid

    def files(self, revision: str) -> dict | None:
        return self.commits.get(self.branches.get(revision, revision))


class Hub:
    """The server's state, and the handles that tests turn."""

    def __init__(self, port: int = 0):
        self.users = {
            WRITER: {"name": "alice", "role": "write", "orgs": {"lab": "write", "museum": "read"}},
            READER: {"name": "alice", "role": "read", "orgs": {}},
            ANOTHER: {"name": "bob", "role": "write", "orgs": {}},
        }
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stored: dict[str, bytes] = {}  # LFS content by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, **what) -> Fault:
        """Make the next request, or the next `times`, go wrong; see [`Fault`]."""
        fault = Fault(method, path, **what)
        self.faults.append(fault)
        return fault

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What a repository holds: path → content."""
        return {path: blob.content for path, blob in self.repositories[kind, repo_id].files(revision).items()}

    def count(self, method: str, path: str) -> int:
        return sum(1 for m, p, _ in self.requests if m == method and re.search(path, p))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.dispatch()

    do_HEAD = do_POST = do_PUT = do_GET

    # -- one request -----------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.fault = self.next_fault()
        if self.fault and self.fault.drop:
            self.rfile.read(self.length // 2)
            self.hub.requests.append((self.command, self.route, 0))
            self.close_connection = True
            return
        self.body = self.read_body()
        if self.fault:
            sleep(self.fault.delay)
            if self.fault.status:
                return self.error(self.fault.status, "a fault on purpose", headers=self.fault.headers)
        with self.hub.lock:
            self.user = self.hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if self.headers.get("Authorization") and self.user is None:
                return self.error(401, "Invalid credentials in Authorization header")
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, self.route)
                if method == self.command.replace("HEAD", "GET") and match:
                    return answer(self, **match.groupdict())
        self.error(404, f"no such page: {self.command} {self.route}")

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(self.length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def next_fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and fault.method == self.command and re.search(fault.path, self.route):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def answer(self, status: int, body: bytes = b"", headers: dict | None = None) -> None:
        self.hub.requests.append((self.command, self.route, status))
        self.send_response(status)
        declared = len(body)
        if self.fault and self.fault.corrupt and body and self.command == "GET":
            middle = len(body) // 2
            flipped = body[:middle] + bytes([body[middle] ^ 255]) + body[middle + 1 :]
            body = flipped if self.fault.corrupt == "flip" else body[:middle]
            self.close_connection = self.close_connection or self.fault.corrupt == "cut"
        for name, value in ({"Content-Length": str(declared)} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, message: str, code: str | None = None, headers: dict | None = None) -> None:
        extra = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
        body = json.dumps({"error": message}).encode()
        self.answer(status, body, {"Content-Type": "application/json"} | extra)

    # -- who may do what -------------------------------------------------------------------------------------------

    def may_write(self, repo_id: str) -> bool:
        if self.user is None or self.user["role"] != "write":
            return False
        owner = repo_id.partition("/")[0]
        return owner == self.user["name"] or self.user["orgs"].get(owner) in ("write", "admin")

    def repository(self, kind: str, repo_id: str, write: bool = False) -> Repository | None:
        """The repository, or None after the error was sent. The Hub does not tell a stranger what is private."""
        found = self.hub.repositories.get((kind, repo_id))
        member = self.user and repo_id.partition("/")[0] in {self.user["name"], *self.user["orgs"]}
        if found is None or (found.private and not member):
            self.error(404 if self.user else 401, "Repository not found", "RepoNotFound")
            return None
        if write and not self.may_write(repo_id):
            self.error(403, "You have no write permission on this repository")
            return None
        return found

    # -- pages -----------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        if self.user is None:
            return self.error(401, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": role} for name, role in self.user["orgs"].items()]
        token = {"displayName": "test", "role": self.user["role"]} | self.user.get("token", {})
        auth = {"type": "access_token", "accessToken": token}
        self.json({"type": "user", "id": "1", "name": self.user["name"], "orgs": orgs, "auth": auth})

    def create(self) -> None:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or (self.user or {}).get("name")
        repo_id, kind = f"{owner}/{wanted['name']}", wanted.get("type") or "model"
        page = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        if self.user is None:
            return self.error(401, "Invalid username or password.")
        if not self.may_write(repo_id):
            return self.error(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
        if (kind, repo_id) in self.hub.repositories:
            return self.json({"error": "You already created this repo", "url": page}, 409)
        made = Repository(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        made.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self.hub.repositories[kind, repo_id] = made
        self.json({"url": page, "name": repo_id, "id": repo_id})

    def info(self, kind: str, repo_id: str, revision: str = "main") -> None:
        found = self.repository(kind, repo_id)
        if found is None:
            return
        files = found.files(revision)
        if files is None:
            return self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        names = [{"rfilename": path} for path in files]
        commit = found.branches.get(revision, revision)
        self.json({"id": repo_id, "_id": "1", "sha": commit, "private": found.private, "siblings": names, "tags": []})

    def tree(self, kind: str, repo_id: str, revision: str) -> None:
        found = self.repository(kind, repo_id)
        if found is None:
            return
        if (files := found.files(revision)) is None:
            return self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        self.json([blob.describe(path) for path, blob in files.items()])

    def history(self, kind: str, repo_id: str, revision: str) -> None:
        if found := self.repository(kind, repo_id):
            lines, commit = [], found.branches.get(revision, revision)
            while commit:
                entry = {"id": commit, "authors": [], "date": "2026-01-01T00:00:00.000Z", "title": "", "message": ""}
                lines, commit = [*lines, entry], found.parents[commit]
            self.json(lines)

    def refs(self, kind: str, repo_id: str) -> None:
        if found := self.repository(kind, repo_id):
            heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in found.branches.items()]
            self.json({"branches": heads, "tags": [], "converts": []})

    def branch(self, kind: str, repo_id: str, name: str) -> None:
        found = self.repository(kind, repo_id, write=True)
        if found is None:
            return
        if name in found.branches:
            return self.error(409, f"Reference already exists: {name}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        found.branches[name] = found.branches.get(start, start)
        self.json({})

    def validate_yaml(self) -> None:
        self.json({"errors": _card_errors(json.loads(self.body)["content"]), "warnings": []})

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        found = self.repository(kind, repo_id, write=True)
        if found is None:
            return
        if (there := found.files(revision)) is None:
            return self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = []
        for file in json.loads(self.body)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            lfs = b"\0" in sample or file["size"] > 10_000_000 or path.endswith((".safetensors", ".pt", ".onnx"))
            oid = there[path].oid if path in there and not there[path].lfs else None
            files.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
        self.json({"files": files})

    def lfs_batch(self, repo_id: str) -> None:
        kind = "model"
        if repo_id.startswith(("spaces/", "datasets/")):
            kind, repo_id = repo_id.split("/", 1)
            kind = kind.removesuffix("s")
        if self.repository(kind, repo_id, write=True) is None:
            return
        objects = []
        for thing in json.loads(self.body)["objects"]:
            entry = {"oid": thing["oid"], "size": thing["size"]}
            if thing["oid"] not in self.hub.stored:
                base = f"{self.hub.endpoint}/storage/{thing['oid']}"
                entry["actions"] = {
                    "upload": {"href": base + "?signature=secret"},
                    "verify": {"href": f"{base}/verify"},
                }
            objects.append(entry)
        self.json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.error(400, "The content does not have the announced SHA-256")
        self.hub.stored[oid] = self.body
        self.answer(200)

    def lfs_verify(self, oid: str) -> None:
        self.json({}) if oid in self.hub.stored else self.error(404, "Object not found")

    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        found = self.repository(kind, repo_id, write=True)
        if found is None:
            return
        if revision not in found.branches:
            return self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(found.files(revision))
        lines = [json.loads(line) for line in self.body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    return self.error(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = Blob(self.hub.stored[value["oid"]], True)
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif line["key"] == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
        oid = found.commit(revision, files, lines[0]["value"]["summary"])
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}"})

    def resolve(self, repo_id: str, revision: str, path: str, kind: str = "model") -> None:
        found = self.repository(kind, repo_id)
        if found is None:
            return
        if (files := found.files(revision)) is None:
            return self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        commit = {"X-Repo-Commit": found.branches.get(revision, revision)}
        if path not in files:
            return self.error(404, "Entry not found", "EntryNotFound", commit)
        blob = files[path]
        if not blob.lfs:
            return self.content(blob.content, commit | {"ETag": f'"{blob.oid}"'})
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        # a host of another name, as the Hub's storage is: clients follow redirects within the Hub by themselves
        storage = self.hub.endpoint.replace("127.0.0.1", "localhost")
        where = {"Location": f"{storage}/storage/{blob.sha256}"}
        self.answer(302, b"", commit | linked | where)

    def lfs_get(self, oid: str) -> None:
        if oid not in self.hub.stored:
            return self.error(404, "Object not found")
        self.content(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def content(self, content: bytes, headers: dict) -> None:
        headers = headers | {"Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, content, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if first > last:
            return self.error(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
        span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self.answer(206, content[first : last + 1], headers | span)


def _card_errors(content: str) -> list[dict]:
    """What the Hub's validation objects to in a card's metadata, as far as it is documented."""
    block = re.match(r"\A---\r?\n(.*?)\r?\n---", content, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        return [{"message": f"invalid YAML: {error}"}]
    if not isinstance(data, dict):
        return [{"message": "the card has no metadata"}]
    messages = []
    if not isinstance(data.get("license", ""), str):
        messages.append('"license" must be a string')
    if data.get("license") == "other" and not ("license_name" in data or "license_link" in data):
        messages.append('"license_name" or "license_link" is required with license "other"')
    for key in ("tags", "datasets"):
        if not all(isinstance(item, str) for item in data.get(key) or []):
            messages.append(f'"{key}" must be a list of strings')
    for model in data.get("model-index") or []:
        if not model.get("name") or not model.get("results"):
            messages.append('"model-index[].name" and "results" are required')
        for result in model.get("results") or []:
            if not result.get("task", {}).get("type"):
                messages.append('"model-index[].results[].task.type" is required')
            if not {"type", "name"} <= result.get("dataset", {}).keys():
                messages.append('"model-index[].results[].dataset.type" and "name" are required')
            for metric in result.get("metrics") or [{}]:
                if not {"type", "value"} <= metric.keys() or isinstance(metric["value"], str):
                    messages.append('"model-index[].results[].metrics[]" needs "type" and a number as "value"')
    return [{"message": message} for message in messages]


_REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>model|space|dataset)s/{_REPO}"
ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", rf"{_API}", _Handler.info),
    ("GET", rf"{_API}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/.*)?", _Handler.tree),
    ("GET", rf"{_API}/commits/(?P<revision>.+)", _Handler.history),
    ("GET", rf"{_API}/refs", _Handler.refs),
    ("POST", rf"{_API}/branch/(?P<name>.+)", _Handler.branch),
    ("POST", rf"{_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", r"/(?P<repo_id>.+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.lfs_get),
    ("POST", r"/storage/(?P<oid>[0-9a-f]{64})/verify", _Handler.lfs_verify),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET", rf"/(?P<kind>space|dataset)s/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
