"""The measurements of bench/agent_load.sh, which see."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/dashboard"))
from scene import CONTROL, Agent  # noqa: E402

LONG = ["--max_iters=10000000", "--lr_decay_iters=10000000", "--eval_interval=1000000"]
LONG += ["--checkpoint_interval=1000000", "--log_interval=1"]
# 1 MB/s of lines beside progress that the agent reads.
LOUD = """
import sys, time
line = "x" * 99 + "\\n"
step = 0
while True:
    began = time.monotonic()
    sys.stdout.write(f"iter {step}: loss 2.5, time 100.00ms, mfu 1.00%\\n" + line * 1000)
    sys.stdout.flush()
    step += 1
    time.sleep(max(0.0, began + 0.1 - time.monotonic()))
"""
POLLERS, READERS, SCRAPE_S = 20, 5, 5
CPU_MAX, RSS_MIB_MAX, P99_MS_MAX = 0.03, 80.0, 50.0
TICK = os.sysconf("SC_CLK_TCK")


class Watchers:
    """20 pollers, 5 readers of the stream, one scraper, until `stop`."""

    def __init__(self, agent):
        self.url = f"http://127.0.0.1:{agent.port}"
        self.over = threading.Event()
        self.asked = self.failed = 0
        works = [self.poll] * POLLERS + [self.read] * READERS + [self.scrape]
        self.threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self.threads:
            thread.start()

    def get(self, path, headers=None):
        headers = {"Authorization": f"Bearer {CONTROL}", **(headers or {})}
        return urllib.request.urlopen(
            urllib.request.Request(self.url + path, headers=headers), timeout=20
        )

    def every(self, seconds, path):
        while not self.over.wait(seconds):
            try:
                self.get(path).read()
                self.asked += 1
            except OSError:
                self.failed += 1

    def poll(self):
        time.sleep(os.urandom(1)[0] / 256)
        self.every(1, "/api/v1/jobs/current")

    def scrape(self):
        self.every(SCRAPE_S, "/metrics")

    def read(self):
        while not self.over.is_set():
            try:
                with self.get("/api/v1/jobs/current/logs/stream") as stream:
                    while not self.over.is_set() and stream.read1(65536):
                        pass
            except OSError:
                self.failed += not self.over.is_set()

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(25)


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def wrk(agent, seconds):
    """99 % of the answers come within this, milliseconds."""
    url = f"http://127.0.0.1:{agent.port}/api/v1/jobs/current"
    said = subprocess.check_output(
        ["wrk", "-t1", "-c2", f"-d{seconds}s", "--latency", "-H",
         f"Authorization: Bearer {CONTROL}", url], text=True,
    )  # fmt: skip
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", said).groups()
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def step_ms(agent, seconds):
    """Median time of the steps that the trainer makes within so long."""
    events = Path(agent.folder.name) / "run/events.jsonl"
    with events.open("rb") as file:
        file.seek(0, os.SEEK_END)
        time.sleep(seconds)
        lines = file.read().split(b"\n")[1:-1]
    rows = [json.loads(line) for line in lines]
    times = [row["step_ms"] for row in rows if row.get("event", row.get("type")) == "step"]
    return statistics.median(times), len(times)


def load(options):
    """Output of 1 MB/s and all watchers: the agent's processor time and memory, and its p99."""
    loud = Path(options.scratch) / "loud.py"
    loud.write_text(LOUD)
    agent = Agent(options, command=f"exec {sys.executable} {loud}")
    try:
        time.sleep(5)
        watchers = Watchers(agent)
        time.sleep(2)
        began, spent = time.monotonic(), cpu_s(agent.process.pid)
        memory = 0.0
        while time.monotonic() < began + options.seconds:
            time.sleep(0.5)
            memory = max(memory, rss_mib(agent.process.pid))
        share = (cpu_s(agent.process.pid) - spent) / (time.monotonic() - began)
        p99 = wrk(agent, max(5, options.seconds // 3))
        watchers.stop()
        return share, memory, p99, watchers.asked, watchers.failed
    finally:
        agent.close()


def slowing(options):
    """Step times of a real run, alternately with and without watchers."""
    agent = Agent(options, LONG)
    try:
        time.sleep(5)
        alone, watched = [], []
        for _ in range(options.rounds):
            alone.append(step_ms(agent, options.seconds / 3))
            watchers = Watchers(agent)
            time.sleep(1)
            watched.append(step_ms(agent, options.seconds / 3))
            watchers.stop()
        print(f"steps in each part: {[n for _, n in alone]} alone, {[n for _, n in watched]} watched")
        return [statistics.median(ms for ms, _ in part) for part in (alone, watched)]
    finally:
        agent.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.agent, options.trainer = options.programs / "agent", options.programs / "trainer"
    with tempfile.TemporaryDirectory(prefix="agent-load-") as options.scratch:
        options.data = Path(options.scratch)
        print(f"processors {os.cpu_count()}, load {Path('/proc/loadavg').read_text().split()[0]}")
        share, memory, p99, asked, failed = load(options)
        print(f"{asked} requests of {POLLERS} pollers and a scraper, {failed} failed")
        alone, watched = slowing(options)
    rows = [
        ("agent's processor time", share * 100, "% of a core", CPU_MAX * 100),
        ("agent's memory", memory, "MiB", RSS_MIB_MAX),
        ("API p99", p99, "ms", P99_MS_MAX),
    ]
    for name, value, unit, most in rows:
        print(f"{name:<24}{value:9.2f} {unit} (at most {most:g}){'' if value <= most else '  ABOVE'}")
    print(f"{'step alone':<24}{alone:9.3f} ms")
    print(f"{'step watched':<24}{watched:9.3f} ms, {watched / alone:.3f} of alone")
    return 1 if failed or any(value > most for _, value, _, most in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
