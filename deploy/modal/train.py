"""Trains the job on Modal: the first free GPU of a list, resumed after a preemption.

    modal secret create anneal AGENT_STORE=s3://… AGENT_TOKEN=… AWS_ACCESS_KEY_ID=… …
    modal run --detach deploy/modal/train.py --job shakespeare
"""

import os
import signal
import subprocess
import sys

import modal

HOURS = 6
# Dollars an hour of the dearest GPU in the list below: Modal does not tell, and the budget is kept.
PRICE = "2.10"
# Modal kills 30 s after its SIGINT.
GRACE_S = 25
# The agent's exit statuses after which another try goes on from the newest checkpoint.
AGAIN = (11, 12)

app = modal.App("anneal")
# add_python: Modal's own runner needs one. entrypoint([]): it must not be started by the agent.
image = modal.Image.from_registry(
    os.environ.get("ANNEAL_IMAGE", "ghcr.io/you/anneal:1"), add_python="3.12"
).entrypoint([])


@app.function(
    image=image,
    gpu=["L40S", "A100-40GB", "A10"],
    timeout=HOURS * 3600,
    retries=modal.Retries(max_retries=8, initial_delay=10.0),
    single_use_containers=True,
    secrets=[modal.Secret.from_name("anneal")],
)
def train(job: str, config: str = "shakespeare_char"):
    """Runs the agent until the job ends; an error makes Modal try again, which resumes."""
    with modal.forward(8080) as tunnel:
        print(f"page: {tunnel.url}", flush=True)
        # The limit is below Modal's, so that a last checkpoint is published in time.
        command = ["agent", "run", "--job", job, "--max-wall", f"{HOURS * 60 - 10}m"]
        command += ["--budget", "20", "--grace", f"{GRACE_S}s", "--listen", "0.0.0.0:8080"]
        command += ["--", "trainer", f"--config={config}"]
        told = {"AGENT_PRICE": PRICE} | os.environ | {"AGENT_PUBLIC_URL": tunnel.url}
        # A group of its own, so that a signal comes to it once: from here.
        agent = subprocess.Popen(command, env=told, start_new_session=True)
        try:
            status = agent.wait()
        except KeyboardInterrupt:
            agent.send_signal(signal.SIGTERM)
            status = agent.wait(GRACE_S)
    if status in AGAIN:
        raise RuntimeError(f"exit status {status} of the agent")
    return status


@app.local_entrypoint()
def main(job: str, config: str = "shakespeare_char"):
    """Starts the training; --detach keeps it when this terminal closes."""
    sys.exit(train.remote(job, config))
