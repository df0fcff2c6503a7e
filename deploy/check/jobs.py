"""The folders of services that run a function, a notebook or a job for us, each tried with their
own client's validators and with the agent. Called by check/main.py."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
import urllib.request

import yaml

from world import BIN, DEPLOY, JOB, TINY, World, fill, first_process, free_port, has_job, need
from world import tail, until

ENDLESS = [word.replace("max_iters=4", "max_iters=100000000") for word in TINY]
ENDLESS = [word.replace("eval_interval=2", "eval_interval=100000000") for word in ENDLESS]
KEYS = {name: JOB[name] for name in JOB if name != "ANNEAL_IMAGE"}


def children(pid):
    """The processes that this one started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def interruptible():
    """Undoes what a shell does to the commands of a script that it starts with &."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def load(path):
    """Imports a Python file of deploy/."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def modal():
    """The App as Modal's client builds it; the function itself, to its end and interrupted."""
    import modal as client

    path = DEPLOY / "modal/train.py"
    module = load(path)
    spec = module.train._spec_
    need(isinstance(module.app, client.App), "app is no modal.App")
    need(isinstance(module.train, client.Function), "train is no function of the App's")
    need(isinstance(spec.gpus, list) and len(spec.gpus) > 1, f"gpu is {spec.gpus}")
    need(callable(client.forward), "modal.forward is gone")

    here = World("modal")
    port = free_port()
    # In a process of its own: the tunnel is the only thing that is not real.
    run = here.home / "run.py"
    run.write_text(
        f"""
import contextlib, importlib.util, sys, types
import modal
modal.forward = lambda port: contextlib.nullcontext(types.SimpleNamespace(url="https://t.example"))
spec = importlib.util.spec_from_file_location("train", {str(path)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(module.train.local(sys.argv[1], "quickstart"))
""",
        encoding="utf-8",
    )
    # The function's own command, but for the size of the job and the port.
    here.shims.joinpath("agent").unlink()
    here.shim(
        "agent",
        f'args=("$@"); exec {BIN}/agent "${{args[@]/0.0.0.0:8080/127.0.0.1:{port}}}" $TINY',
    )
    store = here.home / "store"
    env = here.env({
        "MODAL_TASK_ID": "ta-1", "MODAL_REGION": "us-east", "AGENT_TOKEN": JOB["AGENT_TOKEN"],
        "AGENT_STORE": str(store),
    })
    command = first_process([sys.executable, str(run)])
    log = here.home / "log"

    def start(job, tiny):
        more = {"TINY": shlex.join(tiny), "AGENT_RUN_DIR": str(here.home / job)}
        with open(log, "w", encoding="utf-8") as out:
            return subprocess.Popen(
                [*command, job], env=env | more, cwd=here.home, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=interruptible,
            )

    process = start("j", TINY)
    need(process.wait(60) == 0, f"train(): {tail(log)}")
    need("machine: modal" in tail(log, 99), f"the agent does not find Modal:\n{tail(log)}")
    here.completed("j")

    # SIGINT, as before a preemption: the agent must get it as SIGTERM and save.
    process = start("k", ENDLESS)
    until(lambda: "iter 10:" in log.read_text(encoding="utf-8"), "ten steps")
    for pid in children(process.pid):
        os.kill(pid, signal.SIGINT)
    try:
        code = process.wait(30)
    finally:
        # With its namespace everything in it.
        process.kill()
    said = log.read_text(encoding="utf-8")
    need("published step" in said, f"no checkpoint after SIGINT:\n{tail(log)}")
    retries = code != 0 and "exit status 12 of the agent" in said
    need(retries, f"Modal would not retry:\n{tail(log)}")


def kubernetes():
    """The Job against Kubernetes' own schemas, its probes against the agent's answers."""
    import kubernetes_validate

    job = yaml.safe_load(fill(DEPLOY / "kubernetes/job.yaml", ["ANNEAL_IMAGE"]))
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(job, version, strict=True)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    need(not [v for v in pod["volumes"] if "emptyDir" not in v], "a volume that is not empty")
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    need("/work" in mounts and "/tmp" in mounts, "the root is read-only: no place to write")
    env = {item["name"]: item["value"] for item in container["env"]}
    grace_s = int(env["AGENT_GRACE"].removesuffix("s"))
    need(grace_s < pod["terminationGracePeriodSeconds"], "the pod is killed before AGENT_GRACE")
    codes = {10, 13, 14, 64}
    rules = job["spec"]["podFailurePolicy"]["rules"]
    need(set(rules[1]["onExitCodes"]["values"]) == codes, f"a failed job is retried: {rules[1]}")

    def probes(process, port):
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container[name]["httpGet"]
            need(get["port"] == "http", f"{name} asks port {get['port']}")
            url = f"http://127.0.0.1:{port}{get['path']}"

            def answers():
                need(process.poll() is None, f"the agent ended before {url} was asked")
                with contextlib.suppress(OSError):
                    with urllib.request.urlopen(url, timeout=2) as answer:
                        return answer.status == 200
                return False

            until(answers, url)

    secret = KEYS | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "anneal-x7"}
    has_job(secret | env)
    here = World("kubernetes")
    del env["HOME"]

    def told(process, port):
        probes(process, port)
        until(lambda: "iter 10:" in (here.home / "log").read_text(encoding="utf-8"), "ten steps")
        # The process in front of the container's first passes nothing on.
        for pid in children(process.pid):
            os.kill(pid, signal.SIGTERM)

    # A pod that is told to go saves and says that another may go on.
    said = here.container(
        "kubernetes", ["agent", *container["args"]], secret | env, wait=told, tiny=ENDLESS,
        status=12,
    )
    need("published step" in said, f"no checkpoint after SIGTERM:\n{said}")


def slurm():
    """sbatch's own parser where it can be had, and the batch script itself."""
    path = DEPLOY / "slurm/job.sbatch"
    here = World("slurm")
    sbatch = os.environ.get("SBATCH")
    if sbatch:
        conf = here.home / "slurm.conf"
        plugins = os.environ["SLURM_PLUGINS"]
        conf.write_text(
            "ClusterName=c\nSlurmctldHost=localhost\nSlurmctldPort=1\nMessageTimeout=2\n"
            "AuthType=auth/none\nGresTypes=gpu\n"
            f"SelectType=select/cons_tres\nPluginDir={plugins}\n", encoding="utf-8",
        )
        done = subprocess.run(
            [sbatch, "--test-only", path], capture_output=True, text=True, check=False,
            env=here.env({"SLURM_CONF": conf, "LD_LIBRARY_PATH": plugins}),
        )
        # All that it lacks is a controller to send the job to.
        need("Unable to contact slurm controller" in done.stderr, f"sbatch: {done.stderr}")
    text = path.read_text(encoding="utf-8")
    signal_s = int(re.search(r"--signal=B:TERM@(\d+)", text)[1])
    grace_s = int(re.search(r"--grace (\d+)s", text)[1])
    need(grace_s < signal_s, "the agent believes to have more time than Slurm gives")
    need(re.search(r"^exec agent run ", text, re.M), "the agent does not take the shell's place")

    here.shims.joinpath("agent").unlink()
    here.shim("agent", f'exec {BIN}/agent "$@" {shlex.join(TINY)}')
    store = here.home / "store"
    env = here.env({
        "SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "c", "AGENT_STORE": str(store),
        "AGENT_JOB": JOB["AGENT_JOB"],
    })
    done = subprocess.run(
        first_process(["bash", str(path)]), env=env, cwd=here.home, capture_output=True, text=True,
        timeout=60, check=False,
    )
    need(done.returncode == 0, f"job.sbatch: {done.stdout}{done.stderr}")
    need("machine: slurm" in done.stderr, f"the agent does not find Slurm: {done.stderr}")
    here.completed(JOB["AGENT_JOB"])


def skypilot():
    """The task as SkyPilot reads it; its script with the agent. The machine is not ours to end."""
    os.environ["SKYPILOT_DISABLE_USAGE_COLLECTION"] = "1"
    import sky

    task = yaml.safe_load((DEPLOY / "skypilot/task.yaml").read_text(encoding="utf-8"))
    secrets = {name: KEYS[name] for name in task["secrets"]}
    read = sky.Task.from_yaml_config(task, secrets_overrides=secrets)
    need(all(r.use_spot for r in read.resources), "not on spot machines")
    need({r.image_id and list(r.image_id.values())[0][:7] for r in read.resources} == {"docker:"},
         "not our image")
    need(read.resources and list(read.resources)[0].job_recovery["recover_on_exit_codes"]
         == [11, 12], "recovers from other exit statuses than 11 and 12")
    env = read.envs | secrets
    script = read.run.strip()
    need(script.startswith("exec agent run "), "the agent does not take the shell's place")
    argv = shlex.split(script.removeprefix("exec ").replace("\\\n", " "))
    need("--terminate none" in script, "the agent would end SkyPilot's machine")
    World("skypilot").container("local", argv, env)


def dstack():
    """The task as dstack reads it; its command with the agent. The machine is not ours to end."""
    from dstack._internal.core.models.configurations import parse_run_configuration

    with open(DEPLOY / "dstack/task.dstack.yml", encoding="utf-8") as file:
        task = parse_run_configuration(yaml.safe_load(file))
    need(task.type == "task" and len(task.commands) == 1, "not a task of one command")
    wall_h = int(re.search(r"--max-wall (\d+)h", task.commands[0])[1])
    need(task.max_duration > wall_h * 3600, "dstack ends the task before the agent does")
    need("--terminate none" in task.commands[0], "the agent would end dstack's machine")
    env = {}
    for name, value in task.env.items():
        # An object without a value: to be taken from the environment of `dstack apply`.
        env[name] = value if isinstance(value, str) else KEYS[name]
    has_job(env)
    World("dstack").container("local", shlex.split(task.commands[0]), env)


def colab():
    """The notebook's form, and its cells one after another in a stand-in for Colab."""
    import nbformat

    path = DEPLOY / "colab/anneal.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    need(not [c for c in notebook.cells if c.get("outputs")], "the notebook holds outputs")
    released = set()
    here = World("colab", [("POST", "unassign", lambda *_: (released.add(1), (200, {}))[1])])
    # What the notebook unpacks starts the programs: they themselves take long to pack.
    for program in ("agent", "trainer"):
        here.shims.joinpath(program).unlink()
        here.shim(program, f'exec {BIN}/{program} "$@"')
    archive = here.home / "anneal.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", here.shims, "agent", "trainer"], check=True)
    here.shims.joinpath("agent").unlink()
    store = here.home / "store"
    secrets = KEYS | {"ANNEAL_TAR": f"file://{archive}", "AGENT_STORE": str(store)}
    lines = ["import os, subprocess, sys, types",
             f"secrets = {json.dumps(secrets)}",
             "colab = types.ModuleType('google.colab')",
             "colab.userdata = types.SimpleNamespace(get=lambda name: secrets[name])",
             "sys.modules |= {'google': types.ModuleType('google'), 'google.colab': colab}"]
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for line in cell.source.splitlines():
            if line.startswith("!"):
                command = line[1:]
                if " agent run " in command:
                    command += " " + shlex.join(TINY)
                line = f"subprocess.run({command!r}, shell=True, check=True)"
            lines.append(line)
    # Colab's own variables; the service beside the machine is the fake.
    env = here.env({
        "COLAB_RELEASE_TAG": "release-colab", "AGENT_RUN_DIR": str(here.home / "run"),
        "TBE_RUNTIME_ADDR": here.fake.url.removeprefix("http://"),
    } | here.fake.services())
    process = subprocess.Popen(
        first_process([sys.executable, "-c", "\n".join(lines)]), env=env, cwd=here.home,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )
    try:
        # Colab ends the machine at once; here it goes on, and the agent with it.
        until(lambda: released or process.poll() is not None, "the runtime's release", 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[0]
    need(released, f"the runtime is not given back:\n{said}")
    need("machine: colab" in said, f"the agent does not find Colab:\n{said}")
    here.completed("shakespeare")


# docs/yaml.md of replicate/cog, 0.23.
COG = {"build", "image", "run", "concurrency", "environment", "weights"}
COG_BUILD = {"cuda", "cudnn", "gpu", "python_version", "python_requirements", "run",
             "system_packages", "sdk_version"}


def replicate():
    """cog.yaml's keys, and the runner, on cog's own library."""
    config = yaml.safe_load((DEPLOY / "replicate/cog.yaml").read_text(encoding="utf-8"))
    unknown = (set(config) - COG) | (set(config["build"]) - COG_BUILD)
    need(not unknown, f"cog.yaml: unknown {unknown}")
    file, _, name = config["run"].partition(":")
    for command in config["build"]["run"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)

    import cog
    import inspect

    runner = getattr(load(DEPLOY / "replicate" / file), name)
    need(issubclass(runner, cog.BaseRunner), f"{name} is no BaseRunner")
    inputs = inspect.signature(runner.run).parameters
    here = World("replicate")
    here.shims.joinpath("agent").unlink()
    here.shim("agent", f'exec {BIN}/agent "$@" {shlex.join(TINY)}')
    values = {
        "job": "j", "store": str(here.home / "store"), "config": "quickstart",
        "aws_access_key_id": cog.Secret("a"), "aws_secret_access_key": cog.Secret("b"),
        "aws_region": "us-east-1", "max_wall": "1h",
    }
    need(set(inputs) == {"self", *values}, f"run() takes {sorted(inputs)}")
    kept, clean = dict(os.environ), here.env({"AGENT_RUN_DIR": str(here.home / "run")})
    log = here.home / "log"
    try:
        os.environ.clear()
        os.environ.update(clean)
        saved = [os.dup(1), os.dup(2)]
        with open(log, "w", encoding="utf-8") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        try:
            answer = runner().run(**values)
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
    finally:
        os.environ.clear()
        os.environ.update(kept)
    need(answer == "completed", f"run() returns {answer!r}")
    need("machine: replicate" in log.read_text(encoding="utf-8"), tail(log))
    here.completed("j")
