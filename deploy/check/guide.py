"""docs/guides/ec2.md, typed in from top to bottom against a simulated AWS. Called by
check/main.py."""

import os
import re
import shutil
import subprocess

from moto.server import ThreadedMotoServer

from world import BIN, DEPLOY, JOB, ROOT, TINY, World, first_process, need

GUIDE = ROOT / "docs/guides/ec2.md"
# What stands for the reader: the variables' values, and the machine that trains meanwhile.
FILLS_IN = "cp deploy/job.env.example"
STARTS = "deploy/aws/launch.sh\n"


def ec2():
    """Every block but those that reach into the machine; after the start a container trains."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    here = World("ec2-guide")
    there = here.home / "checkout"
    shutil.copytree(DEPLOY, there / "deploy")
    (there / "target").mkdir()
    (there / "target/release").symlink_to(BIN)

    job = {name: value for name, value in JOB.items() if not name.startswith("AWS_")}
    job |= {"AGENT_STORE": "s3://my-bucket/jobs", "AWS_REGION": JOB["AWS_REGION"]}
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": url}
    trains = " ".join(first_process([
        "agent", "run", "--listen", "off", "--", "trainer", "--config=shakespeare_char", *TINY,
    ]))
    script = ["set -x"]
    blocks = re.findall(r"^```sh (account|ci)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"),
                        re.M | re.S)
    need(len(blocks) > 8, f"{GUIDE.name}: only {len(blocks)} blocks of commands")
    for _, block in blocks:
        if block.startswith("ssh "):
            continue
        script.append(block)
        if FILLS_IN in block:
            script += [f"echo {name}={value} >>deploy/job.env" for name, value in job.items()]
        if block == STARTS:
            script.append(trains)
    need(trains in script, f"{GUIDE.name}: nothing is started")
    env = here.env(here.fake.services() | keys | {"AWS_DEFAULT_REGION": JOB["AWS_REGION"]})
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)], cwd=there, env=env, check=False,
        capture_output=True, text=True, timeout=280,
    )
    server.stop()
    said = "\n".join(line for line in done.stderr.splitlines() if '" 200 -' not in line)[-6000:]
    need(done.returncode == 0, f"{GUIDE.name}: exit status {done.returncode}:\n{said}")
    results = list((there / "results").rglob("model.safetensors"))
    need(results, f"{GUIDE.name}: no results:\n{said}")
    need(not os.path.exists(here.home / "off"), "the machine was shut down")
