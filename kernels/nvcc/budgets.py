#!/usr/bin/env python3
"""Whether the compiled kernels are as good as they were, found out without a GPU.

    kernels/nvcc/budgets.py check     compares with kernels/budgets.toml; fails where it got worse
    kernels/nvcc/budgets.py update    writes what is now into kernels/budgets.toml, for review

Reads the fatbins that kernels/build.rs left in target/fatbins/all, and has cargo make them if they
are older than the sources: registers, shared memory and stack from cuobjdump, spills from ptxas's
report, and from the machine code which of the marker instructions each kernel has on each target.
The bytes of all packed fatbins, which are in every program, are held to a limit set by hand.
"""

import argparse
import collections
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
BUDGETS = KERNELS / "budgets.toml"
GENERATED = "# ---- Below: written by `kernels/nvcc/budgets.py update`.\n"
FIGURES = ("registers", "shared", "stack")
JOBS = 2

# One line of the table: what is wrong (or better, or new) with a kernel on some targets.
Finding = collections.namedtuple("Finding", "verdict kernel targets what budget now")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["check", "update"])
    command = parser.parse_args().command
    try:
        folder = fresh_fatbins()
        text = BUDGETS.read_text()
        by_hand, _, _ = text.partition(GENERATED)
        version, measured = measure(folder)
        if command == "update":
            BUDGETS.write_text(by_hand + GENERATED + generated(by_hand, version, measured))
        budgets = tomllib.loads(BUDGETS.read_text())
        packed = packed_bytes(folder)
        findings = check_packed(budgets, packed) + compare(budgets, version, measured)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"budgets: {error}")
    print_table(findings)
    worse = sum(finding.verdict == "WORSE" for finding in findings)
    better = sum(finding.verdict == "better" for finding in findings)
    pairs = sum(len(targets) for targets in measured.values())
    print(f"budgets: {len(measured)} kernels, {pairs} with their targets: "
          f"{worse} worse, {better} better; {packed} bytes packed")
    if better and not worse:
        print("hint: kernels/nvcc/budgets.py update makes what got better the new budget")
    sys.exit(1 if worse else 0)


# ------------------------------------------------------------------------------------ measuring


def fresh_fatbins():
    """The folder of fatbins for all targets, made by cargo if it is not what the sources say."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    folder = target / "fatbins" / "all"
    reason = staleness(folder)
    if reason:
        print(f"budgets: {reason}: building", flush=True)
        environment = {k: v for k, v in os.environ.items() if k != "ANNEAL_CUDA_ARCHS"}
        command = ["cargo", "check", "--release", "-p", "kernels", "--features", "cuda"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        reason = staleness(folder)
        if reason:
            raise ValueError(f"{reason}, although cargo has just built it")
    return folder


def staleness(folder):
    """What is not as kernels/build.rs would leave it, if anything."""
    for source in sorted((KERNELS / "src").glob("*/*.cu")):
        room = source.parent.name
        name = room if room == source.stem else f"{room}-{source.stem}"
        inputs = folder / f"{name}.inputs"
        made = [inputs, inputs.with_suffix(".fatbin"), inputs.with_suffix(".zst")]
        if not all(file.exists() for file in made):
            return f"{name} is not compiled"
        head, _, contents = inputs.read_text().partition("\n\n")
        files = [KERNELS / line for line in head.splitlines()[2:]]
        if not all(file.exists() for file in files):
            return f"{name} was compiled from files that are gone"
        if contents != "".join(file.read_text() for file in files):
            return f"{name} has changed since it was compiled"
    return None


def measure(folder):
    """The version of nvcc, and kernel -> target -> figures, spills and opcodes."""
    fatbins = sorted(folder.glob("*.fatbin"))
    versions = {f.with_suffix(".inputs").read_text().split("\n", 1)[0] for f in fatbins}
    if len(versions) != 1:
        raise ValueError(f"{folder}: expected fatbins by one nvcc, got {sorted(versions)}")
    cuobjdump = find_cuobjdump()
    measured = {}
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for one in pool.map(lambda fatbin: measure_one(cuobjdump, fatbin), fatbins):
            for kernel, targets in one.items():
                measured[kernel] = {int(target): m for target, m in targets.items()}
    return versions.pop().removeprefix("nvcc "), measured


def packed_bytes(folder):
    """Of what a program has in it; conformance kernels are for tests alone."""
    packed = [f for f in folder.glob("*.zst") if not f.stem.endswith("conformance")]
    return sum(file.stat().st_size for file in packed)


def measure_one(cuobjdump, fatbin):
    """Likewise of one fatbin; remembered beside it, since disassembling takes seconds."""
    remembered = fatbin.with_suffix(".measured")
    stamp = [fatbin.stat().st_mtime_ns, fatbin.stat().st_size]
    if remembered.exists():
        was = json.loads(remembered.read_text())
        if was["stamp"] == stamp:
            return was["kernels"]

    def dump(option):
        command = [cuobjdump, option, fatbin]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    kernels = parse_resources(dump("-res-usage"))
    report = parse_report(fatbin.with_suffix(".ptxas").read_text())
    opcodes = parse_opcodes(dump("-sass"))
    for kernel, targets in kernels.items():
        for target, figures in targets.items():
            try:
                figures |= report[kernel, target]
                figures["opcodes"] = sorted(opcodes[kernel, target])
            except KeyError as error:
                raise ValueError(f"{fatbin}: nothing is said of kernel, target {error}") from None
    remembered.write_text(json.dumps({"stamp": stamp, "kernels": kernels}))
    return json.loads(remembered.read_text())["kernels"]


def find_cuobjdump():
    """Beside nvcc, which is looked for where kernels/build.rs looks for it, or on the path."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [pathlib.Path(os.environ["NVCC"]).parent] if "NVCC" in os.environ else []
    places += [pathlib.Path(home) / "bin" for home in homes]
    places += [pathlib.Path(tool).parent for tool in [shutil.which("nvcc")] if tool]
    places += [KERNELS.parent / "target/nvcc/cuda/bin"]
    places += [pathlib.Path(tool).parent for tool in [shutil.which("cuobjdump")] if tool]
    for place in places:
        if (place / "cuobjdump").exists() and (place / "nvdisasm").exists():
            return place / "cuobjdump"
    raise ValueError("cuobjdump and nvdisasm not found\nhint: run kernels/nvcc/install.sh")


def parse_resources(text):
    """kernel -> target -> figures, from `cuobjdump -res-usage`."""
    kernels = {}
    target = kernel = None
    for line in text.splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            target = int(match[1])
        elif match := re.match(r" Function (\S+):", line):
            kernel = match[1]
        elif match := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            # From 90 on, SHARED counts what the system reserves: ptxas's figure is the kernel's.
            registers, stack, local = map(int, match.groups())
            kernels.setdefault(kernel, {})[target] = {
                "registers": registers, "stack": stack, "local": local}
    if not kernels:
        raise ValueError("cuobjdump -res-usage names no kernel")
    return kernels


def parse_report(text):
    """(kernel, target) -> bytes spilled and static shared memory, from what ptxas said."""
    report = {}
    key = None
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for 'sm_(\d+)'", line):
            key = match[1], int(match[2])
            report[key] = {"spills": 0, "shared": 0}
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # Functions that are not inlined have their own lines; they count as the kernel's.
            report[key]["spills"] += int(match[1]) + int(match[2])
        elif match := re.search(r"Used \d+ registers.* (\d+) bytes smem", line):
            report[key]["shared"] = int(match[1])
    return report


def parse_opcodes(text):
    """(kernel, target) -> set of opcodes with their modifiers, from `cuobjdump -sass`."""
    opcodes = collections.defaultdict(set)
    target = kernel = None
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?\s*([A-Z][\w.]*)")
    for line in text.splitlines():
        if match := instruction.match(line):
            opcodes[kernel, target].add(match[1])
        elif match := re.match(r"arch = sm_(\d+)", line):
            target = int(match[1])
        elif match := re.match(r"\s+Function : (\S+)", line):
            kernel = match[1]
    return opcodes


# ------------------------------------------------------------------------------------ comparing


def markers_of(patterns, opcodes):
    """The names of the markers that some opcode matches from its start to its end."""
    return {name for name, pattern in patterns.items()
            if any(re.fullmatch(pattern, opcode) for opcode in opcodes)}


def check_packed(budgets, packed):
    """Fewer bytes than the limit are no news: it has room for a kernel or two."""
    most = budgets["packed_bytes_max"]
    if packed <= most:
        return []
    return [Finding("WORSE", "all together", (), "packed bytes", most, packed)]


def compare(budgets, version, measured):
    """Findings, the worst first: against the generated part, and against the rules."""
    made_by = budgets.get("made", {}).get("nvcc")
    if made_by != version:
        raise ValueError(
            f"{BUDGETS.name} is for nvcc {made_by}, these fatbins are by {version}\n"
            "hint: kernels/nvcc/install.sh installs the one that the budgets are for")
    findings = compare_figures(budgets, measured)
    findings += check_rules(budgets, measured)
    order = {"WORSE": 0, "better": 1}
    return sorted(merge(findings), key=lambda f: (order[f.verdict], f.kernel, f.what, f.targets))


def compare_figures(budgets, measured):
    findings = []
    kernels = budgets.get("kernel", {})
    all_targets = budgets["made"]["targets"]
    for kernel in sorted(kernels.keys() - measured.keys()):
        findings.append(Finding("WORSE", kernel, (), "compiled", True, False))
    for kernel, by_target in measured.items():
        if kernel not in kernels:
            findings.append(Finding("WORSE", kernel, (), "in budgets.toml", True, False))
            continue
        budget = kernels[kernel]
        targets = budget.get("targets", all_targets)
        for target in sorted(set(targets) ^ by_target.keys()):
            had, has = target in targets, target in by_target
            findings.append(Finding("WORSE", kernel, (target,), "compiled", had, has))
        for index, target in enumerate(targets):
            now = by_target.get(target)
            if now is None:
                continue
            for figure in FIGURES:
                allowed = at(budget.get(figure, 0), index)
                if now[figure] != allowed:
                    verdict = "WORSE" if now[figure] > allowed else "better"
                    finding = verdict, kernel, (target,), figure, allowed, now[figure]
                    findings.append(Finding(*finding))
            have = markers_of(budgets["markers"], now["opcodes"])
            had = {name for name, on in budget.get("has", {}).items()
                   if on is True or target in on}
            for name in sorted(had ^ have):
                worse = (name in have) == (name in budgets["unwanted"])
                finding = kernel, (target,), name, name in had, name in have
                findings.append(Finding("WORSE" if worse else "better", *finding))
    return findings


def check_rules(budgets, measured):
    findings = []
    patterns = budgets["markers"]
    unused = set(range(len(budgets.get("rule", []))))
    for kernel, by_target in measured.items():
        for target, now in by_target.items():
            for figure in ("spills", "local"):
                if now[figure]:
                    findings.append(
                        Finding("WORSE", kernel, (target,), figure, 0, now[figure]))
            have = markers_of(patterns, now["opcodes"])
            for number, rule in enumerate(budgets.get("rule", [])):
                if not applies(rule, kernel, target):
                    continue
                unused.discard(number)
                for name in rule.get("must", []):
                    known(patterns, name)
                    if name not in have:
                        finding = "WORSE", kernel, (target,), name, "must", False
                        findings.append(Finding(*finding))
                for name in rule.get("must_not", []):
                    known(patterns, name)
                    if name in have:
                        finding = "WORSE", kernel, (target,), name, "must not", True
                        findings.append(Finding(*finding))
    for number in sorted(unused):
        pattern = str(budgets["rule"][number]["kernels"])
        findings.append(Finding("WORSE", pattern, (), "kernels of this rule", "some", "none"))
    return findings


def applies(rule, kernel, target):
    """Whether one of the rule's patterns, and none of those in `except`, matches the kernel."""
    return (target >= rule.get("from", 0)
            and any(fnmatch.fnmatchcase(kernel, pattern) for pattern in rule["kernels"])
            and not any(fnmatch.fnmatchcase(kernel, p) for p in rule.get("except", [])))


def known(patterns, name):
    if name not in patterns:
        raise ValueError(f"{BUDGETS.name}: a rule names marker {name}, [markers] does not")


def at(value, index):
    return value[index] if isinstance(value, list) else value


def merge(findings):
    """Findings that differ only in their target become one."""
    merged = {}
    for finding in findings:
        key = finding._replace(targets=())
        merged[key] = merged.get(key, ()) + finding.targets
    return [key._replace(targets=targets) for key, targets in merged.items()]


def print_table(findings):
    if not findings:
        return
    rows = [("", "kernel", "targets", "what", "budget", "now")]
    words = {True: "yes", False: "no"}
    for finding in findings:
        targets = " ".join(map(str, finding.targets)) or "-"
        cells = [words[cell] if isinstance(cell, bool) else str(cell) for cell in finding[3:]]
        rows.append((finding.verdict, finding.kernel, targets, *cells))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


# -------------------------------------------------------------------------------------- writing


def generated(by_hand, version, measured):
    """The generated part of budgets.toml."""
    patterns = tomllib.loads(by_hand)["markers"]
    all_targets = sorted({target for targets in measured.values() for target in targets})
    text = f'\n[made]\nnvcc = "{version}"\ntargets = {all_targets}\n'
    for kernel in sorted(measured):
        by_target = measured[kernel]
        targets = sorted(by_target)
        text += f"\n[kernel.{kernel}]\n"
        if targets != all_targets:
            text += f"targets = {targets}\n"
        for figure in FIGURES:
            values = [by_target[target][figure] for target in targets]
            if any(values):
                same = len(set(values)) == 1
                text += f"{figure} = {values[0] if same else values}\n"
        for name in patterns:
            on = [target for target in targets
                  if name in markers_of(patterns, by_target[target]["opcodes"])]
            if on:
                text += f'has."{name}" = {"true" if on == targets else on}\n'
    return text


if __name__ == "__main__":
    main()
