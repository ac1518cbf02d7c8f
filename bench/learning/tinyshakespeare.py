#!/usr/bin/env python3
"""What a model learns from tiny Shakespeare: standard, CoRT causal at several shares, CoRT reference (leaky).

Every run: characters, first 90% train, last 10% validation (whole, in consecutive windows), 4 layers, d=128,
4 heads, context 128, 16 random windows a step, AdamW 1e-3 constant, betas .9/.95, decay .1 on all parameters,
clip 1, no dropout. All models of one seed see the same windows in the same order.

  tinyshakespeare.py --rbar-lm build/release/examples/rbar_lm --text tinyshakespeare.txt [--jobs 2] [--csv FILE]
"""
import argparse
import concurrent.futures
import csv
import json
import platform
import statistics
import subprocess
import sys

COMMON = ("--tokenizer chars --context 128 --batch 16 --lr 1e-3 --schedule constant --warmup 0 --decay all "
          "--n_layers 4 --d_model 128 --n_heads 4 --dropout 0").split()
ROWS = {
    "standard": "--model standard",
    "standard, package init": "--model standard --init cort_package",
    "CoRT causal .05": "--model cort --route_frac 0.05",
    "CoRT causal .15": "--model cort --route_frac 0.15",
    "CoRT causal .3": "--model cort --route_frac 0.3",
    "CoRT causal .5": "--model cort --route_frac 0.5",
    "CoRT causal 1": "--model cort --route_frac 1",
    "CoRT causal .15, routed keys": "--model cort --route_frac 0.15 --key_values routed",
    "CoRT causal .3, routed keys": "--model cort --route_frac 0.3 --key_values routed",
    "CoRT reference .15 (leaky)": "--model cort --route_frac 0.15 --causality reference --init cort_package",
}


def train(options, row, seed):
    command = [options.rbar_lm, "train", *ROWS[row].split(), *COMMON, "--steps", str(options.steps), "--text",
               options.text, "--seed", str(seed), "--threads", str(options.threads), "--quiet", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    result["command"] = " ".join(command)
    print(f"{row}, seed {seed}: {result['val_nats']:.4f} nats", file=sys.stderr, flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rbar-lm", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; tokens/s suffer from more than 1")
    parser.add_argument("--threads", type=int, default=1, help="threads of one run")
    parser.add_argument("--csv", help="also write every run here")
    options = parser.parse_args()

    tasks = [(row, seed) for seed in options.seeds for row in options.rows]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(tasks, pool.map(lambda task: train(options, *task), tasks)))

    print(f"{platform.processor() or platform.machine()}, {options.jobs} runs at a time, {options.threads} thread(s) "
          f"each, {options.steps} steps, seeds {options.seeds}")
    print("| model | nats a character (each seed) | mean | bits | attention share | MFLOP a token | tokens/s | leak |")
    print("|---|---|---|---|---|---|---|---|")
    for row in options.rows:
        runs = [results[row, seed] for seed in options.seeds]
        nats = [run["val_nats"] for run in runs]
        mean = lambda name: statistics.mean(run[name] for run in runs)
        print(f"| {row} | {', '.join(f'{n:.4f}' for n in nats)} | {statistics.mean(nats):.4f} | {mean('val_bpc'):.4f} "
              f"| {mean('attention_share'):.3f} | {mean('flops_per_token') / 1e6:.3f} | {mean('tokens_per_s'):.0f} "
              f"| {max(run['causality_leak'] for run in runs):.1e} |")
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "seed", "nats", "bits", "attention_share", "flops_per_token", "tokens_per_s",
                             "leak", "command"])
            for (row, seed), run in results.items():
                writer.writerow([row, seed, run["val_nats"], run["val_bpc"], run["attention_share"],
                                 run["flops_per_token"], run["tokens_per_s"], run["causality_leak"], run["command"]])


if __name__ == "__main__":
    main()
