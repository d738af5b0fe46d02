"""A stand-in for the Hugging Face hub: as much of its HTTP interface as its own client speaks for models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import yaml

TOKEN = "hf_standin"


@dataclass
class Repository:
    """The files of every commit, and which commit a branch points to."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


class StandInHub(ThreadingHTTPServer):
    """``repositories`` by name; ``requests`` as (method, path); ``down`` makes it answer 503 to everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.down = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def serving(self) -> Iterator[StandInHub]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class Refused(Exception):
    """An answer that is an error: its status, and the code in the hub's own header."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        self.status, self.code, self.content = status, code, {"error": message or code, **more}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets: the second would wait 40 ms
    server: StandInHub

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        try:
            if self.server.down:
                raise Refused(503)
            content, headers = self._route(path, body)
            self._send(200, content, headers)
        except Refused as refused:
            content = json.dumps(refused.content).encode()
            self._send(refused.status, content, {"X-Error-Code": refused.code} if refused.code else {})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- what there is

    def _route(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                answered = answer(self, body, *match.groups())
                return answered if isinstance(answered, tuple) else (json.dumps(answered).encode(), {})
        raise Refused(404, message=f"no route {self.command} {path}")

    @property
    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def expect_writer(self, name: str) -> None:
        if not self.allowed:
            raise Refused(401, message="Invalid username or password.")
        if name.partition("/")[0] == "someone-else":
            raise Refused(403, message="You don't have the rights to create a model under this namespace")

    def repository(self, name: str) -> Repository:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.allowed):
            raise Refused(404 if self.allowed else 401, "RepoNotFound", "Repository not found")
        return found

    def at(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(name)
        sha = repository.resolve(revision or "main")
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.expect_writer(name)
        address = f"{self.server.address}/{name}"
        if name in self.server.repositories:
            raise Refused(409, message="You already created this model repo", url=address)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.repositories[name] = Repository(private)
        self.server.repositories[name].commit("main", {".gitattributes": b""})
        return {"url": address, "name": name}

    def validate(self, body: bytes) -> Any:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        if front is None or not isinstance(yaml.safe_load(front[1]), dict):
            return {"errors": [{"message": "no metadata"}], "warnings": []}
        return {"errors": [], "warnings": []}

    def branch(self, body: bytes, name: str, branch: str) -> Any:
        del body
        self.expect_writer(name)
        repository = self.repository(name)
        if branch in repository.branches:
            raise Refused(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return {}

    def preupload(self, body: bytes, name: str, revision: str) -> Any:
        self.expect_writer(name)
        self.at(name, revision)
        asked = [each["path"] for each in json.loads(body)["files"]]
        return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]}

    def commit(self, body: bytes, name: str, revision: str) -> Any:
        self.expect_writer(name)
        files = dict(self.at(name, revision)[1])
        for line in body.splitlines():
            step = json.loads(line)
            if step["key"] == "file":
                files[step["value"]["path"]] = base64.b64decode(step["value"]["content"])
            elif step["key"] == "deletedFile":
                del files[step["value"]["path"]]
            else:
                assert step["key"] == "header", step["key"]
        sha = self.repository(name).commit(revision, files)
        return {"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None}

    def info(self, body: bytes, name: str, revision: str | None = None) -> Any:
        del body
        sha, files = self.at(name, revision)
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "modelId": name, "sha": sha, "siblings": siblings, "private": False, "tags": []}

    def tree(self, body: bytes, name: str, revision: str) -> Any:
        del body
        _, files = self.at(name, revision)
        assert parse_qs(urlparse(self.path).query).get("recursive", ["true"])[0].lower() == "true"
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]

    def file(self, body: bytes, name: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        del body
        sha, files = self.at(name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        return files[path], {"ETag": etag, "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., Any]]] = [
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate),
    (("POST",), rf"/api/models/{NAME}/branch/{REVISION}", Handler.branch),
    (("POST",), rf"/api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    (("POST",), rf"/api/models/{NAME}/commit/{REVISION}", Handler.commit),
    (("GET",), rf"/api/models/{NAME}/tree/{REVISION}", Handler.tree),
    (("GET",), rf"/api/models/{NAME}/revision/{REVISION}", Handler.info),
    (("GET",), rf"/api/models/{NAME}", Handler.info),
    (("GET", "HEAD"), rf"/{NAME}/resolve/{REVISION}/(.+)", Handler.file),
]
