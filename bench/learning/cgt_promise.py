#!/usr/bin/env python3
"""The promise of the Coherence-Gated Transformer, measured: a standard transformer and a CGT of the same width.

Both have 12 layers and see the same windows of the same bytes in the same order, with the same optimiser; the model
is that of the last step, nothing is chosen by the validation text. Two commands, since training wants every core and
measuring wants silence:

  cgt_promise.py train   --out runs --rbar-lm build/release/examples/rbar_lm
                         --text shakespeare=tinyshakespeare.txt --text wiki=wiki.txt --jobs 4 --threads 4 --minutes 9
  cgt_promise.py measure --out runs --latency-pair build/release/bench/peers/latency_pair --threads 1 4
                         --csv promise.csv --svg frontier.svg

Either can be cut short at any time: the same command goes on where it was. `train` stops by itself after --minutes
and then ends with exit code 3.
"""
import argparse
import concurrent.futures
import csv
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time

SIZE = "--n_layers 12 --d_model 256 --n_heads 4 --dropout 0".split()
RECIPE = ("--tokenizer bytes --context 128 --batch 16 --lr 1e-3 --schedule cosine --warmup 100 --min-ratio 0.1 "
          "--clip 1").split()
ROWS = {
    "standard": "--model standard",
    "cgt": "--model cgt",
}
TARGETS = {  # standard / CGT at least, or CGT / standard at most
    "latency, average": ("at least", 5.0),
    "latency, P99": ("at least", 2.0),
    "memory, batch 32": ("at least", 2.5),
    "perplexity": ("at most", 1.05),
}


def say(text):
    print(time.strftime("%H:%M:%S ") + text, file=sys.stderr, flush=True)


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def write_json(path, value):
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    os.replace(path + ".part", path)


# --- train ------------------------------------------------------------------------------------------------


def cut_text(name, source, options):
    """The first bytes of a text, so that its last tenth is not too long to validate on."""
    path = os.path.join(options.out, name + ".txt")
    with open(source, "rb") as file:
        wanted = file.read(options.bytes)
    os.makedirs(options.out, exist_ok=True)
    if os.path.exists(path):
        with open(path, "rb") as file:
            if file.read() != wanted:
                sys.exit(f"{path} is another text than {source}: choose another --out")
    else:
        with open(path + ".part", "wb") as file:
            file.write(wanted)
        os.replace(path + ".part", path)
    return path


class Run:
    """One training run in its own folder."""

    def __init__(self, options, text_name, text, row, seed):
        self.name = f"{text_name}/{row}/{seed}"
        self.folder = os.path.join(options.out, text_name, row, str(seed))
        self.recipe = [*ROWS[row].split(), *SIZE, *RECIPE, *options.extra, "--steps", str(options.steps), "--seed",
                       str(seed), "--text", text]
        self.command = [options.rbar_lm, "train", *self.recipe, "--out", self.folder, "--threads",
                        str(options.threads), "--save-every", str(options.save_every), "--csv",
                        os.path.join(self.folder, "log.csv"), "--quiet", "--json"]
        self.process = None
        known = read_json(os.path.join(self.folder, "recipe.json"))
        if known not in (None, self.recipe):
            sys.exit(f"{self.folder} holds another run: {shlex.join(known)}\nchoose another --out")

    def result(self):
        return read_json(os.path.join(self.folder, "result.json"))

    def progress(self):
        try:
            with open(os.path.join(self.folder, "log.csv"), "rb") as file:
                file.seek(max(0, os.path.getsize(file.name) - 300))
                fields = file.read().decode().rstrip("\n").splitlines()[-1].split(",")
            return f"step {fields[0]}, loss {float(fields[1]):.3f}, {float(fields[4]):.0f} tokens/s"
        except (OSError, IndexError, ValueError):
            return "starts"

    def go(self, deadline, stop):
        if self.result() or stop.is_set() or time.monotonic() > deadline:
            return
        os.makedirs(self.folder, exist_ok=True)
        write_json(os.path.join(self.folder, "recipe.json"), self.recipe)
        command = list(self.command)
        if os.path.exists(os.path.join(self.folder, "checkpoint.safetensors")):
            command.append("--resume")
        begin = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while True:
            try:
                output, errors = self.process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if stop.is_set() or time.monotonic() > deadline:
                    self.process.terminate()
                    self.process.communicate()
                    return
        if self.process.returncode != 0:
            stop.set()
            raise RuntimeError(f"{shlex.join(command)}\n{errors}")
        result = json.loads(output.splitlines()[-1])
        result["command"] = shlex.join(self.command)
        write_json(os.path.join(self.folder, "result.json"), result)
        say(f"{self.name}: {result['val_nats']:.4f} nats a byte, {time.monotonic() - begin:.0f} s")


def train(options):
    texts = {}
    for text in options.text:
        name, _, path = text.partition("=")
        texts[name] = cut_text(name, path or sys.exit(f"--text {text}: expected NAME=FILE"), options)
    # Longest first would be ideal; a standard model costs about the same at every seed and text.
    runs = [Run(options, name, path, row, seed) for seed in options.seeds for row in options.rows
            for name, path in texts.items()]
    deadline = time.monotonic() + 60 * options.minutes if options.minutes > 0 else float("inf")
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        tasks = [pool.submit(run.go, deadline, stop) for run in runs]
        try:
            while not all(task.done() for task in tasks):
                concurrent.futures.wait(tasks, timeout=options.every)
                for run in runs:
                    if run.process and run.process.poll() is None:
                        say(f"{run.name}: {run.progress()}")
        except BaseException:
            stop.set()
            raise
        for task in tasks:
            if task.exception():
                sys.exit(str(task.exception()))

    print("| run | parameters | nats a byte | perplexity | tokens/s | leak |\n|---|---|---|---|---|---|")
    for run in runs:
        result = run.result()
        if result:
            print(f"| {run.name} | {result['parameters']} | {result['val_nats']:.4f} | {result['val_perplexity']:.3f} "
                  f"| {result['tokens_per_s']:.0f} | {result['causality_leak']:.1e} |")
    left = [run.name for run in runs if not run.result()]
    if left:
        print(f"{len(left)} of {len(runs)} runs are not done; the same command goes on: {', '.join(left)}")
        sys.exit(3)


# --- measure ----------------------------------------------------------------------------------------------


def measure_pair(options, text, row, seed, threads):
    folder = os.path.join(options.out, text, row, str(seed))
    path = os.path.join(folder, f"measured_{threads}.json")
    command = [options.latency_pair, os.path.join(options.out, text, "standard", str(seed)), folder,
               os.path.join(options.out, text + ".txt"), f"--threads={threads}", f"--windows={options.windows}",
               f"--rounds={options.rounds}", *options.extra]
    result = None if options.again else read_json(path)
    if result and result["command"] == shlex.join(command):
        return result
    say(f"{text}/{row}/{seed}, {threads} thread(s): measuring")
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)}\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    result.update(command=shlex.join(command), text=text, row=row, seed=seed)
    for model, kind in zip(result["models"], ("standard", row)):
        trained = read_json(os.path.join(options.out, text, kind, str(seed), "result.json"))
        model["trained_by"] = trained["command"] if trained else "unknown"
    write_json(path, result)
    say(f"{text}/{row}/{seed}, {threads} thread(s): {time.monotonic() - begin:.0f} s")
    return result


def figures(result):
    """(what, unit, standard, CGT, ratio): the ratio is above 1 where the CGT is better, but for perplexity."""
    standard, gated = result["models"]
    # The standard model answers by whichever of its two ways is faster.
    ours = min((standard["forward"], standard["prefill"]), key=lambda way: way["mean"])
    theirs = gated["prefill"]
    total = lambda model: model["weight_bytes"] + model["prefill_bytes"]
    rows = [
        ("latency, average", "ms", 1e3 * ours["mean"], 1e3 * theirs["mean"]),
        ("latency, P50", "ms", 1e3 * ours["p50"], 1e3 * theirs["p50"]),
        ("latency, P99", "ms", 1e3 * ours["p99"], 1e3 * theirs["p99"]),
        ("latency, P99 of windows", "ms", 1e3 * ours["p99_of_windows"], 1e3 * theirs["p99_of_windows"]),
        ("forward, average", "ms", 1e3 * standard["forward"]["mean"], 1e3 * gated["forward"]["mean"]),
        ("decode, average", "ms a token", 1e3 * standard["decode"]["mean"], 1e3 * gated["decode"]["mean"]),
        ("batch 32, average", "ms", 1e3 * standard["batch_prefill"]["mean"], 1e3 * gated["batch_prefill"]["mean"]),
        ("memory, batch 32", "MB", 1e-6 * standard["prefill_bytes"], 1e-6 * gated["prefill_bytes"]),
        ("memory with weights", "MB", 1e-6 * total(standard), 1e-6 * total(gated)),
        ("memory, training forward", "MB", 1e-6 * standard["forward_bytes"], 1e-6 * gated["forward_bytes"]),
        ("operations", "MFLOP a token", 1e-6 * standard["flops_per_token"], 1e-6 * gated["flops_per_token"]),
        ("parameters", "million", 1e-6 * standard["parameters"], 1e-6 * gated["parameters"]),
        ("perplexity", "", standard["perplexity"], gated["perplexity"]),
    ]
    return [(what, unit, a, b, b / a if what == "perplexity" else a / b if b else math.nan) for what, unit, a, b in rows]


def verdict(what, ratio):
    if what not in TARGETS:
        return "", ""
    kind, target = TARGETS[what]
    met = ratio >= target if kind == "at least" else ratio <= target
    return f"{kind} {target:g}", "met" if met else f"missed: {ratio:.2f}"


def measure(options):
    pairs = []
    for text in sorted(name for name in os.listdir(options.out) if os.path.isdir(os.path.join(options.out, name))):
        for row in sorted(os.listdir(os.path.join(options.out, text))):
            for seed in sorted(os.listdir(os.path.join(options.out, text, row)), key=int):
                done = os.path.exists(os.path.join(options.out, text, row, seed, "result.json"))
                if row != "standard" and (done or options.unfinished):
                    pairs.append((text, row, int(seed)))
    results = [measure_pair(options, *pair, threads) for threads in options.threads for pair in pairs]
    if not results:
        sys.exit(f"no finished pair in {options.out}")

    print(f"{platform.processor() or platform.machine()}, {results[0]['architecture']}, {results[0]['compiler']}; "
          f"{results[0]['length']} tokens, {options.windows} windows x {options.rounds} rounds, calls in turns")
    table = []
    for text, row, threads in sorted({(r["text"], r["row"], r["threads"]) for r in results}):
        group = [r for r in results if (r["text"], r["row"], r["threads"]) == (text, row, threads)]
        seeds = ", ".join(str(r["seed"]) for r in group)
        print(f"\n{text}, {row}, {threads} thread(s), seeds {seeds}\n\n| | standard | CGT | ratio (each seed) | target | |"
              "\n|---|---|---|---|---|---|")
        for lines in zip(*(figures(r) for r in group)):
            what, unit = lines[0][:2]
            mean = lambda i: statistics.mean(line[i] for line in lines)
            ratios = ", ".join(f"{line[4]:.3f}" for line in lines)
            print(f"| {what}{', ' + unit if unit else ''} | {mean(2):.4g} | {mean(3):.4g} | {mean(4):.3f} ({ratios}) | "
                  + " | ".join(verdict(what, mean(4))) + " |")
            for r, line in zip(group, lines):
                table.append([text, row, r["seed"], threads, *line, *verdict(what, line[4]), r["command"],
                              r["models"][0]["trained_by"], r["models"][1]["trained_by"]])
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "row", "seed", "threads", "what", "unit", "standard", "cgt", "ratio", "target",
                             "verdict", "command", "standard_trained_by", "cgt_trained_by"])
            writer.writerows(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="mode", required=True)
    one = commands.add_parser("train", help="train the pairs, several runs at a time")
    one.add_argument("--rbar-lm", required=True)
    one.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    one.add_argument("--bytes", type=int, default=5_000_000, help="how much of a text is used; its last tenth validates")
    one.add_argument("--steps", type=int, default=2000)
    one.add_argument("--seeds", type=int, nargs="+", default=[1])
    one.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    one.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    one.add_argument("--threads", type=int, default=1, help="threads of one run; the models do not depend on them")
    one.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    one.add_argument("--minutes", type=float, default=0, help="stop after these (0: when all is done)")
    one.add_argument("--every", type=float, default=30, help="seconds between two lines of progress")
    two = commands.add_parser("measure", help="measure what is trained; leave the machine alone meanwhile")
    two.add_argument("--latency-pair", required=True)
    two.add_argument("--threads", type=int, nargs="+", default=[1])
    two.add_argument("--windows", type=int, default=200)
    two.add_argument("--rounds", type=int, default=3)
    two.add_argument("--again", action="store_true", help="measure anew what was measured already")
    two.add_argument("--unfinished", action="store_true", help="take runs that are still at an early checkpoint too")
    two.add_argument("--csv", help="also write every figure here, with its commands")
    two.add_argument("--svg", help="perplexity against latency, as a picture")
    for command in (one, two):
        command.add_argument("--out", required=True, help="folder of the runs")
        command.add_argument("--extra", type=shlex.split, default=[], metavar="'--OPTION VALUE ...'",
                             help="further options of rbar_lm train or of latency_pair")
    options = parser.parse_args()
    train(options) if options.mode == "train" else measure(options)


if __name__ == "__main__":
    main()
