"""Repositories and routes of the Hub server of `hub_server.py`, and the Hub's rules for model cards."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field

import yaml


# Token -> (user, role of the token). A user owns the namespace of the same name.
TOKENS = {
    "writer": ("jet", "write"),
    "reader": ("jet", "read"),
    "stranger": ("someone", "write"),
    "author": ("my-name", "write"),  # of the documentation
}
REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[\w.-]+/[\w.-]+)"
FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", REPO + r"/preupload/(?P<revision>[^/]+)"),
    ("batch", "POST", FILE + r"\.git/info/lfs/objects/batch"),
    ("upload", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    ("verify", "POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify"),
    ("commit", "POST", REPO + r"/commit/(?P<revision>[^/]+)"),
    ("variables", "GET", REPO + r"/variables"),
    ("set_variable", "POST", REPO + r"/variables"),
    ("delete_variable", "DELETE", REPO + r"/variables"),
    ("runtime", "GET", REPO + r"/runtime"),
    ("hardware", "POST", REPO + r"/hardware"),
    ("tree", "GET", REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?"),
    ("info", "GET", REPO + r"(?:/revision/(?P<revision>[^/]+))?"),
    ("resolve", "GET", FILE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
]
HARDWARE = ("cpu-basic", "zero-a10g", "t4-small")
HUB_ID = r"(?:[\w-]+/)?[\w.-]+"
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"


class HubError(Exception):
    """Response with an error status, an error code of the Hub, and further headers and JSON fields."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **fields):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}
        self.body = {"error": message, **fields}


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    owner: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS objects by sha256, committed or not
    variables: dict[str, str] = field(default_factory=dict)
    hardware: str = "cpu-basic"

    def commit(self, message: str, files: dict[str, File]) -> str:
        listing = repr([message, len(self.commits), sorted((path, file.etag) for path, file in files.items())])
        self.commits.append(Commit(hashlib.sha1(listing.encode()).hexdigest(), message, files))
        return self.commits[-1].sha

    def at(self, revision: str) -> Commit:
        for commit in reversed(self.commits):
            if revision in ("main", commit.sha):
                return commit
        raise HubError(404, "Invalid rev id", "RevisionNotFound")


class Hub:
    """Repositories, and a method for each route, which returns the response as JSON types."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads: dict[str, Repo] = {}  # repository for which an LFS object was announced

    def visible(self, kind: str, repo_id: str, user: str | None) -> Repo:
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and repo.owner != user):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def check_may_write(self, user: str | None, role: str | None, repo: Repo | None) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write" or (repo is not None and repo.owner != user):
            raise HubError(403, "Forbidden: you don't have the rights to write here")

    def whoami(self, user, role, **_):
        if user is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": role}
        return {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}

    def create(self, user, role, data, **_):
        self.check_may_write(user, role, None)
        kind, owner = f"{data.get('type') or 'model'}s", data.get("organization") or user
        repo_id = f"{owner}/{data['name']}"
        url = f"{self.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if owner != user:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if (kind, repo_id) in self.repos:
            raise HubError(409, "You already created this repo", url=url)
        if kind == "spaces" and not data.get("sdk"):
            raise HubError(400, "sdk is required")
        if data.get("hardware", "cpu-basic") not in HARDWARE:
            raise HubError(400, f"Invalid hardware {data['hardware']}")
        repo = Repo(owner, private=data.get("visibility") == "private" or bool(data.get("private")))
        repo.hardware = data.get("hardware", repo.hardware)
        repo.commit("initial commit", {".gitattributes": File(GITATTRIBUTES, lfs=False)})
        self.repos[kind, repo_id] = repo
        return {"url": url, "name": repo_id, "id": repo_id}

    def validate(self, data, **_):
        errors = card_errors(data["content"]) if data["repoType"] == "model" else []
        if errors:
            raise HubError(400, errors[0], errors=[{"message": error} for error in errors], warnings=[])
        return {"errors": [], "warnings": []}

    def preupload(self, repo, revision, data, **_):
        files, answers = repo.at(revision).files, []
        for entry in data["files"]:
            path, sample = entry["path"], base64.b64decode(entry["sample"])
            lfs = path.endswith((".safetensors", ".png")) or b"\0" in sample or entry["size"] > 10_000_000
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": files[path].etag} if path in files else {}))
        return {"files": answers}

    def batch(self, repo, data, **_):
        objects = []
        for entry in data["objects"]:
            oid, size = entry["oid"], entry["size"]
            if oid in repo.objects:
                objects.append({"oid": oid, "size": size})
                continue
            self.uploads[oid] = repo
            url = f"{self.url}/lfs/{oid}"
            actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            objects.append({"oid": oid, "size": size, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid, body, **_):
        if oid not in self.uploads:
            raise HubError(403, "no batch announced this object")
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "the content has another sha256")
        self.uploads[oid].objects[oid] = body
        return {"etag": oid}

    def verify(self, oid, data, **_):
        if len(self.uploads[oid].objects.get(oid, b"")) != data["size"]:
            raise HubError(404, "not uploaded")
        return {}

    def commit(self, repo, repo_id, kind, revision, body, **_):
        head, header = repo.at(revision), {}
        files = dict(head.files)
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in repo.objects:
                    raise HubError(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                files[value["path"]] = File(repo.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key == "deletedFolder":
                files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
            else:
                raise HubError(400, f"unknown operation {key}")
        if header.get("parentCommit") not in (None, head.sha):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        sha = repo.commit(header["summary"], files)
        prefix = "" if kind == "models" else f"{kind}/"
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{prefix}{repo_id}/commit/{sha}"}

    def variables(self, repo, **_):
        return {key: {"key": key, "value": value} for key, value in repo.variables.items()}

    def set_variable(self, repo, data, **_):
        repo.variables[data["key"]] = data["value"]
        return self.variables(repo)

    def delete_variable(self, repo, data, **_):
        if repo.variables.pop(data["key"], None) is None:
            raise HubError(404, "This variable does not exist")
        return self.variables(repo)

    def runtime(self, repo, **_):
        stage = "BUILDING" if "app.py" in repo.at("main").files else "NO_APP_FILE"
        return {"stage": stage, "hardware": {"current": None, "requested": repo.hardware}, "gcTimeout": None}

    def hardware(self, repo, data, **_):
        if data["flavor"] not in HARDWARE:
            raise HubError(400, f"Invalid hardware {data['flavor']}")
        repo.hardware = data["flavor"]
        return self.runtime(repo)

    def info(self, repo, repo_id, revision="main", **_):
        commit = repo.at(revision)
        files = commit.files
        card = card_metadata(files["README.md"].content.decode()) if "README.md" in files else {}
        named = {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
        fields = {"id": repo_id, "modelId": repo_id, "author": repo.owner, "sha": commit.sha, "private": repo.private}
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {**fields, "tags": card.get("tags", []), "cardData": card, "siblings": siblings, **named}

    def tree(self, repo, revision, path="", **_):
        entries = []
        for name, file in sorted(repo.at(revision).files.items()):
            if name.startswith(path):
                size = len(file.content)
                lfs = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": 134}} if file.lfs else {}
                entries.append({"type": "file", "path": name, "oid": file.oid, "size": size, **lfs})
        return entries

    def resolve(self, repo, revision, path, **_):
        commit = repo.at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.sha})
        return commit.sha, commit.files[path]


def card_metadata(content: str) -> dict:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def card_errors(content: str) -> list[str]:
    """Return violations of the Hub's rules for model cards."""
    try:
        card = card_metadata(content)
        json.dumps(card, allow_nan=False)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        return [f"not valid YAML and JSON: {error}"]
    errors = []
    for name in ("datasets", "base_model"):
        values = card.get(name) or []
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(HUB_ID, value):
                errors.append(f'"{name}" with value "{value}" is not valid. Use an id from https://hf.co')
    for model in card.get("model-index", []):
        if not isinstance(model.get("name"), str) or not model.get("results"):
            errors.append('"model-index[0].name" and "model-index[0].results" are required')
        errors += [error for result in model.get("results") or [] for error in result_errors(result)]
    return errors


def result_errors(result: dict) -> list[str]:
    errors, dataset, metrics = [], result.get("dataset", {}), result.get("metrics", [])
    if not result.get("task", {}).get("type") or not dataset.get("name") or not metrics:
        errors.append("a result of model-index needs task.type, dataset.name and metrics")
    if not re.fullmatch(HUB_ID, dataset.get("type", "")):
        errors.append(f'"model-index[0].results[0].dataset.type" with value "{dataset.get("type")}" fails')
    if not all("type" in metric and "value" in metric for metric in metrics):
        errors.append("a metric of model-index needs type and value")
    return errors
