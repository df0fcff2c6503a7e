"""Checks what stands in deploy/: syntax and schemas, then every launch and container command, run
for real against fakes. `main.py [FOLDER...]`; deploy/check.sh installs what it needs and calls
it."""

import ast
import concurrent.futures
import os
import re
import subprocess
import sys
import time
import tomllib
import traceback

import guide
import jobs
import machines
from world import BIN, DEPLOY, JOB, ROOT, Broken, need

FOLDERS = {
    "aws": machines.aws,
    "colab": jobs.colab,
    "dstack": jobs.dstack,
    "gcp": machines.gcp,
    "jarvislabs": machines.jarvislabs,
    "kubernetes": jobs.kubernetes,
    "lambda": machines.lambda_,
    "modal": jobs.modal,
    "paperspace": machines.paperspace,
    "replicate": jobs.replicate,
    "runpod": machines.runpod,
    "skypilot": jobs.skypilot,
    "slurm": jobs.slurm,
    "vast": machines.vast,
}
GUIDES = {"ec2": guide.ec2}
# Folders of deploy/ that are no provider's.
OTHERS = {"check", "grafana", "image", "compose"}
SECTIONS = ["Start", "Cost", "How it stops billing", "Watch", "Results", "Not verified"]


def scripts(folder):
    """shellcheck and Python's compiler."""
    shell = [*folder.rglob("*.sh"), *folder.rglob("*.sbatch")]
    if shell:
        done = subprocess.run(
            ["shellcheck", "-x", *shell], capture_output=True, text=True, check=False
        )
        need(done.returncode == 0, f"shellcheck:\n{done.stdout}")
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path))


def readme(folder):
    """Its sections, its prices, and its shell commands' syntax."""
    path = folder / "README.md"
    need(path.exists(), "no README.md")
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^## (.*)$", text, re.M)
    need(found == SECTIONS, f"README.md: sections {found}, expected {SECTIONS}")
    with open(ROOT / "configs/prices.toml", "rb") as file:
        prices = tomllib.load(file)
    known = set()
    for row in prices["gpu"] + prices.get("storage", []):
        if row["provider"] == folder.name:
            amounts = [row.get(key) for key in ("on_demand", "spot", "per_gb_month")]
            known |= {f"{amount:.2f}" for amount in amounts if amount is not None}
    cost = text.split("## Cost")[1].split("\n## ")[0]
    for amount in re.findall(r"\$(\d+\.\d+)", cost):
        need(amount in known, f"README.md: ${amount} is not in configs/prices.toml")
    for block in re.findall(r"^```sh account\n(.*?)^```", text, re.M | re.S):
        done = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, check=False
        )
        need(done.returncode == 0, f"README.md: {done.stderr}\n{block}")
        for file in re.findall(r"deploy/[\w/.-]+\w", block):
            need((ROOT / file).exists() or file == "deploy/job.env", f"README.md: no {file}")


def tried(name):
    """(name, seconds, fault) of one folder."""
    start = time.monotonic()
    faults = []
    checks = [GUIDES[name]] if name in GUIDES else [
        lambda: scripts(DEPLOY / name),
        lambda: readme(DEPLOY / name),
        FOLDERS[name],
    ]
    for check in checks:
        try:
            check()
        except Broken as error:
            faults.append(str(error))
        except Exception:  # pylint: disable=broad-exception-caught  # told, and counted as a fault
            faults.append(traceback.format_exc())
    return name, time.monotonic() - start, "\n".join(faults)


def one_each(names):
    """Each folder in a process of its own, three at a time."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=3) as pool:
        run = lambda name: subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False
        )
        for name, done in zip(names, pool.map(run, names)):
            print(f"{done.stdout}{done.stderr}".strip(), flush=True)
            yield done.returncode == 0, name


def main():
    """Exits 1 if a folder is not as it should be."""
    if sys.argv[1:2] == ["--one"]:
        name, took, fault = tried(sys.argv[2])
        where = "docs/guides" if name in GUIDES else "deploy"
        print(f"{'FAILED' if fault else 'ok':6} {where}/{name}  {took:.0f} s")
        if fault:
            sys.exit(fault)
        return
    for program in ("agent", "trainer"):
        if not (BIN / program).exists():
            sys.exit(f"{BIN / program} is not there: cargo build --release, or set ANNEAL_BIN")
    folders = {path.name for path in DEPLOY.iterdir() if path.is_dir()} - OTHERS
    need(folders == set(FOLDERS), f"not checked, or gone: {folders ^ set(FOLDERS)}")
    scripts(DEPLOY / "check")
    example = (DEPLOY / "job.env.example").read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:# )?(\w+)=", example, re.M))
    need(named == set(JOB), f"job.env.example: {named ^ set(JOB)} is not what is checked with")
    if not os.environ.get("CLOUD_INIT_SCHEMA"):
        print("cloud-init's schema cannot be had here: cloud-init.yaml is only parsed")
    if not os.environ.get("SBATCH"):
        print("sbatch cannot be had here: the options of job.sbatch are not checked")
    if not os.path.exists("/usr/bin/gcloud"):
        print("gcloud is not installed: the flags of gcp/launch.sh are not checked")
    results = list(one_each(sys.argv[1:] or [*sorted(GUIDES), *sorted(FOLDERS)]))
    broken = [name for good, name in results if not good]
    if broken:
        sys.exit(f"{len(broken)} of {len(results)} broken: {', '.join(broken)}")


if __name__ == "__main__":
    main()
