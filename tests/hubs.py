"""A server that stands in for the Hub's API, for huggingface_hub itself: repositories, commits, LFS, downloads, faults.

As the Hub's: paths, answers, error codes; files of LFS_FROM bytes or more, and .safetensors, go by LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

LFS_FROM = 10_000_000
TOKENS = {"hf_acme": ("acme", True), "hf_reader": ("reader", False)}
"""Token -> its owner, and whether it may write."""


@dataclass
class Repository:
    """A repository on its main branch."""

    private: bool = False
    gated: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        """Of its last commit."""
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds and was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    faults: list[tuple[str, int | None]] = field(default_factory=list)
    """(pattern of "METHOD path", status to answer; None: the connection is cut in the middle), each once."""
    patch: Any = None
    """Of `asked_by_this_process`."""

    @property
    def environment(self) -> dict[str, str]:
        """By which another process asks this server and no other."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Answers(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:  # noqa: D102
        pass

    def respond(self) -> None:  # noqa: D102
        hub: Hub = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        line = f"{self.command} {unquote(urlsplit(self.path).path)}"
        hub.asked.append(line)
        for fault in hub.faults:
            if re.search(fault[0], line):
                hub.faults.remove(fault)
                if fault[1] is not None:
                    return self.send(fault[1], {"error": "as the test wants it"})
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return None
        return self.route(hub, line, body)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def route(self, hub: Hub, line: str, body: bytes) -> None:  # noqa: D102
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        owner, writes = TOKENS.get(token, (None, False))
        if token and owner is None:
            return self.send(401, {"error": "Invalid credentials in Authorization header"})
        if line == "GET /api/whoami-v2":
            return self.send(200 if owner else 401, {"name": owner, "type": "user", "orgs": []})
        if line == "POST /api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or owner}/{asked['name']}"
            if not writes or not name.startswith(f"{owner}/"):
                return self.send(403, {"error": f"You don't have the rights to create a model under {name}"})
            if name in hub.repositories:
                return self.send(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
            hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
            return self.send(200, {"url": f"{hub.url}/{name}", "name": name})
        if line == "POST /api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"PUT /lfs/(\w+)", line):
            assert hashlib.sha256(body).hexdigest() == match[1]
            hub.objects[match[1]] = body
            return self.send(200, {})
        api, files = r"/api/models/(?P<one>[^/]+/[^/]+)(?P<what>/.*)?", r"/(?P<two>[^/]+/[^/]+?)(?P<rest>(\.git)?/.*)"
        match = re.fullmatch(rf"(\w+) (?:{api}|{files})", line)
        if not match:  # what the library asks for itself
            return self.send(404, {"error": "not here"})
        name, rest = match["one"] or match["two"], match["what"] or match["rest"] or ""
        repository = hub.repositories.get(name)
        if repository is None or (repository.private and owner != name.split("/")[0]):
            code = 404 if owner else 401
            return self.send(code, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return self.send(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        if match[1] == "POST" and not (writes and name.startswith(f"{owner}/")):
            return self.send(403, {"error": "Forbidden"})
        revision = re.match(r"/(?:revision|tree|resolve)/([^/]+)", rest)
        if revision and revision[1] not in ("main", repository.sha):
            return self.send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return self.of_repository(hub, name, repository, match[1], rest, body)

    def of_repository(  # noqa: D102
        self, hub: Hub, name: str, repository: Repository, method: str, rest: str, body: bytes
    ) -> None:
        if rest in ("", "/revision/main"):
            card = re.match(rb"---\n(.*?)\n---", repository.files.get("README.md", b""), re.S)
            return self.send(200, {
                "id": name, "sha": repository.sha, "private": repository.private, "tags": [],
                "siblings": [{"rfilename": path} for path in repository.files],
                "cardData": yaml.safe_load(card[1]) if card else None,
            })  # fmt: skip
        if rest.startswith("/tree/"):
            return self.send(200, [entry(path, content) for path, content in repository.files.items()])
        if rest.startswith("/preupload/"):
            files = [
                {"path": one["path"], "uploadMode": "lfs" if is_lfs(one["path"], one["size"]) else "regular",
                 "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            return self.send(200, {"files": files})
        if rest == ".git/info/lfs/objects/batch":
            objects = []
            for one in json.loads(body)["objects"]:
                actions = {"actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                objects.append(one | ({} if one["oid"] in hub.objects else actions))
            return self.send(200, {"transfer": "basic", "objects": objects})
        if rest.startswith("/commit/"):
            for change in map(json.loads, body.splitlines()):
                value = change["value"]
                if change["key"] == "header":
                    repository.messages.append(value["summary"])
                elif change["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif change["key"] == "lfsFile":
                    repository.files[value["path"]] = hub.objects[value["oid"]]
                else:
                    assert change["key"] == "deletedFile", change
                    del repository.files[value["path"]]
            return self.send(200, {"commitUrl": f"{hub.url}/{name}/commit/x", "commitOid": repository.sha})
        path = re.fullmatch(r"/resolve/[^/]+/(.*)", rest)
        assert path and method in ("GET", "HEAD"), rest
        if path[1] not in repository.files:
            return self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        content = repository.files[path[1]]
        oid = entry(path[1], content).get("lfs", {}).get("oid") or entry(path[1], content)["oid"]
        about = {"ETag": f'"{oid}"', "X-Repo-Commit": repository.sha}
        if part := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            about["Content-Range"] = f"bytes {part[1]}-{len(content) - 1}/{len(content)}"
            return self.send(206, content[int(part[1]) :], about)
        return self.send(200, content, about)

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        """An answer; JSON, or bytes."""
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub keeps such a file by LFS."""
    return size >= LFS_FROM or path.endswith((".safetensors", ".png"))


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in the listing of a repository."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    about = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if is_lfs(path, len(content)):
        sha256 = hashlib.sha256(content).hexdigest()
        about["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return about


@contextmanager
def served() -> Iterator[Hub]:
    """A Hub without repositories, while the block lasts."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def asked_by_this_process(hub: Hub, cache: Path) -> Iterator[None]:
    """While this holds, huggingface_hub in this process asks `hub`, with acme's token, and keeps files in `cache`."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr(hf_api.api, "endpoint", hub.url)
        patch.setenv("HF_TOKEN", "hf_acme")
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        close_session()
        hub.patch = patch
        yield
        close_session()
