"""Checks the trainer's event files against the real TensorBoard.

    python3 -m venv /tmp/board && /tmp/board/bin/pip install tensorboard
    /tmp/board/bin/python bench/board.py [TRAINER]      by default target/release/trainer

A run is killed, resumed and gone on with; then what TensorBoard's own reader (EventAccumulator)
shows is compared with events.jsonl, of the live files and of the export. Ends with 1 at the first
difference.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WORDS = """--dataset=quickstart --n_layer=2 --n_head=2 --n_embd=64 --block_size=32 --batch_size=32
    --gradient_accumulation_steps=1 --warmup_iters=2 --eval_interval=20 --eval_iters=2
    --checkpoint_interval=1 --progress=lines --device=cpu --resume=auto --tensorboard_log""".split()
KILLS = 3


def events(run):
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            pass  # torn by a kill


def truth(run):
    """Losses by tag and step: of the last time that each was measured."""
    told = {"loss/iteration": {}, "loss/train": {}, "loss/val": {}}
    for event in events(run):
        if event["event"] == "step":
            told["loss/iteration"][event["step"]] = event["loss"]
        elif event["event"] == "eval":
            told["loss/train"][event["step"]] = event["train_loss"]
            told["loss/val"][event["step"]] = event["val_loss"]
    return told


def compare(what, folder, told):
    board = EventAccumulator(str(folder), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE)
    board.Reload()
    for tag, values in told.items():
        shown = [(e.step, e.value) for e in board.Scalars(tag)]
        assert sorted(values) == [step for step, _ in shown], (what, tag, shown)
        for step, value in shown:
            assert math.isclose(value, values[step], rel_tol=1e-6), (what, tag, step)
    texts = sorted(board.Tags()["tensors"])
    assert [t.removesuffix("/text_summary") for t in texts] == ["config", "sample"], texts
    config = board.Tensors(texts[0])[-1].tensor_proto.string_val[0].decode()
    assert "max_iters = 60\n" in config, config
    counts = {tag: len(values) for tag, values in told.items()}
    print(f"{what}: TensorBoard shows {counts}, the config and a sample")


def main():
    trainer = str(Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/trainer").resolve())
    with tempfile.TemporaryDirectory() as work:
        run = Path(work) / "out"

        def start(*words):
            return subprocess.Popen([trainer, *WORDS, *words], cwd=work, stdout=subprocess.DEVNULL)

        for _ in range(KILLS):
            before = len(list(events(run)))
            process = start("--max_iters=50")
            while process.poll() is None and len(list(events(run))) < before + 16:
                time.sleep(0.002)
            process.kill()
            process.wait()
        assert start("--max_iters=50").wait() == 0
        # Step 50 was evaluated as the last, and is not when the run goes on from it.
        assert start("--max_iters=60", "--sample_tokens=8").wait() == 0
        told = truth(run)
        assert sorted(told["loss/iteration"]) == list(range(60))
        assert sorted(told["loss/val"]) == [0, 20, 40, 50, 60]
        files = len(list((run / "tensorboard").iterdir()))
        compare(f"live, in {files} files", run / "tensorboard", told)
        words = [trainer, "export", "out", "board", "--format=tensorboard"]
        subprocess.run(words, cwd=work, check=True, stdout=subprocess.DEVNULL)
        compare("export", Path(work) / "board", told)


if __name__ == "__main__":
    main()
