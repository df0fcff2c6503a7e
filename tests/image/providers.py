#!/usr/bin/env python3
"""Vast's and RunPod's APIs for one machine each time, as documented, on loopback: what the agent
asks about its machine and how it gives it back. Prints its port, then a line for each machine that was
given back; refuses whoever does not show the key. Run by tests/story.sh."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "the-machine's-own-key"
VAST_DOLLARS_PER_HOUR = 0.21
RUNPOD_DOLLARS_PER_HOUR = 0.34
gone = set()


class Api(BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.answer(401, {"error": "unauthorized"})
        vast = re.fullmatch(r"/vast/instances/(\w+)/", self.path)
        pod = re.fullmatch(r"/runpod/pods/(\w+)(/action)?", self.path)
        if vast and self.command == "GET":
            machine = {
                "cur_state": "running",
                "dph_total": VAST_DOLLARS_PER_HOUR,
                "gpu_name": "RTX 3090",
                "geolocation": "Iceland, IS",
                "is_bid": True,
            }
            return self.answer(200, {"instances": None if vast[1] in gone else machine})
        if vast and self.command == "DELETE":
            self.give_back("vast", vast[1])
            return self.answer(200, {"success": True})
        if pod and not pod[2] and self.command == "GET":
            status = "TERMINATED" if pod[1] in gone else "RUNNING"
            return self.answer(200, {"status": status, "cost": RUNPOD_DOLLARS_PER_HOUR})
        if pod and pod[2] and json.loads(body) == {"action": "terminate"}:
            self.give_back("runpod", pod[1])
            return self.answer(200, {})
        return self.answer(404, {"error": f"no {self.command} {self.path}"})

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def give_back(self, provider, machine):
        gone.add(machine)
        print(f"{provider} {machine} given back", flush=True)

    def log_message(self, format, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
print(server.server_port, flush=True)
server.serve_forever()
