"""Reads what `cpu.sh` collected and prints the table: one row a shape.

A line of the file is {"shape", "tokens", "round", "peer": {...}, "compiled": {...} or null,
"ours": {...}}, the objects as the programs printed them. Fails if a program did not process the tokens that the shape has.
"""

import json
import statistics
import sys


def summarise(rows):
    """One row of the table from all rounds of a shape."""
    for row in rows:
        for side in ("peer", "compiled", "ours"):
            figures = row[side]
            if figures is None:
                continue
            tokens = figures["tokens_per_second"] * figures["ms_per_iteration"] / 1e3
            # Two ways of averaging may differ; an accumulation or a batch of another size does so
            # by a factor of two at least.
            if not row["tokens"] / 1.5 < tokens < row["tokens"] * 1.5:
                sys.exit(
                    f"{row['shape']}: {side} processed {tokens:.0f} tokens an iteration, "
                    f"expected {row['tokens']}"
                )
    peer = [row["peer"]["ms_per_iteration"] for row in rows]
    ours = [row["ours"]["ms_per_iteration"] for row in rows]
    ratios = [b / a for a, b in zip(peer, ours, strict=True)]
    compiled = [row["compiled"]["ms_per_iteration"] for row in rows if row["compiled"]]
    compiled_ratios = [b / a for a, b in zip(compiled, ours)]
    return {
        "compiled_ms": statistics.median(compiled) if compiled else None,
        "compiled_ratio": statistics.median(compiled_ratios) if compiled else None,
        "shape": rows[0]["shape"],
        "engine": rows[0]["ours"].get("engine", ""),
        "rounds": len(rows),
        "peer_ms": statistics.median(peer),
        "ours_ms": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "peer_rss_mib": max(row["peer"]["peak_rss_mib"] for row in rows),
        "ours_rss_mib": max(row["ours"]["peak_rss_mib"] for row in rows),
    }


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    table = [summarise([row for row in rows if row["shape"] == shape]) for shape in shapes]
    print("| shape | engine | rounds | peer ms | ours ms | ours/peer (range) | peer MiB | ours MiB "
          "| compiled ms | ours/compiled |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for s in table:
        print(
            f"| {s['shape']} | {s['engine']} | {s['rounds']} | {s['peer_ms']:.2f} | {s['ours_ms']:.2f} "
            f"| {s['ratio']:.2f} ({s['ratio_min']:.2f}-{s['ratio_max']:.2f}) "
            f"| {s['peer_rss_mib']:.0f} | {s['ours_rss_mib']:.0f} "
            + (f"| {s['compiled_ms']:.2f} | {s['compiled_ratio']:.2f} |" if s["compiled_ms"] else "| | |")
        )


if __name__ == "__main__":
    main()
