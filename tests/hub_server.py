"""A hub on this machine: a server in this process that the Hugging Face hub's client can talk to."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_thisIsNobodysToken"


@dataclasses.dataclass
class Stored:
    """A repository: the files of each commit, and the commit of each branch or tag."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)
    messages: list[str] = dataclasses.field(default_factory=list)

    def add(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(revision, revision)]


class Hub:
    """The repositories by name, and what the client has asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Stored] = {}
        self.requests: list[str] = []
        self.gone = False  # whether it answers all with "unavailable"

    def store(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Stored:
        found = self.repositories.setdefault(name, Stored(private))
        found.add("main", files)
        return found

    @property
    def writes(self) -> list[str]:
        return [line for line in self.requests if line.startswith("POST")]


class Refused(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.gone:
                raise Refused(503)
            if path.startswith("/api/"):
                self.answer(200, json.dumps(self.api(path, body)).encode())
            else:
                self.file(path)
        except Refused as error:
            self.answer(error.status, b"{}", **({"X_Error_Code": error.code} if error.code else {}))

    do_GET = do_HEAD = do_POST = handle_request

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def found(self, name: str) -> Stored:
        stored = self.hub.repositories.get(name)
        if stored is None or (stored.private and not self.is_known()):
            raise Refused(404, "RepoNotFound") if self.is_known() else Refused(401)
        return stored

    def commit_of(self, stored: Stored, revision: str) -> str:
        oid = stored.refs.get(revision, revision)
        if oid not in stored.commits:
            raise Refused(404, "RevisionNotFound")
        return oid

    def api(self, path: str, body: bytes) -> object:
        if self.command == "POST" and not self.is_known():
            raise Refused(401)
        if path == "/api/validate-yaml":
            return {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                raise Refused(409)
            if asked["organization"] == "other":
                raise Refused(403)
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.store(name, {".gitattributes": b""}, private=private)
            return {"url": f"http://{self.headers['Host']}/{name}"}
        name, rest = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path).groups()
        stored, (kind, _, revision) = self.found(name), (rest or "revision/main").partition("/")
        if self.command == "GET":
            oid = self.commit_of(stored, revision)
            files = stored.commits[oid]
            if kind == "tree":
                return [
                    {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                    for name, data in files.items()
                ]
            siblings = [{"rfilename": name} for name in files]
            return {"id": name, "sha": oid, "private": stored.private, "siblings": siblings}
        if kind == "branch":
            if revision in stored.refs:
                raise Refused(409)
            stored.refs[revision] = stored.refs["main"]
            return {}
        if kind == "preupload":
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": file["path"]} | modes for file in files]}
        assert kind == "commit"
        return self.commit(name, stored, revision, body)

    def commit(self, name: str, stored: Stored, branch: str, body: bytes) -> object:
        head = self.commit_of(stored, branch)
        files, message = dict(stored.commits[head]), ""
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise Refused(412)
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert key == "deletedFile"
                del files[value["path"]]
        oid = stored.add(branch, files, message)
        url = f"http://{self.headers['Host']}/{name}/commit/{oid}"
        return {"commitUrl": url, "commitOid": oid}

    def file(self, path: str) -> None:
        name, revision, file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
        stored = self.found(name)
        oid = self.commit_of(stored, revision)
        if file not in stored.commits[oid]:
            raise Refused(404, "EntryNotFound")
        data = stored.commits[oid][file]
        self.answer(200, data, X_Repo_Commit=oid, ETag=f'"{digest(data)}"')


def digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def hub_server(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yields a hub that the client of this process talks to, as one who may write; its cache is empty."""
    hub = Hub()
    server = ThreadingHTTPServer(("localhost", 0), type("OfHub", (Handler,), {"hub": hub}))
    # Threads that wait for one more request of a connection that the client keeps would be waited for.
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    use(patch, f"http://localhost:{server.server_port}", cache)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(patch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Makes the client of this process, which has read its environment, go to an address."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    settings = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in settings.items():
        patch.setattr(constants, name, value)
    patch.setenv("HF_TOKEN", TOKEN)
