"""The peer that speed is measured against: nanoGPT's training step in PyTorch.

Written anew from nanoGPT's behaviour (model, parameter groups, schedule, clipping, batches), not
from its code. `--check` proves on golden cases that the step is the same.

    python bench/peer_torch.py --n_layer=4 --n_head=4 --n_embd=128 --block_size=64 --batch_size=12
    python bench/peer_torch.py --check GOLDEN_DIR      # a case: init, tokens, expected.json ...

Prints one JSON object, on the last line of stdout.

To install: python3 -m venv ~/peer && ~/peer/bin/pip install torch==2.11.0 numpy safetensors
(on x86-64 Linux PyPI's torch needs its CUDA wheels even on a machine without a GPU: 5 GB of disk),
then PEER_PYTHON=~/peer/bin/python. `--compile` also needs a C++ compiler.
"""

import time

STARTED = time.time()  # before the libraries: a user waits for them, too

import argparse
import json
import math
import os
import resource
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path

try:
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as missing:
    sys.exit(f"{missing}; hint: pip install torch==2.11.0 numpy safetensors")

# Two float32 programs that add in another order differ by this much; see the golden cases' README.
LOSS_TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 1e-5
FINAL_TOLERANCE = 1e-4


class LayerNorm(nn.Module):
    """Layer norm whose bias is optional."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal self-attention through PyTorch's fused kernel."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.dropout = c.n_head, c.dropout
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)

    def forward(self, x):  # (B, T, C)
        b, t, width = x.shape
        # (B, T, 3, H, C/H) -> three of (B, H, T, C/H)
        split = self.c_attn(x).view(b, t, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        y = self.c_proj(y.transpose(1, 2).reshape(b, t, width))
        return F.dropout(y, self.dropout, self.training)


class Mlp(nn.Module):
    """Four times as wide inside, GELU by the error function."""

    def __init__(self, c):
        super().__init__()
        self.dropout = c.dropout
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x)))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each behind a layer norm and added to what came in."""

    def __init__(self, c):
        super().__init__()
        self.ln_1 = LayerNorm(c.n_embd, c.bias)
        self.attn = Attention(c)
        self.ln_2 = LayerNorm(c.n_embd, c.bias)
        self.mlp = Mlp(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """GPT-2 with learned positions; the head is the token embedding."""

    def __init__(self, c):
        super().__init__()
        self.dropout = c.dropout
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(c.vocab_size, c.n_embd),
                "wpe": nn.Embedding(c.block_size, c.n_embd),
                "h": nn.ModuleList(Block(c) for _ in range(c.n_layer)),
                "ln_f": LayerNorm(c.n_embd, c.bias),
            }
        )
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name.endswith("c_proj.weight"):
                    p.normal_(0.0, 0.02 / math.sqrt(2 * c.n_layer))
                elif p.dim() >= 2:
                    p.normal_(0.0, 0.02)
                elif name.endswith("bias"):
                    p.zero_()

    def forward(self, tokens, targets):
        """Logits (B, T, V) and the mean cross-entropy in nats per token."""
        t = self.transformer
        x = t.wte(tokens) + t.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = F.dropout(x, self.dropout, self.training)
        for block in t.h:
            x = block(x)
        logits = F.linear(t.ln_f(x), t.wte.weight)
        flat = logits.view(-1, logits.shape[-1])
        return logits, F.cross_entropy(flat, targets.reshape(-1), ignore_index=-1)


def learning_rate(c, step):
    """Linear warm-up, then half a cosine down to min_lr."""
    if not c.decay_lr:
        return c.learning_rate
    if step < c.warmup_iters:
        return c.learning_rate * (step + 1) / (c.warmup_iters + 1)
    if step > c.lr_decay_iters:
        return c.min_lr
    done = (step - c.warmup_iters) / (c.lr_decay_iters - c.warmup_iters)
    return c.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (c.learning_rate - c.min_lr)


class Trainer:
    """A model with its optimizer: one call of `step` is one iteration of nanoGPT."""

    def __init__(self, c):
        self.c = c
        self.device = torch.device(c.device)
        cuda = self.device.type == "cuda"
        if cuda:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        self.model = Gpt(c).to(self.device)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": c.weight_decay},
                {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=c.learning_rate,
            betas=(c.beta1, c.beta2),
            fused=c.fused or None,
        )
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(c.dtype)
        self.autocast = torch.autocast("cuda", dtype) if dtype else nullcontext()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=c.dtype == "float16")
        self.forward = torch.compile(self.model) if c.compile else self.model
        self.iteration = 0

    def step(self, batches):
        """One optimizer step over an accumulation; mean loss and gradient norm, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.c, self.iteration)
        self.iteration += 1
        total = torch.zeros((), device=self.device)
        for x, y in batches:
            with self.autocast:
                _, loss = self.forward(x, y)
                loss = loss / len(batches)
            total += loss.detach()
            self.scaler.scale(loss).backward()
        norm = None
        if self.c.grad_clip:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.c.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    @torch.no_grad()
    def evaluate(self, batches):
        """Mean loss without dropout; changes nothing."""
        with self.autocast:
            return sum(self.forward(x, y)[1] for x, y in batches) / len(batches)


class Batches:
    """Random windows of a token file, or of random tokens, as nanoGPT draws them."""

    def __init__(self, c, device):
        self.c, self.device = c, device
        if c.data:
            self.tokens = np.memmap(Path(c.data) / "train.bin", dtype="<u2", mode="r")
        else:
            draw = np.random.default_rng(c.seed)
            length = max(1 << 20, 2 * c.block_size)
            self.tokens = draw.integers(0, c.vocab_size, length, dtype=np.uint16)

    def accumulation(self):
        return [self.batch() for _ in range(self.c.gradient_accumulation_steps)]

    def batch(self):
        """Inputs and targets, each (B, T)."""
        t = self.c.block_size
        starts = torch.randint(len(self.tokens) - t, (self.c.batch_size,)).tolist()
        windows = np.stack([self.tokens[s : s + t + 1] for s in starts]).astype(np.int64)
        windows = torch.from_numpy(windows)
        if self.device.type == "cuda":
            windows = windows.pin_memory().to(self.device, non_blocking=True)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def measure(c):
    """Warms up, then times `steps` iterations, each with the fetch of its batch."""
    trainer = Trainer(c)
    data = Batches(c, trainer.device)
    train = c.mode == "train"
    trainer.model.train(train)
    cuda = trainer.device.type == "cuda"

    def mark():
        if not cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # on the stream: the host need not wait
        event.record()
        return event

    losses, marks = [], []
    for i in range(c.warmup_steps + c.steps):
        if i >= c.warmup_steps:
            marks.append(mark())
        batches = data.accumulation()
        losses.append(trainer.step(batches)[0] if train else trainer.evaluate(batches))
        if i == 0:
            float(losses[0])  # waits
            first_step_s = time.time() - STARTED
    marks.append(mark())
    if cuda:
        torch.cuda.synchronize()
    times = [
        a.elapsed_time(b) if cuda else (b - a) * 1e3 for a, b in zip(marks, marks[1:])
    ]
    median = statistics.median(times)
    tokens = c.gradient_accumulation_steps * c.batch_size * c.block_size
    report = {
        "ms_per_iteration": round(median, 4),
        "ms_all": [round(t, 4) for t in times],
        "tokens_per_second": round(tokens / median * 1e3, 1),
        "first_step_s": round(first_step_s, 3),
        "loss_first": float(losses[0]),
        "loss_last": float(losses[-1]),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    if cuda:
        report["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return report


@torch.no_grad()
def generate(c):
    """Samples as nanoGPT does, all of the context again for every token; times each after warm-up."""
    model = Gpt(c).eval()
    tokens, times = torch.zeros((1, 1), dtype=torch.long), []
    for i in range(c.warmup_steps + c.steps):
        begin = time.perf_counter()
        context = tokens[:, -c.block_size :]
        t = model.transformer
        x = t.wte(context) + t.wpe(torch.arange(context.shape[1]))
        for block in t.h:
            x = block(x)
        logits = F.linear(t.ln_f(x[:, -1:]), t.wte.weight)[:, -1] / 0.8
        choice = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
        tokens = torch.cat((tokens, choice), dim=1)
        if i >= c.warmup_steps:
            times.append((time.perf_counter() - begin) * 1e3)
    mean = statistics.fmean(times)  # not the median: every token has a longer context
    return {
        "ms_per_iteration": round(mean, 4),
        "ms_all": [round(t, 4) for t in times],
        "tokens_per_second": round(1e3 / mean, 4),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def check(c):
    """Runs a golden case and reports the worst difference of everything that it records."""
    from safetensors.torch import load_file

    case = Path(c.check)
    expected = json.loads((case / "expected.json").read_text())
    for key in [*expected["model"], *expected["optimizer"]]:
        setattr(c, key, {**expected["model"], **expected["optimizer"]}[key])
    trainer = Trainer(c)
    absent = trainer.model.load_state_dict(load_file(case / "init.safetensors"))
    assert not absent.missing_keys and not absent.unexpected_keys, absent
    tokens = load_file(case / "tokens.safetensors")["tokens"].long().to(trainer.device)
    named = dict(trainer.model.named_parameters())

    def relative(ours, theirs):  # to the largest element of the tensor
        return float((ours.detach().cpu() - theirs).abs().max() / theirs.abs().max())

    first = [(m[:, :-1].contiguous(), m[:, 1:].contiguous()) for m in tokens[0]]
    logits = trainer.model(*first[0])[0]
    golden_logits = load_file(case / "logits0.safetensors")["logits"]
    worst = {"logits_relative": relative(logits, golden_logits)}
    for x, y in first:
        (trainer.model(x, y)[1] / len(first)).backward()
    grads = load_file(case / "grads0.safetensors")
    assert grads.keys() == named.keys()
    worst["gradients_relative"] = max(relative(named[n].grad, g) for n, g in grads.items())
    trainer.optimizer.zero_grad(set_to_none=True)

    worst.update(loss=0.0, grad_norm_relative=0.0)
    for golden, micro_steps in zip(expected["steps"], tokens, strict=True):
        assert math.isclose(learning_rate(c, golden["step"]), golden["lr"], rel_tol=1e-12)
        batches = [(m[:, :-1].contiguous(), m[:, 1:].contiguous()) for m in micro_steps]
        loss, norm = (float(v) for v in trainer.step(batches))
        worst["loss"] = max(worst["loss"], abs(loss - golden["loss"]))
        off = abs(norm / golden["grad_norm"] - 1)
        worst["grad_norm_relative"] = max(worst["grad_norm_relative"], off)
    final = load_file(case / "final.safetensors")
    assert final.keys() == named.keys()
    worst["final_parameters"] = max(
        float((named[n].detach().cpu() - p).abs().max()) for n, p in final.items()
    )
    same = (
        worst["loss"] <= LOSS_TOLERANCE
        and worst["logits_relative"] <= RELATIVE_TOLERANCE
        and worst["gradients_relative"] <= RELATIVE_TOLERANCE
        and worst["final_parameters"] <= FINAL_TOLERANCE
    )
    return {"check": case.name, "steps": len(expected["steps"]), "worst": worst, "same": same}


def boolean(text):
    if text not in ("True", "true", "False", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text in ("True", "true")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    add = parser.add_argument
    for key, default in {
        "n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50304,
        "batch_size": 12, "gradient_accumulation_steps": 1, "warmup_iters": 2000,
        "lr_decay_iters": 600000, "steps": 20, "warmup_steps": 5, "seed": 1337,
    }.items():  # fmt: skip
        add(f"--{key}", type=int, default=default)
    for key, default in {
        "dropout": 0.0, "learning_rate": 6e-4, "min_lr": 6e-5, "weight_decay": 0.1,
        "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0,
    }.items():  # fmt: skip
        add(f"--{key}", type=float, default=default)
    add("--bias", type=boolean, default=False)
    add("--decay_lr", type=boolean, default=True)
    add("--compile", type=boolean, nargs="?", const=True, default=False)
    add("--fused", type=boolean, default=True,
        help="AdamW's fused kernel; nanoGPT takes it on CUDA only, on a CPU it makes the peer faster")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--dtype", choices=["float32", "bfloat16", "float16"],
        help="default: bfloat16 on CUDA, float32 on a CPU")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--mode", choices=["train", "eval", "sample"], default="train")
    add("--data", metavar="DIR", help="a folder with train.bin (default: random tokens)")
    add("--check", metavar="GOLDEN_DIR", help="run a golden case instead of measuring")
    c = parser.parse_args()
    if c.dtype is None:
        c.dtype = "float32" if c.check or not c.device.startswith("cuda") else "bfloat16"
    if c.dtype != "float32" and not c.device.startswith("cuda"):
        parser.error(f"--dtype={c.dtype}: nanoGPT computes in float32 on a CPU")
    if c.n_embd % c.n_head:
        parser.error(f"--n_embd={c.n_embd} is not divisible by --n_head={c.n_head}")
    if min(c.steps, c.gradient_accumulation_steps, c.threads) < 1:
        parser.error("--steps, --gradient_accumulation_steps and --threads must be at least 1")
    if c.vocab_size > 65536:
        parser.error(f"--vocab_size={c.vocab_size}: tokens are uint16")
    return c


def main():
    c = arguments()
    torch.manual_seed(c.seed)
    torch.set_num_threads(c.threads)
    if c.check:
        report = check(c)
    else:
        device = torch.cuda.get_device_name() if c.device.startswith("cuda") else "cpu"
        report = {
            "peer": "torch",
            "torch": torch.__version__,
            "device": device,
            "threads": c.threads,
            "config": vars(c),
            **(generate(c) if c.mode == "sample" else measure(c)),
        }
    print(json.dumps(report))
    return 0 if report.get("same", True) else 1


if __name__ == "__main__":
    sys.exit(main())
