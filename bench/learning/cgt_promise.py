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
import html
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
    "standard_grouped": "--model standard --n_kv_heads 1",
    "cgt": "--model cgt --n_kv_heads 1",
    "cgt_70": "--model cgt --n_kv_heads 1 --share_reflex 0.7 --share_standard 0.19 --share_deep 0.1",
    "cgt_80": "--model cgt --n_kv_heads 1 --share_reflex 0.8 --share_standard 0.12 --share_deep 0.07",
    "cgt_90": "--model cgt --n_kv_heads 1 --share_reflex 0.9 --share_standard 0.06 --share_deep 0.03",
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
        if row not in ROWS:
            sys.exit(f"no row {row}; there are {', '.join(ROWS)}")
        self.name = f"{text_name}/{row}/{seed}"
        self.folder = os.path.join(options.out, text_name, row, str(seed))
        words = [*SIZE, *RECIPE, *ROWS[row].split(), *options.extra]
        settings = dict(zip(words[::2], words[1::2]))  # what comes later wins
        self.recipe = [*(word for pair in settings.items() for word in pair), "--steps", str(options.steps), "--seed",
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
    for row in options.row:
        name, _, ROWS[name] = row.partition("=")
        options.rows.append(name)
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
    """(what, unit, standard, other, ratio): the ratio is above 1 where the other is better, but for perplexity."""
    standard, other = result["models"]
    # The standard model answers by whichever of its two ways is faster; a CGT's answers are verified.
    ours = min((standard["forward"], standard["answer"]), key=lambda way: way["mean"])
    theirs = other["answer"]
    total = lambda model: model["weight_bytes"] + model["answer_bytes"]
    rows = [
        ("latency, average", "ms", 1e3 * ours["mean"], 1e3 * theirs["mean"]),
        ("latency, P50", "ms", 1e3 * ours["p50"], 1e3 * theirs["p50"]),
        ("latency, P99", "ms", 1e3 * ours["p99"], 1e3 * theirs["p99"]),
        ("latency, P99 of windows", "ms", 1e3 * ours["p99_of_windows"], 1e3 * theirs["p99_of_windows"]),
        ("not verified, average", "ms", 1e3 * standard["prefill"]["mean"], 1e3 * other["prefill"]["mean"]),
        ("training forward, average", "ms", 1e3 * standard["forward"]["mean"], 1e3 * other["forward"]["mean"]),
        ("decode, average", "ms a token", 1e3 * standard["decode"]["mean"], 1e3 * other["decode"]["mean"]),
        ("batch 32, average", "ms", 1e3 * standard["batch_answer"]["mean"], 1e3 * other["batch_answer"]["mean"]),
        ("memory, batch 32", "MB", 1e-6 * standard["answer_bytes"], 1e-6 * other["answer_bytes"]),
        ("memory with weights", "MB", 1e-6 * total(standard), 1e-6 * total(other)),
        ("memory, training forward", "MB", 1e-6 * standard["forward_bytes"], 1e-6 * other["forward_bytes"]),
        ("operations", "MFLOP a token", 1e-6 * standard["flops_per_token"], 1e-6 * other["flops_per_token"]),
        ("parameters", "million", 1e-6 * standard["parameters"], 1e-6 * other["parameters"]),
        ("perplexity", "", standard["perplexity"], other["perplexity"]),
    ]
    return [(what, unit, a, b, b / a if what == "perplexity" else a / b) for what, unit, a, b in rows]


def faster(point):
    return point["standard_answer"]["mean"] / point["answer"]["mean"]


def relative_perplexity(point):
    """On the tokens that the CGT emits."""
    return point["perplexity"] / point["standard_perplexity"]


def print_pressure(results):
    """Where the tokens went and what that did, mean over the seeds."""
    points = list(zip(*(r["models"][1].get("verified", []) for r in results)))
    if not points:
        return
    print("\n| pressure | times faster | perplexity, relative | reflex | standard | deep | escalate | layers | "
          "escalated by verification | refused | energy, mean | P99 | largest | bound |\n" + "|---" * 14 + "|")
    for group in points:
        mean = lambda value: statistics.mean(value(point) for point in group)
        lanes = " | ".join(f"{mean(lambda p: p['lanes'][lane]):.3f}" for lane in group[0]["lanes"])
        print(f"| {group[0]['pressure']:g} | {mean(faster):.2f} | {mean(relative_perplexity):.4f} | {lanes} | "
              f"{mean(lambda p: p['layers_used']):.2f} | {mean(lambda p: p['escalated_by_verification']):.4f} | "
              f"{mean(lambda p: p['refused']):.4f} | {mean(lambda p: p['energy']['mean']):.3f} | "
              f"{mean(lambda p: p['energy']['p99']):.3f} | {mean(lambda p: p['energy']['largest']):.3f} | "
              f"{mean(lambda p: p['energy_bound']):.3f} |")


def verdict(what, ratio):
    if what not in TARGETS:
        return "", ""
    kind, target = TARGETS[what]
    met = ratio >= target if kind == "at least" else ratio <= target
    return f"{kind} {target:g}", "met" if met else f"missed: {ratio:.2f}"


def frontier(results):
    """SVG: perplexity over speed, each relative to the standard model's, one panel a text; a line is one model under
    rising pressure, the shaded corner is what was promised."""
    panels = sorted({(r["text"], r["threads"]) for r in results})
    curves = {panel: [(r, [(faster(p), relative_perplexity(p), p["pressure"]) for p in r["models"][1]["verified"]])
                      for r in results if (r["text"], r["threads"]) == panel and "verified" in r["models"][1]]
              for panel in panels}
    points = [point for panel in panels for _, curve in curves[panel] for point in curve]
    right = max([6.0] + [1.05 * x for x, _, _ in points])
    low = min([0.98] + [y - 0.01 for _, y, _ in points])
    high = max([1.1] + [y + 0.01 for _, y, _ in points])
    width, height, left, top = 440, 300, 56, 40
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
    names = sorted({r["row"] for panel in panels for r, _ in curves[panel]})
    colour_of = {name: colours[i % len(colours)] for i, name in enumerate(names)}
    text = lambda x, y, words, more="": f'<text x="{x:.1f}" y="{y:.1f}" {more}>{html.escape(words)}</text>'
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{(width + 90) * len(panels) + 30}" height="{height + 122}" '
           'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>']
    for i, panel in enumerate(panels):
        x_of = lambda x: left + i * (width + 90) + width * x / right
        y_of = lambda y: top + height * (high - y) / (high - low)
        begin, end = x_of(0), x_of(right)
        svg.append(text(begin, 16, f"{panel[0]}, {panel[1]} thread(s)", 'font-weight="bold"'))
        svg.append(text(begin, 32, "perplexity, relative to the standard model's on the tokens emitted", 'fill="#555"'))
        svg.append(f'<rect x="{x_of(5):.1f}" y="{y_of(1.05):.1f}" width="{end - x_of(5):.1f}" '
                   f'height="{top + height - y_of(1.05):.1f}" fill="#e3f2e3"/>')
        step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 5) if (high - low) / step <= 8 or step == 5)
        for k in range(math.ceil(low / step), math.floor(high / step) + 1):
            y = k * step
            svg.append(f'<path d="M{begin:.1f} {y_of(y):.1f}H{end:.1f}" stroke="#ddd"/>')
            svg.append(text(begin - 6, y_of(y) + 4, f"{y:.2f}", 'text-anchor="end"'))
        svg.append(f'<path d="M{begin:.1f} {top}V{top + height}H{end:.1f}" fill="none" stroke="black"/>')
        for x in range(0, int(right) + 1, max(1, round(right / 8))):
            svg.append(text(x_of(x), top + height + 16, str(x), 'text-anchor="middle"'))
        svg.append(text(begin + width / 2, top + height + 34, "times faster than the standard model",
                        'text-anchor="middle"'))
        svg.append(f'<rect x="{x_of(1) - 4:.1f}" y="{y_of(1) - 4:.1f}" width="8" height="8"/>')
        svg.append(text(x_of(1) + 8, y_of(1) + 4, "standard"))
        for result, curve in curves[panel]:
            colour = colour_of[result["row"]]
            line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y, _ in curve)
            svg.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
            for x, y, pressure in curve:
                words = html.escape(f"{result['row']}, seed {result['seed']}, pressure {pressure:g}: {x:.2f} times "
                                    f"faster, perplexity {y:.3f}")
                svg.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="{5 if pressure == 0 else 3}" '
                           f'fill="{colour}"><title>{words}</title></circle>')
        for k, name in enumerate(names):
            svg.append(text(begin + k * width / len(names), top + height + 54, name, f'fill="{colour_of[name]}"'))
    svg.append(text(left, top + height + 74, "a line: one model under rising pressure, from its large dot on; shaded: "
                    "the promise", 'fill="#555"'))
    return "\n".join(svg) + "\n</svg>\n"


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
        print_pressure(group)
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(frontier(results))
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
    one.add_argument("--rows", nargs="+", default=["standard", "cgt", "cgt_80"], help="of " + ", ".join(ROWS))
    one.add_argument("--row", action="append", default=[], metavar="NAME='--model ...'", help="a row of your own")
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
