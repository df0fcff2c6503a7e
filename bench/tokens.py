"""What bench/tokens.sh runs: tokens per second of `trainer prepare` and of tiktoken, in turn.

Ours is the time of the whole process: reading, checking and hashing the text, tokens, writing them
to the disk. tiktoken's is `encode_ordinary_batch` alone, over pieces of a text in memory. Its
vocabulary is built from the tokenizer that the trainer writes, so that nothing is fetched.
"""

import argparse
import array
import json
import os
import statistics
import subprocess
import time

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

PIECE_CHARACTERS = 1 << 18


def encoding(tokenizer):
    """GPT-2's, from a tokenizer.json."""
    vocabulary = json.load(open(tokenizer))["model"]["vocab"]
    # The printable character of each byte, as GPT-2's encoder.py gives them out.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
    ranks = {
        bytes(byte_of[c] for c in token): rank
        for token, rank in vocabulary.items()
        if rank < 50256
    }
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
        explicit_n_vocab=50257,
    )


def pieces(text):
    """The text in pieces that give the tokens of the whole: cut before white space after a word."""
    start = 0
    while start < len(text):
        end = start + PIECE_CHARACTERS
        while end < len(text) and not (text[end].isspace() and not text[end - 1].isspace()):
            end += 1
        yield text[start:end]
        start = end


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    source = f"{options.work}/text.txt"
    out = f"{options.work}/set"
    command = [
        options.trainer, "prepare", source, "--tokenizer=gpt2", f"--out={out}", "--overwrite",
        f"--threads={options.threads}",
    ]  # fmt: skip

    def ours():
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    ours()
    peer = encoding(f"{out}/tokenizer.json")
    text = open(source, encoding="utf-8", newline="").read()
    # The parts that `prepare` makes: each is encoded by itself.
    split = int(len(text) * 0.9)
    parts = [list(pieces(part)) for part in (text[:split], text[split:])]

    def theirs():
        start = time.perf_counter()
        batch = parts[0] + parts[1]
        ids = peer.encode_ordinary_batch(batch, num_threads=options.threads)
        return time.perf_counter() - start, ids

    _, ids = theirs()
    counts = [len(parts[0]), len(parts[1])]
    for name, first, count in (("train", 0, counts[0]), ("val", counts[0], counts[1])):
        expected = array.array("H", (id for piece in ids[first : first + count] for id in piece))
        got = array.array("H")
        got.frombytes(open(f"{out}/{name}.bin", "rb").read())
        assert got == expected, f"{name}.bin: other tokens than tiktoken's"
    tokens = sum(map(len, ids))
    del ids
    size = os.path.getsize(source)
    print(f"{size / 1e6:.1f} MB, {tokens:,} tokens, the same from both; {options.threads} threads")
    print(f"load {os.getloadavg()[0]:.1f}, tiktoken {tiktoken.__version__}")
    rates = {"ours": [], "tiktoken": []}
    for _ in range(options.rounds):
        rates["ours"].append(tokens / ours())
        rates["tiktoken"].append(tokens / theirs()[0])
    for name, all in rates.items():
        low, high = min(all) / 1e6, max(all) / 1e6
        median = statistics.median(all) / 1e6
        print(f"{name:9} {median:7.2f} million tokens/s ({low:.2f} to {high:.2f})")
    ratios = [a / b for a, b in zip(rates["ours"], rates["tiktoken"])]
    print(f"ours/tiktoken {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


main()
