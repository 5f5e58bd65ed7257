"""A small Hugging Face hub on this machine, which `datasets` and `huggingface_hub` themselves read from.

They take its address from HF_ENDPOINT when they are imported, so it is there before any test: see tests/conftest.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """The data sets and models of the hub, and what it was asked for since `clear`."""

    revisions: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)  # name -> the files of each revision
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)  # such as "GET /api/datasets/owner/name"
    sent: dict[str, int] = field(default_factory=dict)  # bytes sent of each file
    is_down: bool = False

    def push(self, name: str, files: dict[str, bytes | str]) -> str:
        """Add a revision with these files. Returns its name, 40 hex digits."""
        revision = {path: data if isinstance(data, bytes) else data.encode() for path, data in files.items()}
        self.revisions.setdefault(name, []).append(revision)
        return self.sha(name, len(self.revisions[name]) - 1)

    def sha(self, name: str, number: int) -> str:
        """The name of a revision."""
        return hashlib.sha1(f"{name} {number} {self.revisions[name][number]}".encode()).hexdigest()

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision, None where there is none of that name."""
        revisions = self.revisions[name]
        names = {self.sha(name, number): files for number, files in enumerate(revisions)} | {"main": revisions[-1]}
        return names.get(revision)

    def clear(self) -> None:
        """Forget all requests."""
        self.requests.clear()
        self.sent.clear()

    def start(self) -> str:
        """Listen on a port of this machine until the process ends. Returns the address."""
        hub = self

        class Handler(_Handler):
            state = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.state
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.is_down:
            self.close_connection = True
            return
        if path.endswith("/auth-check"):  # asked by `datasets` 3, of a gated data set alone
            return self._send(401, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        found = re.fullmatch(
            r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        )
        file = re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path)
        name = (found or file or [path, ""])[1]
        if not name:
            return self._send(404, {"error": "not found"})
        if name not in hub.revisions:
            return self._send(401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"})
        revision = (found[3] if found else file[2]) or "main"
        files = hub.files(name, revision)
        if files is None:
            return self._send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        sha = revision if revision != "main" else hub.sha(name, len(hub.revisions[name]) - 1)
        if file:
            if name in hub.gated:
                return self._send(401, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return self._file(file[3], files, sha)
        if found[2] in (None, "revision"):
            siblings = [{"rfilename": path} for path in files]
            is_gated = "manual" if name in hub.gated else False
            facts = {"id": name, "sha": sha, "siblings": siblings, "gated": is_gated, "private": False}
            return self._send(200, {**facts, "tags": [], "downloads": 0, "likes": 0})
        if found[2] == "paths-info":
            length = int(self.headers.get("Content-Length", 0))
            asked = json.loads(self.rfile.read(length))["paths"]
            return self._send(200, _tree(files, asked=asked))
        under = found[4] or ""
        listed = _tree(files, under=under)
        if under and not listed:
            return self._send(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        return self._send(200, listed)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Take a model: make its place, say that its files come in one piece, take them. All else is a question."""
        hub = self.state
        path = unquote(urlsplit(self.path).path)
        if not re.search(r"/(create|validate-yaml|preupload/main|commit/main)$", path):
            return self.do_GET()
        hub.requests.append(f"POST {path}")
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.headers.get("Authorization"):
            return self._send(401, {"error": "Invalid username or password."})
        if path.endswith("/create"):
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.revisions:
                return self._send(409, {"error": "it is there", "url": f"http://{self.headers['Host']}/{name}"})
            hub.revisions[name] = [{}]
            hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self._send(200, {"url": f"http://{self.headers['Host']}/{name}"})
        if path.endswith("/preupload/main"):
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self._send(200, {"files": [{"path": each["path"], **modes} for each in json.loads(sent)["files"]]})
        if path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in sent.splitlines()]
            files = {each["value"]["path"]: each["value"]["content"] for each in lines if each["key"] == "file"}
            sha = hub.push(name, {path: base64.b64decode(content) for path, content in files.items()})
            return self._send(
                200, {"commitOid": sha, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{sha}"}
            )
        return self._send(200, {"warnings": [], "errors": []})

    def _file(self, path: str, files: dict[str, bytes], sha: str) -> None:
        hub = self.state
        if path not in files:
            return self._send(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        data = files[path]
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        if self.command == "GET":
            hub.sent[path] = hub.sent.get(path, 0) + len(data)
        self._send(status, data, headers)

    def _send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _tree(files: dict[str, bytes], under: str = "", asked: list[str] | None = None) -> list[dict[str, object]]:
    """The files under a folder and its folders, or those asked for, as the hub lists them."""
    listed = [
        {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
        for path, data in files.items()
        if (path in asked if asked is not None else not under or path.startswith(f"{under}/"))
    ]
    folders = {path.rpartition("/")[0] for path in files if "/" in path}
    listed += [
        {"type": "directory", "path": folder, "size": 0, "oid": _oid(folder.encode())}
        for folder in sorted(folders)
        if (folder in asked if asked is not None else not under or folder.startswith(f"{under}/"))
    ]
    return listed
