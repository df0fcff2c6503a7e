"""What `gpu.sh` says of figures: keeps them with commit and device, compares ours with the peer's.

    ... | python3 bench/gpu.py figures COMMIT DEVICE FILE KIND   # a JSON object on stdin
    python3 bench/gpu.py ratios FOLDER SHAPE...
    python3 bench/gpu.py train EVENTS FILE ITERATIONS
    python3 bench/gpu.py rooms FILE
"""

import json
import sys
from pathlib import Path

# nanoGPT's README for shakespeare_char, 5000 iterations; seeds differ by about this much.
TRAIN_ITERATIONS, TRAIN_LOSS, TRAIN_TOLERANCE = 5000, 1.4697, 0.02


def figures(commit, device, path, kind):
    """Keeps an object of figures; the line that the table wants of it."""
    it = json.loads(sys.stdin.read())
    it = {"commit": commit, "machine": device, **it}
    Path(path).write_text(json.dumps(it) + "\n")
    if kind == "ceilings":
        rate, bandwidth = it["measured_gflops"], it["measured_gigabytes_per_second"]
        print(f"{rate / 1e3:.3g} TFLOP/s, {bandwidth:.0f} GB/s")
    elif kind == "iteration":
        print(
            f"{it['ms_per_iteration']:.2f} ms, {it['tokens_per_second'] / 1e3:.4g}k tokens/s, "
            f"first step after {it['first_step_s']:.2f} s"
        )
    else:
        sys.exit(f"expected ceilings or iteration, got {kind}")


def ratios(folder, *shapes):
    """A row a shape, for RESULTS.md; shapes without both sides are left out."""
    rows = []
    for shape in shapes:
        sides = [Path(folder) / f"{side}-{shape}.json" for side in ("peer", "ours")]
        if not all(side.exists() for side in sides):
            continue
        peer, ours = (json.loads(side.read_text()) for side in sides)
        ceiling = ours["measured_gflops"]
        mfu = ours["mfu"] * ours["peak_gflops"] / ceiling if ours["mfu"] and ceiling else None
        rows.append(
            f"| {shape} | {peer['ms_per_iteration']:.2f} | {ours['ms_per_iteration']:.2f} "
            f"| {peer['ms_per_iteration'] / ours['ms_per_iteration']:.2f} "
            f"| {ours['tokens_per_second'] / 1e3:.0f} | {percent(mfu)} "
            f"| {peer['first_step_s']:.1f} | {ours['first_step_s']:.2f} "
            f"| {mebibytes(peer.get('peak_gpu_mib'))} | {mebibytes(ours.get('gpu_mib'))} |"
        )
    if rows:
        print("| shape | peer ms | ours ms | times as fast | ours k tokens/s | of product's ceiling "
              "| peer first step s | ours | peer GPU MiB | ours |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        print("\n".join(rows))


def percent(share):
    return f"{100 * share:.1f} %" if share else ""


def mebibytes(amount):
    return f"{amount:.0f}" if amount else ""


def train(events, path, iterations):
    """What a run came to; fails where it should have learned more."""
    if not Path(events).exists():
        sys.exit("the run did not begin")
    records = [json.loads(line) for line in Path(events).read_text().splitlines()]
    losses = [(r["step"], r["val_loss"]) for r in records if r["event"] == "eval"]
    steps = [r for r in records if r["event"] == "step"]
    best = min(loss for _, loss in losses)
    report = {
        "best_val_loss": best,
        "val_losses": losses,
        "train_losses": [(r["step"], r["loss"]) for r in steps],
        "step_ms": sorted(r["step_ms"] for r in steps)[len(steps) // 2],
        "first_step_s": steps[0]["elapsed_s"],
        "startup_ms": next(r.get("startup_ms") for r in records if r["event"] == "started"),
        "seconds": records[-1]["elapsed_s"],
    }
    Path(path).write_text(json.dumps(report) + "\n")
    print(
        f"val loss {best:.4f} at best, {report['seconds']:.1f} s, {report['step_ms']:.2f} ms a step, "
        f"first step after {report['first_step_s']:.2f} s"
    )
    if int(iterations) >= TRAIN_ITERATIONS and best > TRAIN_LOSS + TRAIN_TOLERANCE:
        sys.exit(f"expected at most {TRAIN_LOSS} + {TRAIN_TOLERANCE}")


def rooms(path):
    """Where the time goes, the longest first."""
    it = json.loads(Path(path).read_text())
    print(f"{'room':<30} {'ms':>9} {'share':>7} {'TFLOP/s':>9} {'GB/s':>8} {'of bound':>9}")
    for room in it["rooms"]:
        rate = f"{room['gflops'] / 1e3:.1f}" if room["gflops"] else ""
        print(
            f"{room['room']:<30} {room['ms']:>9.3f} {percent(room['share']):>7} {rate:>9} "
            f"{room['gigabytes_per_second']:>8.1f} {percent(room['of_bound']):>9}"
        )


COMMANDS = {"figures": figures, "ratios": ratios, "train": train, "rooms": rooms}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
