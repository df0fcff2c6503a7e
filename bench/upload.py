#!/usr/bin/env python3
"""What `bench/upload.sh` runs: the agent against boto3 and the aws cli on one server, in turn, with
the memory and processor time of each; and the trainer's steps while a checkpoint is published.

    upload.py transfer --agent A --work DIR --json FILE --bytes N --round N [--clients a,b]
    upload.py table --json FILE         what all rounds in FILE come to
    upload.py steps --agent A --trainer T --work DIR --json FILE [--saves N]
    upload.py show FOLDER RUN_DIR       plays a trainer: FOLDER becomes its checkpoint of step 1
    upload.py boto3 up|down FOLDER KEY  prints the seconds that the transfers took

The store is ANNEAL_TEST_S3, an s3:// address on the server that AWS_* name (or a folder, for
`steps`). Files are incompressible and made once; sums that the agent checks are made with them.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import time

CHUNK_BYTES = 1 << 20
PART_BYTES = 16 << 20
PARALLEL = 4
CLIENTS = ["agent", "boto3", "boto3-default", "aws"]
POLL_S = 0.02
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def make(folder, size):
    """A checkpoint as the trainer lays it out: a third model, the rest optimizer, a manifest."""
    folder.mkdir(parents=True)
    files, draw = {}, random.Random(1)
    sizes = {"model.safetensors": size // 3, "optimizer.safetensors": size - size // 3}
    for name, part in sizes.items():
        digest, left = hashlib.sha256(), part
        with open(folder / name, "wb") as file:
            while left:
                chunk = draw.randbytes(min(left, CHUNK_BYTES))
                digest.update(chunk)
                file.write(chunk)
                left -= len(chunk)
        files[name] = {"bytes": part, "sha256": digest.hexdigest()}
    manifest = {"format_version": 1, "step": 1, "val_loss": None, "config_hash": "0" * 64}
    manifest |= {"time": "2026-01-01T00:00:00Z", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def show(folder, run_dir):
    checkpoints = run_dir / "checkpoints"
    aside = checkpoints / ".tmp-1"
    aside.mkdir(parents=True)
    for file in folder.iterdir():
        os.link(file, aside / file.name)
    aside.rename(checkpoints / "step_0000000001")


def processor_s(pid):
    """User and system time of a process and all its threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def watched(command, **options):
    """Runs a command to its end. Its output, and what it alone (not its children) took."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    os.set_blocking(process.stdout.fileno(), False)
    peak_kib, cpu_s, output = 0, 0.0, b""
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak_kib = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
            cpu_s = processor_s(process.pid)
        except (TypeError, OSError, IndexError):
            pass  # It has just ended.
        output += process.stdout.read() or b""
        time.sleep(POLL_S)
    output += process.stdout.read() or b""
    text = output.decode(errors="replace")
    if process.returncode != 0:
        sys.exit(f"upload.py: exit {process.returncode} of {command}:\n{text}")
    took = {"wall_s": time.monotonic() - begin, "cpu_s": cpu_s, "peak_rss_mib": peak_kib / 1024}
    return text, took


def stamp(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def between(log, first, last):
    """Seconds from the first line of an agent's local log that has one text to that of another."""
    times = {}
    for line in log.read_text().splitlines():
        for text in (first, last):
            if text in line:
                times.setdefault(text, stamp(line.split(" ", 1)[0]))
    return (times[last] - times[first]).total_seconds()


class Bench:
    def __init__(self, options):
        self.options = options
        self.work = pathlib.Path(options.work)
        self.store = os.environ["ANNEAL_TEST_S3"]
        self.made = self.work / "made"

    def note(self, **row):
        print(json.dumps(row), file=sys.stderr, flush=True)
        with open(self.options.json, "a") as file:
            file.write(json.dumps(row) + "\n")

    def agent(self, job, run_dir, words, *command):
        agent = [self.options.agent, "run", f"--store={self.store}/upload", f"--job={job}"]
        return watched([*agent, f"--run-dir={run_dir}", *words, "--", *command])

    def transfer_agent(self, name):
        up, down = self.work / "up", self.work / "down"
        play = [sys.executable, __file__, "show", str(self.made), "{run_dir}"]
        text, took = self.agent(name, up, [], *play)
        took["s"] = float(re.search(r"published step 1: .* in ([0-9.]+) s", text)[1])
        shutil.rmtree(up)
        yield "up", took
        _, took = self.agent(name, down, ["--again"], "true", "{run_dir}")
        log = max((down / "logs").glob("a*.log"))
        took["s"] = between(log, "has the lease", "fetched commit")
        shutil.rmtree(down)
        yield "down", took

    def transfer_boto3(self, name, *words):
        for way in ("up", "down"):
            folder = self.made if way == "up" else self.work / "down"
            command = [sys.executable, __file__, "boto3", way, str(folder), name, *words]
            text, took = watched(command)
            took["s"] = float(text)
            yield way, took
        shutil.rmtree(self.work / "down")

    def transfer_aws(self, name):
        there = f"{self.store}/upload/{name}"
        aws = [pathlib.Path(sys.executable).with_name("aws"), "s3", "cp", "--recursive"]
        aws += ["--only-show-errors"]
        for way in ("up", "down"):
            down = str(self.work / "down")
            places = [str(self.made), there] if way == "up" else [there, down]
            _, took = watched([*aws, *places])
            took["s"] = took["wall_s"]
            yield way, took
        shutil.rmtree(self.work / "down")

    def transfer(self):
        options = self.options
        if not self.made.exists():
            make(self.made, options.bytes)
        ways = {
            "agent": self.transfer_agent,
            "boto3": lambda name: self.transfer_boto3(name, "--same"),
            "boto3-default": self.transfer_boto3,
            "aws": self.transfer_aws,
        }
        clients = options.clients.split(",")
        # Nobody is always the first.
        turn = options.round % len(clients)
        for client in clients[turn:] + clients[:turn]:
            for way, took in ways[client](client):
                mb = options.bytes / 1e6
                self.note(client=client, way=way, round=options.round, mb=mb, **took)
            self.clear(f"upload/{client}/")

    def steps(self):
        """A model whose checkpoint has 2.1 GB, saved a few times in one run. Steps count as with an
        upload where one touches them and no save does, as without where neither does."""
        options = self.options
        run_dir, cache, job = self.work / "run", self.work / "cache", f"steps-{os.getpid()}"
        model = ["--n_layer=14", "--n_head=16", "--n_embd=1024", "--block_size=64"]
        length = ["--batch_size=1", "--gradient_accumulation_steps=1"]
        length += [f"--threads={options.threads}"]
        length += [f"--max_iters={options.saves * options.steps_between}", "--log_interval=1"]
        saves = [f"--checkpoint_interval={options.steps_between}", "--checkpoint_minutes=0"]
        saves += ["--keep_last=1", "--eval_interval=1000000", "--eval_iters=1"]
        os.environ["ANNEAL_CACHE"] = str(cache)
        trainer = [options.trainer, "--dataset=quickstart", *model, *length, *saves]
        text, took = self.agent(job, run_dir, ["--keep-last=2"], *trainer)
        windows = []
        for log in (run_dir / "logs").glob("a*.log"):
            for line in log.read_text().splitlines():
                if found := re.search(r"published step .* in ([0-9.]+) s", line):
                    end = stamp(line.split(" ", 1)[0]).timestamp()
                    windows.append((end - float(found[1]), end))
        records = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
        steps, saving = [], []
        for record in records:
            end = stamp(record["time"]).timestamp()
            if record["event"] == "step":
                steps.append((end - record["step_ms"] / 1e3, end, record["step_ms"]))
            elif record["event"] == "checkpoint":
                saving.append((end - (record["write_ms"] + record["stall_ms"]) / 1e3, end))
        steps = steps[options.warmup :]
        touched = lambda step, by: any(step[0] < b and a < step[1] for a, b in by)
        steps = [step for step in steps if not touched(step, saving)]
        during = [step[2] for step in steps if touched(step, windows)]
        alone = [step[2] for step in steps if not touched(step, windows)]
        upload_s = [round(b - a, 1) for a, b in windows]
        self.note(upload_s=upload_s, during_ms=during, alone_ms=alone, **took)
        if not during or not alone:
            sys.exit("upload.py: no step during an upload, or none without: more --steps-between")
        middle = statistics.median
        print(f"without upload {middle(alone):.0f} ms ({len(alone)} steps)")
        print(f"during uploads {middle(during):.0f} ms ({len(during)} steps), {upload_s} s")
        more_s = sum(step - middle(alone) for step in during) / 1e3 / len(windows)
        print(f"an upload costs the run {more_s:.1f} s")
        rss = took["peak_rss_mib"]
        print(f"agent: {took['cpu_s']:.1f} s of a processor, peak RSS {rss:.0f} MiB")
        shutil.rmtree(run_dir)
        self.clear(f"upload/{job}/")

    def clear(self, prefix):
        """Removes what a client left; a server that frees space late is told to do it now."""
        if not self.store.startswith("s3://"):
            return shutil.rmtree(pathlib.Path(self.store) / prefix)
        bucket, _, base = self.store.removeprefix("s3://").partition("/")
        client = s3_client()
        pages = client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=f"{base}/{prefix}"):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=entry["Key"])
        if self.options.after:
            subprocess.run(self.options.after, shell=True, check=True, stdout=subprocess.DEVNULL)



def table(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print(f"{'':<15}{'way':>5}{'MB/s':>8}{'range':>15}{'CPU s':>8}{'of a core':>11}{'RSS MiB':>9}")
    for way in ("up", "down"):
        for client in CLIENTS:
            here = [row for row in rows if (row.get("client"), row.get("way")) == (client, way)]
            if not here:
                continue
            rates = [row["mb"] / row["s"] for row in here]
            cpu_s = statistics.median(row["cpu_s"] for row in here)
            share = statistics.median(row["cpu_s"] / row["wall_s"] for row in here)
            rss = max(row["peak_rss_mib"] for row in here)
            span = f"{min(rates):.0f}-{max(rates):.0f}"
            print(
                f"{client:<15}{way:>5}{statistics.median(rates):>8.0f}{span:>15}"
                f"{cpu_s:>8.2f}{100 * share:>10.0f}%{rss:>9.0f}"
            )


def s3_client():
    import boto3
    import botocore.config

    # Path style, as a server without names for its buckets needs it.
    config = botocore.config.Config(s3={"addressing_style": "path"}, max_pool_connections=16)
    return boto3.client("s3", config=config)


def run_boto3(way, folder, name, same):
    """The two large files through boto3's TransferManager, with its own settings or the agent's."""
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig()
    if same:
        size = {"multipart_threshold": PART_BYTES, "multipart_chunksize": PART_BYTES}
        config = TransferConfig(max_concurrency=PARALLEL, **size)
    bucket, _, base = os.environ["ANNEAL_TEST_S3"].removeprefix("s3://").partition("/")
    client = s3_client()
    folder.mkdir(exist_ok=True)
    begin = time.monotonic()
    for file in ("model.safetensors", "optimizer.safetensors", "manifest.json"):
        key = f"{base}/upload/{name}/{file}"
        if way == "up":
            client.upload_file(str(folder / file), bucket, key, Config=config)
        else:
            client.download_file(bucket, key, str(folder / file), Config=config)
    print(time.monotonic() - begin)


def parse():
    parser = argparse.ArgumentParser()
    actions = parser.add_subparsers(dest="action", required=True)
    transfer = actions.add_parser("transfer")
    transfer.add_argument("--bytes", type=int, required=True)
    transfer.add_argument("--round", type=int, required=True)
    transfer.add_argument("--clients", default=",".join(CLIENTS))
    steps = actions.add_parser("steps")
    steps.add_argument("--trainer", required=True)
    steps.add_argument("--saves", type=int, default=4)
    steps.add_argument("--steps-between", type=int, default=60)
    steps.add_argument("--warmup", type=int, default=5)
    steps.add_argument("--threads", type=int, default=os.cpu_count())
    for action in (transfer, steps):
        action.add_argument("--after", help="a command that has the server free what was deleted")
        action.add_argument("--agent", required=True)
        action.add_argument("--work", required=True)
        action.add_argument("--json", required=True)
    show_table = actions.add_parser("table")
    show_table.add_argument("--json", type=pathlib.Path, required=True)
    play = actions.add_parser("show")
    play.add_argument("folder", type=pathlib.Path)
    play.add_argument("run_dir", type=pathlib.Path)
    peer = actions.add_parser("boto3")
    peer.add_argument("way", choices=("up", "down"))
    peer.add_argument("folder", type=pathlib.Path)
    peer.add_argument("name")
    peer.add_argument("--same", action="store_true", help="parts and number of them as the agent's")
    return parser.parse_args()


if __name__ == "__main__":
    told = parse()
    match told.action:
        case "show":
            show(told.folder, told.run_dir)
        case "boto3":
            run_boto3(told.way, told.folder, told.name, told.same)
        case "transfer":
            Bench(told).transfer()
        case "table":
            table(told.json)
        case "steps":
            Bench(told).steps()
