"""What PyTorch and transformers make of the files that we read and write; see interop.sh.

    interop.py resume GOLDEN_CASE          losses that PyTorch gets when it resumes ckpt.pt
    interop.py make DIR                    random GPT-2s, written by transformers
    interop.py logits DIR IDS              logits of the last position, by AutoModelForCausalLM
    interop.py compare WHAT OURS THEIRS    largest difference of two lists of logits; 1 above 1e-4
    interop.py generate DIR                20 tokens by generate(), as text by AutoTokenizer
    interop.py tokens DIR TRAINER TEXT     ids of a text, by AutoTokenizer and by us
"""

import json
import math
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

RESUMED_STEPS = 8


def forward(p, args, x):
    """nanoGPT's model on a state dictionary, for reading rather than speed."""
    n_head, C = args["n_head"], args["n_embd"]
    get = p.get

    def linear(name, x):
        return F.linear(x, p[name + ".weight"], get(name + ".bias"))

    def norm(name, x):
        return F.layer_norm(x, (C,), p[name + ".weight"], get(name + ".bias"), 1e-5)

    B, T = x.shape
    h = p["transformer.wte.weight"][x] + p["transformer.wpe.weight"][:T]
    for i in range(args["n_layer"]):
        block = f"transformer.h.{i}"
        q, k, v = linear(block + ".attn.c_attn", norm(block + ".ln_1", h)).split(C, dim=2)
        q, k, v = (t.view(B, T, n_head, C // n_head).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + linear(block + ".attn.c_proj", y.transpose(1, 2).reshape(B, T, C))
        y = F.gelu(linear(block + ".mlp.c_fc", norm(block + ".ln_2", h)))
        h = h + linear(block + ".mlp.c_proj", y)
    return F.linear(norm("transformer.ln_f", h), p["transformer.wte.weight"])


def learning_rate(o, it):
    if it < o["warmup_iters"]:
        return o["learning_rate"] * (it + 1) / (o["warmup_iters"] + 1)
    if it > o["lr_decay_iters"]:
        return o["min_lr"]
    ratio = (it - o["warmup_iters"]) / (o["lr_decay_iters"] - o["warmup_iters"])
    return o["min_lr"] + 0.5 * (1 + math.cos(math.pi * ratio)) * (o["learning_rate"] - o["min_lr"])


def resume(case):
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    case = Path(case)
    expected = json.loads((case / "expected.json").read_text())
    o = expected["optimizer"]
    checkpoint = torch.load(case / "ckpt.pt", map_location="cpu", weights_only=True)
    p = {k: v.clone().requires_grad_() for k, v in checkpoint["model"].items()}
    p.pop("lm_head.weight")
    p = {k.removeprefix("_orig_mod."): v for k, v in p.items()}
    groups = [
        {"params": [v for v in p.values() if v.dim() >= 2], "weight_decay": o["weight_decay"]},
        {"params": [v for v in p.values() if v.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(o["beta1"], o["beta2"]))
    optimizer.load_state_dict(checkpoint["optimizer"])
    tokens = load_file(case / "tokens.safetensors")["tokens"].long()
    accumulation = expected["gradient_accumulation_steps"]
    losses = []
    for k in range(RESUMED_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(o, checkpoint["iter_num"] + k)
        total = 0.0
        for micro in range(accumulation):
            batch = tokens[k, micro]
            logits = forward(p, checkpoint["model_args"], batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()) / accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(p.values(), o["grad_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    print(json.dumps(losses))


def make(folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    for name, activation, dtype in [
        ("tanh", "gelu_new", torch.float32),
        ("erf", "gelu", torch.float32),
        ("tanh-bfloat16", "gelu_new", torch.bfloat16),
        ("tanh-sharded", "gelu_new", torch.float32),
    ]:
        torch.manual_seed(len(name))
        config = GPT2Config(
            n_layer=3, n_head=4, n_embd=128, n_positions=64, vocab_size=503, bos_token_id=0,
            eos_token_id=0, activation_function=activation, initializer_range=0.1,
        )
        model = GPT2LMHeadModel(config)
        for p in model.parameters():
            # Biases and gains, too, are to make a difference.
            p.data += 0.05 * torch.randn_like(p)
        out = Path(folder) / name
        shards = {"max_shard_size": "300KB"} if "sharded" in name else {}
        model.to(dtype).save_pretrained(out, **shards)
        ids = torch.randint(0, 503, (40,)).tolist()
        (out / "ids").write_text(",".join(map(str, ids)))


def logits(folder, ids):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(torch.tensor([[int(i) for i in ids.split(",")]])).logits[0, -1]
    print(json.dumps(out.tolist()))


def compare(what, ours, theirs):
    a, b = (torch.tensor(json.loads(Path(p).read_text())) for p in (ours, theirs))
    worst = (a - b).abs().max().item()
    print(f"{what}: {len(a)} logits up to {b.abs().max():.2f}, off by at most {worst:.1e}")
    if not (a.shape == b.shape and worst < 1e-4):
        sys.exit(1)


def generate(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("First Citizen:\n", return_tensors="pt")
    out = model.generate(
        input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=20,
        do_sample=False, pad_token_id=0,
    )
    text = tokenizer.decode(out[0])
    assert text.startswith("First Citizen:\n"), text
    print(f"  generates {text!r}")


def tokens(folder, trainer, text):
    """Our tokens, by the dataset that `trainer prepare` makes of a text."""
    import subprocess
    import tempfile

    import numpy
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = "gpt2" if len(tokenizer) > 50000 else "char"
    with tempfile.TemporaryDirectory() as out:
        words = [trainer, "prepare", text, "--tokenizer", kind, "--out", out + "/d"]
        subprocess.run(words, check=True, capture_output=True)
        parts = [numpy.fromfile(f"{out}/d/{part}.bin", dtype="<u2") for part in ("train", "val")]
    whole = Path(text).read_text()
    cut = int(len(whole) * 0.9)
    for ours, part in zip(parts, (whole[:cut], whole[cut:])):
        theirs = tokenizer(part)["input_ids"]
        assert ours.tolist() == theirs, "tokens differ"
        if kind == "char":
            assert tokenizer.decode(theirs[:1000]) == part[:1000]
    print(f"  {sum(map(len, parts))} tokens of {kind} are equal")


if __name__ == "__main__":
    if sys.argv[1] != "resume":
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    command, *words = sys.argv[1:]
    globals()[command](*words)
