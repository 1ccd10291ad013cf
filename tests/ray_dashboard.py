"""A server that answers as the dashboard of Ray 2.60 did: jobs, actors with what they use, the end of a log."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NODE = "0df1011091de9dc116c75c3854b3812ef080df498e832519a692868f"
COMMAND = "config=$PWD/config.yaml; cd ~ && exec python -m fedpft.cli run $config"
FAILED = (
    "Job entrypoint command failed with exit code 2, last available logs:\nload libraries 11.5 s\nerror: <fm.path>\n"
)


def job(name, number, status, **more):
    return {
        "type": "SUBMISSION", "job_id": number, "submission_id": name, "status": status, "entrypoint": COMMAND,
        "driver_info": None, "message": "Job is currently running.", "error_type": None, "start_time": 1795934778971,
        "end_time": None, "metadata": {}, "runtime_env": {}, "driver_node_id": NODE, "driver_exit_code": None,
    } | more  # fmt: skip


def actor(number, job, pid, stats, **more):
    return {
        "actorId": number, "jobId": job, "className": "ClientActor", "actorClass": "ClientActor", "state": "ALIVE",
        "address": {"nodeId": NODE, "ipAddress": "192.0.2.2", "port": 15177, "workerId": "5b"}, "pid": pid,
        "gpus": [], "processStats": stats,
    } | more  # fmt: skip


def used(pid, **more):
    memory = {"rss": 628416512.0, "vms": 3594665984.0, "pfaults": None, "pageins": None}
    return {"pid": pid, "cpuPercent": 8.0, "memoryInfo": memory, "gpuMemoryUsage": 0, "gpuUtilization": 0} | more


GPU = {
    "index": 1, "name": "NVIDIA H200", "uuid": "GPU-1", "utilizationGpu": 61, "memoryUsed": 4100,
    "memoryTotal": 143771, "processesPids": [{"pid": 5419, "gpuMemoryUsage": 4000, "gpuUtilization": 55}],
}  # fmt: skip


class Head(ThreadingHTTPServer):
    """Answers what it is given, to who has the token if it wants one."""

    def __init__(self, token=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.jobs, self.actors, self.log, self.asked = [], [], b"round 1\n", []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path):
        if path == "/api/jobs/":
            return json.dumps(self.jobs).encode()
        if path == "/logical/actors":
            actors = {each["actorId"]: each for each in self.actors}
            return json.dumps({"result": True, "msg": "All actors fetched.", "data": {"actors": actors}}).encode()
        return self.log if path == "/api/v0/logs/file" else None

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = urlsplit(self.path)
        self.server.asked.append((parts.path, parse_qs(parts.query)))
        answer = self.server.answer(parts.path)
        is_let_in = self.server.token in (None, self.headers["Authorization"])
        self.send_response(401 if not is_let_in else 500 if answer is None else 200)
        self.end_headers()
        self.wfile.write(b"401: Unauthorized" if not is_let_in else answer or b"500 Internal Server Error")

    def log_message(self, *_):
        """Be silent."""
