"""A real agent over a real trainer, a proxy that can cut or freeze the way to it, and a browser.
Used by check.py."""

import json
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

CONTROL = "control-token-of-the-dashboard-test"
READ = "read-token-of-the-dashboard-test"
PATIENCE_S = 60.0

# What a page must show as text and never obey.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

TINY = [
    "--dataset=quickstart", "--device=cpu", "--threads=1", "--n_layer=2", "--n_head=2",
    "--n_embd=64", "--block_size=32", "--batch_size=16", "--gradient_accumulation_steps=1",
    "--learning_rate=1e-3", "--min_lr=1e-4", "--warmup_iters=20", "--eval_iters=2",
    "--log_interval=5",
]  # fmt: skip


def wait(what, condition, patience_s=PATIENCE_S):
    """The first true value of `condition`."""
    end = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {patience_s:.0f} s: {what}")
        time.sleep(0.1)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Proxy:
    """Hands bytes on between a browser and the agent. `cut` closes and refuses connections,
    `frozen` keeps them and lets nothing through."""

    def __init__(self, target):
        self.target = target
        self.cut = False
        self.frozen = False
        self.pairs = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def set_cut(self, yes):
        self.cut = yes
        if yes:
            pairs, self.pairs = self.pairs, []
            for end in (end for pair in pairs for end in pair):
                _close(end)

    def _accept(self):
        while True:
            try:
                browser, _ = self.listener.accept()
            except OSError:
                return
            try:
                if self.cut:
                    raise ConnectionError
                agent = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                agent.settimeout(None)
            except OSError:
                _close(browser)
                continue
            self.pairs.append((browser, agent))
            for source, sink in ((browser, agent), (agent, browser)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                while self.frozen:
                    time.sleep(0.05)
                sink.sendall(data)
        except OSError:
            pass
        _close(source)
        _close(sink)


def _close(end):
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()


class Agent:
    """One run of the agent, with both tokens, in a folder of its own."""

    def __init__(self, programs, trainer_options=(), command=None, flags=()):
        self.folder = tempfile.TemporaryDirectory(prefix="dashboard-")
        folder = Path(self.folder.name)
        options = [*TINY, *trainer_options, f"--out_dir={folder / 'run'}"]
        train = [str(programs.trainer), "train", "--resume=auto", *options]
        shell = f"echo {shlex.quote(HOSTILE)}; exec {shlex.join(train)}"
        self.port = free_port()
        self.log = (folder / "agent.log").open("wb+")
        self.process = subprocess.Popen(
            [
                str(programs.agent), "run", f"--store={folder / 'store'}", "--job=page/tiny",
                f"--run-dir={folder / 'run'}", f"--listen=127.0.0.1:{self.port}",
                *flags, "--", "sh", "-c", command or shell,
            ],  # fmt: skip
            cwd=folder,
            env={
                **os.environ,
                "AGENT_TOKEN": CONTROL,
                "AGENT_READ_TOKEN": READ,
                "ANNEAL_CACHE": str(programs.data),
            },
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.proxy = Proxy(self.port)
        wait("the agent does not answer", self._answers)

    def _answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the agent ended:\n{self.output()}")
        try:
            return self.api("")
        except (OSError, urllib.error.URLError):
            return None

    def output(self):
        self.log.flush()
        return Path(self.log.name).read_text("utf-8", "replace")[-4000:]

    def api(self, path, token=CONTROL):
        """An answer of the agent itself, past the proxy."""
        url = f"http://127.0.0.1:{self.port}/api/v1/jobs/current{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def trainers(self):
        """Processes of the trainer: the agent's descendants, but for the agent."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents[int(entry.name)] = int(stat[1])
        found, grown = {self.process.pid}, True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            found |= more
            grown = bool(more)
        return found - {self.process.pid}

    def signal_trainers(self, number):
        for pid in self.trainers():
            os.kill(pid, number)

    def close(self):
        self.proxy.set_cut(True)
        self.proxy.listener.close()
        if self.process.poll() is None:
            self.signal_trainers(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.signal_trainers(signal.SIGKILL)
                self.process.kill()
                self.process.wait()
        self.log.close()
        self.folder.cleanup()
