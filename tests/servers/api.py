#!/usr/bin/env python3
"""Holds a running agent to the OpenAPI document that it serves, by Schemathesis, over a real tiny
run. Needs `pip install schemathesis`; tests/face.sh brings it.

Orders that would end the run are sent by somebody who may only read: refused as documented, and the
run goes on. What their bodies may hold is for the agent's own property tests.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/dashboard"))
from scene import CONTROL, READ, Agent  # noqa: E402

LONG = ["--max_iters=1000000", "--lr_decay_iters=1000000", "--eval_interval=500"]
LONG += ["--checkpoint_interval=2000"]
# Ends never; check.py and the agent's tests read it.
STREAM = "/logs/stream$"
ENDING = "/(stop|limits|keepalive|drill)$"
EXAMPLES = 25
# Else hardly a request would name the job, and hardly an answer hold one.
CONFIG = '[parameters]\n"path.id" = "current"\n'
SEED = 8


def schemathesis(url, token, choice, folder):
    program = Path(sys.executable).parent / "schemathesis"
    return subprocess.call(
        [
            program, "run", f"{url}/openapi.json", *choice, f"--header=Authorization: Bearer {token}",
            "--checks=all", f"--max-examples={EXAMPLES}", f"--seed={SEED}", "--no-color",
            "--request-timeout=70", "--suppress-health-check=all",
        ],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "*"},
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--agent", type=Path, default=ROOT / "target/release/agent")
    parser.add_argument("--trainer", type=Path, default=ROOT / "target/release/trainer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="api-") as folder:
        options.data = Path(folder)
        (Path(folder) / "schemathesis.toml").write_text(CONFIG)
        agent = Agent(options, LONG)
        url = f"http://127.0.0.1:{agent.port}"
        try:
            readable = [f"--exclude-path-regex={STREAM}|{ENDING}"]
            failed = schemathesis(url, CONTROL, readable, folder)
            refused = [f"--include-path-regex={ENDING}", "--phases=coverage"]
            failed |= schemathesis(url, READ, refused, folder)
            status = agent.api("")
            print(f"afterwards the run is {status['status']}, step {status['progress'].get('step')}")
            failed |= status["status"] != "running"
            if "panicked" in agent.output():
                print(agent.output())
                failed = 1
        finally:
            agent.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
