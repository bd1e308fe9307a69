"""
A local server that speaks as much of the Hub's API as `huggingface_hub`, `datasets` and `transformers` use to push and
to load: repositories, commits, LFS for large files, trees and downloads. It stores everything, so that a test can look
at each byte that was pushed.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


USER = "me"
_ID = r"(?P<user>[^/]+)/(?P<name>[^/]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_ID}"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/(datasets/)?{_ID}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/objects/(?P<oid>\w+)", "upload"),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"{_API}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
    ("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/(?P<kind>datasets)/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
_WRITING = ("whoami", "create", "preupload", "batch", "commit", "branch")
_LARGE = (".parquet", ".safetensors", ".bin", ".pt", ".pth")


class Refused(Exception):
    """An answer that is an error: its status, its code, and its message."""


@dataclass
class Repo:
    """A repository: the files of each commit, and the last commit of each branch."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, branch, files, message):
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def commit_of(self, revision):
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"no revision {revision}")
        return sha


class FakeHub:
    """
    The Hub of one user, in a thread.

    Attributes:
        token: What writing needs.
        repos: The repositories by kind (`"model"` or `"dataset"`) and name.
        failing: Names of the routes that answer with an error 503, such as `"commit"`.
        num_calls: Number of requests by route.
    """

    def __init__(self, token="hf_secretTokenOfTheTest"):
        self.token = token
        self.repos = {}
        self.objects = {}
        self.failing = set()
        self.num_calls = {}

    def files(self, kind, name, revision="main"):
        repo = self.repos[kind, name]
        return repo.commits[repo.commit_of(revision)]

    def pushed(self):
        """Every file of every commit, by repository and path."""
        return [
            (name, path, content)
            for (_, name), repo in self.repos.items()
            for files in repo.commits.values()
            for path, content in files.items()
        ]

    @contextmanager
    def running(self):
        """Serve, and yield the address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self.url
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def repo(self, kind="model", user=None, name=None, **_):
        found = self.repos.get((kind.rstrip("s"), f"{user}/{name}"))
        if found is None:
            raise Refused(404, "RepoNotFound", "Repository Not Found")
        return found

    # --- Routes: each gets the body and the parts of the path, and returns JSON --------------------------------------

    def whoami(self, body, **_):
        return {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}}

    def create(self, body, **_):
        request = json.loads(body)
        name = f"{request.get('organization') or USER}/{request['name']}"
        key = request.get("type", "model"), name
        if not name.startswith(f"{USER}/"):
            raise Refused(403, "", "you have no rights to create a repository there")
        url = f"{self.url}/{'datasets/' if key[0] == 'dataset' else ''}{name}"
        if key in self.repos:
            raise Refused(409, "", "You already created this repo", {"url": url})
        self.repos[key] = Repo(request.get("visibility") == "private")
        self.repos[key].add("main", {".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        return {"url": url, "name": name}

    def validate(self, body, **_):
        return {"errors": [], "warnings": []}

    def preupload(self, body, revision, **where):
        files = self.repo(**where).commits[self.repo(**where).commit_of(revision)]
        paths = [file["path"] for file in json.loads(body)["files"]]
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _blob(files[path]) if path in files else None,
                }
                for path in paths
            ]
        }

    def batch(self, body, **_):
        objects = json.loads(body)["objects"]
        actions = [{"upload": {"href": f"{self.url}/objects/{each['oid']}"}} for each in objects]
        return {"objects": [{**each, "actions": action} for each, action in zip(objects, actions, strict=True)]}

    def upload(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        return {}

    def commit(self, body, revision, **where):
        repo = self.repo(**where)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        before = repo.commit_of(revision)
        if header.get("parentCommit", before) != before:
            raise Refused(412, "", "the branch has another commit")
        files = dict(repo.commits[before])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]
        sha = repo.add(revision, files, header["summary"])
        kind = "datasets/" if where["kind"] == "dataset" else ""
        url = f"{self.url}/{kind}{where['user']}/{where['name']}/commit/{sha}"
        return {"commitUrl": url, "commitOid": sha, "success": True}

    def branch(self, body, revision, **where):
        repo = self.repo(**where)
        if revision in repo.branches:
            raise Refused(409, "", "the branch exists")
        repo.branches[revision] = repo.branches["main"]
        return {}

    def info(self, body, revision=None, **where):
        repo = self.repo(**where)
        sha = repo.commit_of(revision or "main")
        name = f"{where['user']}/{where['name']}"
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        return {"_id": "1", "id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings}

    def paths_info(self, body, revision, **where):
        repo = self.repo(**where)
        files = repo.commits[repo.commit_of(revision)]
        request = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        paths = request["paths"] if isinstance(request["paths"], list) else [request["paths"]]
        found = [_file(path, files[path]) for path in paths if path in files]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in files)]
        return found + list(map(_folder, folders))

    def tree(self, body, revision, path=None, query=None, **where):
        repo = self.repo(**where)
        files = repo.commits[repo.commit_of(revision)]
        prefix = f"{path}/" if path else ""
        if prefix and not any(file.startswith(prefix) for file in files):
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        found, folders = [], set()
        for name, content in files.items():
            inside = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            parents = inside.split("/")[:-1]
            is_recursive = "true" in [value.lower() for value in query.get("recursive", [])]
            depths = range(1, 1 + len(parents) if is_recursive else 1 + bool(parents))
            folders |= {prefix + "/".join(parents[:depth]) for depth in depths}
            if is_recursive or not parents:
                found.append(_file(name, content))
        return found + list(map(_folder, sorted(folders)))


def _file(path, content):
    return {"type": "file", "path": path, "oid": _blob(content), "size": len(content)}


def _folder(path):
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}


def _blob(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("GET")

    def do_PUT(self):
        self.answer("PUT")

    def do_POST(self):
        self.answer("POST")

    def answer(self, method):
        body = self.read_body()
        parts = urlsplit(self.path)
        try:
            for expected, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if match is None or expected != method:
                    continue
                self.hub.num_calls[name] = self.hub.num_calls.get(name, 0) + 1
                where = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if name in self.hub.failing:
                    raise Refused(400, "", f"{name} fails in this test")
                if name in _WRITING and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
                    raise Refused(401, "", "Invalid user token.")
                if name == "resolve":
                    return self.send_file(**where)
                if name == "tree":
                    where["query"] = parse_qs(parts.query)
                return self.send(200, json.dumps(getattr(self.hub, name)(body, **where)).encode())
            raise Refused(404, "", f"no route for {method} {self.path}")
        except Refused as error:
            status, code, message, *more = error.args
            headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}
            self.send(status, json.dumps({"error": message, **(more[0] if more else {})}).encode(), headers)

    def read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send_file(self, user, name, revision, path, kind="model"):
        repo = self.hub.repo(kind, user, name)
        sha = repo.commit_of(revision)
        headers = {"X-Repo-Commit": sha}
        if path not in repo.commits[sha]:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        content = repo.commits[sha][path]
        status = 200
        if "Range" in self.headers:
            start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
            end = min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[int(start) : end + 1]
        self.send(status, content, {**headers, "ETag": f'"{_blob(repo.commits[sha][path])}"'}, "text/plain")

    def send(self, status, content, headers=None, kind="application/json"):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
