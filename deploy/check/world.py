"""A world without accounts: fakes of the providers' services, shims of the programs that would
reach them, and containers, for the files of deploy/ to be tried in. Used by check/main.py."""

import http.server
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(os.environ.get("ANNEAL_BIN", ROOT / "target/release")).resolve()
# Small enough to be trained in the blink of an eye on any machine.
TINY = (
    "--dataset=quickstart --device=cpu --n_layer=1 --n_head=1 --n_embd=16 --block_size=16 "
    "--batch_size=4 --gradient_accumulation_steps=1 --max_iters=4 --lr_decay_iters=4 "
    "--warmup_iters=1 --eval_interval=2 --eval_iters=1 --log_interval=1"
).split()
# What deploy/job.env.example has people set, with values that show where they come through.
JOB = {
    "ANNEAL_IMAGE": "registry.example/anneal:check",
    "AGENT_STORE": "s3://bucket-of-check/jobs",
    "AGENT_JOB": "job-of-check",
    "AGENT_TOKEN": "token-of-check-0123456789abcdef",
    "AWS_ACCESS_KEY_ID": "AKIDOFCHECK",
    "AWS_SECRET_ACCESS_KEY": "secret-of-check",
    "AWS_REGION": "us-east-1",
    "AGENT_PRICE": "0.5",
}
# Providers that tell a machine what it costs.
TELL_PRICE = {"vast", "runpod", "lambda"}
RUN_S_MAX = 90
# The simulated AWS tells every request.
logging.getLogger("werkzeug").setLevel(logging.ERROR)


class Broken(Exception):
    """Something in deploy/ is not as it should be."""


def need(condition, message):
    """Raises `Broken` with `message` unless the condition holds."""
    if not condition:
        raise Broken(message)


class Fake:
    """All providers' services at one address: `http://127.0.0.1:PORT/HOST/PATH`. Every request is
    kept as (method, "HOST/PATH", headers, body); what is answered is `routes`' business: a list of
    (method, regular expression, function of (match, body) giving (status, object or text))."""

    def __init__(self, routes=()):
        self.requests = []
        self.routes = list(routes)
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Answers one request."""

            protocol_version = "HTTP/1.1"

            def answer(self):
                """Finds the first route that fits; without one the answer is 404."""
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length).decode()
                path = self.path.lstrip("/")
                fake.requests.append((self.command, path, dict(self.headers), body))
                status, content = 404, {"error": "no such thing in this world"}
                for method, pattern, respond in fake.routes:
                    match = re.fullmatch(pattern, path)
                    if method == self.command and match:
                        status, content = respond(match, body)
                        break
                text = content if isinstance(content, str) else json.dumps(content)
                self.send_response(status)
                self.send_header("content-length", str(len(text.encode())))
                self.send_header("content-type", "application/json")
                # Google's own mark, and EC2's: how long a token lives.
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = answer

            def log_message(self, *_):
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def seen(self, method, pattern):
        """The bodies of the requests that fit, in order."""
        fits = lambda r: r[0] == method and re.fullmatch(pattern, r[1])
        return [request[3] for request in self.requests if fits(request)]

    def services(self):
        """Variables that send the agent here instead of to the real services."""
        hosts = {
            "VAST": "console.vast.ai/api/v0",
            "RUNPOD_V2": "api.runpod.io/v2",
            "RUNPOD_V1": "rest.runpod.io/v1",
            "RUNPOD_GRAPHQL": "api.runpod.io/graphql",
            "LAMBDA": "cloud.lambdalabs.com/api/v1",
            "JARVISLABS": "backend.jarvislabs.net",
            "PAPERSPACE": "api.paperspace.com/v1",
            "PAPERSPACE_CORE": "api.paperspace.io",
            "AWS_METADATA": "aws-metadata",
            "GCP_METADATA": "gcp-metadata",
            "AZURE_METADATA": "azure-metadata",
            "GCP_COMPUTE": "compute.googleapis.com/compute/v1",
            "AZURE_MANAGEMENT": "management.azure.com",
            "AWS_EC2": "ec2",
        }
        return {f"AGENT_{name}_URL": f"{self.url}/{path}" for name, path in hosts.items()}


class World:
    """One folder's own: scratch space, a fake, shims in front of PATH."""

    def __init__(self, name, routes=()):
        self.name = name
        self.home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=ROOT / "target/deploy-check"))
        self.fake = Fake(routes)
        self.shims = self.home / "bin"
        self.shims.mkdir()
        for program in ("agent", "trainer"):
            (self.shims / program).symlink_to(BIN / program)
        # Whatever goes wrong here, this machine stays on.
        for program in ("shutdown", "systemctl", "poweroff", "reboot", "halt"):
            self.shim(program, 'echo "$0 $*" >>"$WORLD/off"; exit 1')

    def shim(self, program, script):
        """Puts a bash script where `program` would be found."""
        path = self.shims / program
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def curl_to_fake(self):
        """Sends the real curl to the fake: https://HOST/PATH becomes its /HOST/PATH."""
        self.shim(
            "curl",
            "args=()\n"
            'for arg in "$@"; do args+=("$(sed -E "s#^https?://#$FAKE/#" <<<"$arg")"); done\n'
            'exec /usr/bin/curl "${args[@]}"',
        )

    def env(self, more=()):
        """A clean environment. PATH holds no folder of system administration."""
        tools = Path(os.environ["VIRTUAL_ENV"]) / "bin"
        return {
            "PATH": f"{self.shims}:{tools}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(ROOT / "target/deploy-check/cache"),
            "TMPDIR": str(self.home),
            "WORLD": str(self.home),
            "FAKE": self.fake.url,
            "LANG": "C.UTF-8",
        } | dict(more)

    def script(self, path, *args, env=(), stdin=None):
        """Runs a script of deploy/ and gives what it prints."""
        command = ["bash", "-euo", "pipefail", str(path), *args]
        done = subprocess.run(
            command, env=self.env(env), capture_output=True, text=True, timeout=RUN_S_MAX,
            check=False, input=stdin,
        )
        said = f"{done.stdout}{done.stderr}".strip()
        need(done.returncode == 0, f"{path.name}: exit status {done.returncode}: {said}")
        return done.stdout

    def container(self, kind, argv, env, *, sends=None, status=0, wait=None, tiny=None):
        """Runs what a container would: the image's entry point with `argv`, as the first process of
        its own, with `env`. The agent must find `kind`, the tiny job must be completed, and one
        request that fits `sends`, (method, pattern), must have been made. `wait` is called with the
        process and its port while it runs; `tiny` is another job than `TINY`."""
        env = {key: str(value) for key, value in dict(env).items()}
        port = free_port()
        listen = "0.0.0.0:8080"
        argv = [word.replace(listen, f"127.0.0.1:{port}") for word in argv]
        if "AGENT_LISTEN" in env:
            env["AGENT_LISTEN"] = env["AGENT_LISTEN"].replace(listen, f"127.0.0.1:{port}")
        elif "--listen" not in argv:
            env["AGENT_LISTEN"] = "off"
        store = self.home / "store"
        env["AGENT_STORE"] = str(store)
        argv = [word if word != JOB["AGENT_STORE"] else str(store) for word in argv]
        # The keys have been looked at; a folder needs none.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            env.pop(name, None)
        env.setdefault("AGENT_RUN_DIR", str(self.home / "run"))
        env = self.env(self.fake.services() | env)
        need("--" in argv, f"no -- in {shlex.join(argv)}")
        command = first_process([*argv, *(tiny or TINY)])
        log = self.home / "log"
        with open(log, "w", encoding="utf-8") as out:
            process = subprocess.Popen(
                command, env=env, cwd=self.home, stdout=out, stderr=out, start_new_session=True
            )
            try:
                if wait:
                    wait(process, port)
                code = process.wait(RUN_S_MAX)
            except subprocess.TimeoutExpired:
                late = f"{shlex.join(argv)}: no end after {RUN_S_MAX} s:\n{tail(log)}"
                raise Broken(late) from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        said = log.read_text(encoding="utf-8")
        need(code == status, f"{shlex.join(argv)}: exit status {code}:\n{tail(log)}")
        need(f"machine: {kind}" in said, f"the agent does not find {kind}:\n{tail(log)}")
        unheld = "price unknown" in said and "--budget" in shlex.join(argv)
        need(kind in TELL_PRICE or not unheld, f"--budget, but no price:\n{tail(log)}")
        need(not (self.home / "off").exists(), f"the machine was shut down:\n{tail(log)}")
        if status == 0:
            self.completed(env.get("AGENT_JOB") or argv[argv.index("--job") + 1])
        if sends:
            need(self.fake.seen(*sends), f"no request {' '.join(sends)}:\n{tail(log)}")
        return said

    def completed(self, job):
        """The store must know the job as completed and hold its last checkpoint."""
        where = ["--store", str(self.home / "store"), "--job", job]
        ask = lambda what: subprocess.run(
            [BIN / "agent", what, *where, "--json"], capture_output=True, text=True, check=False
        ).stdout
        need('"completed"' in ask("status"), f"{job} is not completed: {ask('status')}")
        need("model.safetensors" in ask("artifacts"), f"{job} has no checkpoint")


def first_process(argv):
    """`argv` as the first process of its own: where the agent would end a container by killing the
    first process, that must not be this machine's."""
    return ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]),
            "--pid", "--fork", "--mount-proc", "--kill-child", "--", *argv]


def tail(path, lines=25):
    """The end of a file."""
    return "\n".join(path.read_text(encoding="utf-8").splitlines()[-lines:])


def free_port():
    """A port of this machine that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(condition, what, longest_s=30):
    """Waits until the condition holds."""
    end = time.monotonic() + longest_s
    while not condition():
        need(time.monotonic() < end, f"waited {longest_s} s for {what}")
        time.sleep(0.1)


def fill(path, names, more=()):
    """The file as envsubst leaves it; a variable that it holds and `names` does not stays."""
    text = path.read_text(encoding="utf-8")
    values = JOB | dict(more)
    for name in names:
        text = text.replace("${" + name + "}", values[name])
    left = re.findall(r"\$\{\w+\}", text)
    need(not left, f"{path.name}: nobody fills {left}")
    return text


def docker_run(words):
    """(env, image, arguments) of a `docker run`; only flags that are meant are taken."""
    words = list(words)
    need(words[:2] == ["docker", "run"], f"no docker run: {words[:3]}")
    takes = {"--gpus", "--restart", "-p", "--network", "--name"}
    env, files, at = {}, [], 2
    while words[at].startswith("-"):
        flag = words[at]
        if flag in ("-d", "--rm"):
            at += 1
            continue
        need(flag in takes | {"-e", "--env-file"}, f"docker run: unknown flag {flag}")
        value = words[at + 1]
        if flag == "-e":
            name, _, value = value.partition("=")
            env[name] = value
        elif flag == "--env-file":
            files.append(value)
        at += 2
    need("--gpus" in words[:at], "docker run without --gpus")
    return env, files, words[at], words[at + 1:]


def env_file(text):
    """Variables as Docker reads them from a file: nothing is unquoted there."""
    lines = (line.partition("=") for line in text.splitlines() if line and line[0] != "#")
    return {name: value for name, _, value in lines}


def has_job(env, keys=True):
    """The job's variables must have come through."""
    names = ["AGENT_STORE", "AGENT_JOB"]
    names += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"] if keys else []
    if env.get("AGENT_LISTEN") not in (None, "off"):
        names.append("AGENT_TOKEN")
    for name in names:
        need(env.get(name) == JOB[name], f"{name} is {env.get(name)!r} in the container")
