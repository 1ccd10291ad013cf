"""A stand-in for W&B's server on loopback: it answers what the real client asks, and keeps what that sends."""

import gzip
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class Run:
    """What the server has of a run."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.upserts: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        self.files: dict[str, bytes] = {}

    @property
    def config(self) -> dict[str, Any]:
        merged = {}
        for variables in self.upserts:
            merged |= json.loads(variables["config"] or "{}")
        return {key: entry["value"] for key, entry in merged.items() if key != "_wandb"}


class Server(ThreadingHTTPServer):
    """Runs by their name; `unknown` are operations that it has no answer to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Run] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent: the client closes connections as it likes."""

    def stream(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Take rows, each at its place."""
        run = self.runs[name]
        history = content.get("files", {}).get("wandb-history.jsonl")
        if history:
            assert history["offset"] == len(run.history), "rows that leave a gap or stand twice"
            run.history += [json.loads(line) for line in history["content"]]
        for line in content.get("files", {}).get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        if content.get("complete"):
            run.exit_codes.append(content["exitcode"])
        return {}

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL query or mutation."""
        if operation == "Viewer":
            teams: dict[str, Any] = {"edges": []}
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": teams, "email": ""}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "GetDefaultEntity":
            return {"viewer": {"id": "1", "entity": "me"}}
        if operation in ("Run", "RunSampledHistory"):
            return {"project": {"run": self._shown(**variables)} if variables["project"] == "p" else None}
        if operation == "RunResumeStatus":
            return {"model": {"id": "1", "name": "p", "entity": _ME, "bucket": self._bucket(variables["name"])}}
        if operation == "UpsertBucket":
            return {"upsertBucket": self._upsert(variables)}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": self._place(variables["run"], name)} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            self.artifacts.append({**variables["input"], "files": [], "committed": False})
            artifact = {"id": str(len(self.artifacts) - 1), "state": "PENDING"}
            return {"createArtifact": {"artifact": artifact | {"artifactSequence": {"latestArtifact": None}}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            name = operation[0].lower() + operation[1:]
            file = {"id": "1", "name": "m", "displayName": "m", "uploadHeaders": []}
            manifest = {"id": "1", "file": file | {"uploadUrl": self._place("manifests", variables.get("name", "m"))}}
            return {name: {"artifactManifest": manifest}}
        if operation == "CreateArtifactFiles":
            nodes = [self._artifact_file(spec) for spec in variables["input"]["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CommitArtifact":
            self.artifacts[int(variables["artifactID"])]["committed"] = True
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}
        if operation == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": "1"}}}
        self.unknown.append(operation)
        return {}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        described = {"id": name, "name": name, "displayName": None, "tags": [], "notes": None, "config": "{}"}
        counts = {"logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0, "eventsTail": "[]"}
        tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
        return described | counts | {"historyTail": tail, "summaryMetrics": "{}", "wandbConfig": '{"t": 1}'}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run())
        run.upserts.append(variables)
        project = {"id": "1", "name": variables["project"], "entity": _ME}
        bucket = {"id": name, "name": name, "displayName": variables["displayName"], "description": "", "config": "{}"}
        bucket |= {"sweepName": None, "project": project, "historyLineCount": len(run.history)}
        return {"bucket": bucket, "inserted": inserted}

    def _shown(self, name: str, specs: Sequence[str] = (), **_: str) -> dict[str, Any] | None:
        """Return a run as the public API asks for it, or samples of its history."""
        run = self.runs.get(name)
        if run is None:
            return None
        keys = [json.loads(spec)["keys"] for spec in specs]
        state = "running" if not run.exit_codes else "failed" if run.exit_codes[-1] else "finished"
        shown = dict.fromkeys(["sweepName", "group", "jobType", "commit", "notes", "systemMetrics"])
        shown |= {"id": name, "name": name, "displayName": name, "projectId": "1", "tags": [], "readOnly": False}
        shown |= {"user": {"name": "me", "username": "me"}, "state": state, "description": "", "createdAt": "x"}
        config = {key: {"value": value} for key, value in run.config.items()}
        shown |= {"config": json.dumps(config), "summaryMetrics": json.dumps(run.summary), "historyKeys": {}}
        rows = [[{key: row[key] for key in names} for row in run.history if set(names) <= set(row)] for names in keys]
        return shown | {"heartbeatAt": "x", "historyLineCount": len(run.history), "sampledHistory": rows}

    def _artifact_file(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[int(spec["artifactID"])]["files"].append(spec["name"])
        node = {"id": "1", "name": spec["name"], "displayName": spec["name"], "storagePath": f"x/{spec['name']}"}
        node |= {"uploadUrl": self._place("artifact", spec["name"]), "uploadHeaders": [], "uploadMultipartUrls": None}
        return node | {"artifact": {"id": spec["artifactID"]}}

    def _place(self, of: str, name: str) -> str:
        return f"{self.url}/storage/{of}/{name}"


_ME = {"id": "1", "name": "me"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        content: dict[str, Any] = {}
        with self.server.lock:
            if self.path == "/graphql":
                query = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])[1]
                content = {"data": self.server.answer(operation, query.get("variables") or {})}
            elif self.path.startswith("/storage/"):
                self.server.uploads[unquote(self.path.removeprefix("/storage/"))] = body
            elif self.path.endswith("/file_stream"):
                name = self.path.split("/")[-2]
                content = self.server.stream(name, json.loads(body))
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_HEAD = _handle  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Be silent."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """Serve on a free port."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
