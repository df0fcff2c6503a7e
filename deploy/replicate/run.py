"""Replicate's way in: one run is one training, which goes on where the job stands."""

import os
import subprocess

from cog import BaseRunner, Input, Secret


class Runner(BaseRunner):
    """Starts the agent; what it prints is the prediction's log."""

    def run(
        self,
        job: str = Input(description="one name, one training: run it again and it goes on"),
        store: str = Input(description="s3://bucket/prefix"),
        aws_access_key_id: Secret = Input(description="may read and write below the store"),
        aws_secret_access_key: Secret = Input(description="and its secret"),
        aws_region: str = Input(default="us-east-1"),
        config: str = Input(default="shakespeare_char"),
        max_wall: str = Input(default="1h", description="the longest that it may take"),
    ) -> str:
        """Returns how it ended. The container, and its price, end with this call."""
        environment = os.environ | {
            "AGENT_PROVIDER": "replicate",
            "AWS_ACCESS_KEY_ID": aws_access_key_id.get_secret_value(),
            "AWS_SECRET_ACCESS_KEY": aws_secret_access_key.get_secret_value(),
            "AWS_REGION": aws_region,
        }
        command = ["agent", "run", "--store", store, "--job", job, "--max-wall", max_wall]
        command += ["--listen", "off", "--", "trainer", f"--config={config}"]
        agent = subprocess.run(command, env=environment, check=False)
        if agent.returncode not in (0, 12, 14):
            raise RuntimeError(f"exit status {agent.returncode} of the agent")
        return "completed" if agent.returncode == 0 else "stopped: run it again to go on"
