#!/usr/bin/env python3
"""rbar against PyTorch and oneDNN on the same numbers: one table, CSV and SVG.

    python3 bench/peers/compare.py --bench build/release/bench --csv peers.csv --svg peers.svg

A row is one of rbar's programs (time_*.cpp: what the row computes stands there) against one way to compute the same
with a peer (torch_layers.py, torch_models.py). Both sides run as one process each a number of threads, read the same
inputs and must agree on the outputs, gradients and losses before they are timed (`diff`: of the largest number); then
they take turns (rbar, peer, rbar, peer ...), so that a change of the clock or of the load meets both, and medians
count. Whose turn it is not is stopped: OpenBLAS lets its threads spin for a tenth of a second after their work.

`peak` is a side's share of the FMA peak that rbar's program measures between its runs, over the floating-point
operations that the row needs: what a peer computes beyond that counts as time only. A row's target is a ratio of 1;
1.5 where the peer is below 55% of the peak; 10 for the coherence, for the Kuramoto dynamics and for sheaf attention
of 4096 tokens against PyTorch's eager `cdist`. It needs a built bench directory and a Python that has torch. A
PyTorch on the system's BLAS (Debian's) runs on OpenBLAS where that is there, best on the one for OpenMP, whose threads
are then PyTorch's own: with two pools of them, two threads were up to four times slower than one.
"""
import argparse
import atexit
import csv
import glob
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from ratio_chart import ratio_chart

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = {"time_attention": ("dot", "sheaf"),
            "time_oscillators": ("coherence", "kuramoto_all", "kuramoto_prefix", "phase_all", "phase_prefix"),
            "time_models": ("standard_forward", "standard_training", "cort_forward", "cort_training"),
            "time_gemm": ("gemm", "gemm_packed"), "time_ssm": ("ssm_forward", "ssm_training", "ssm_double")}
PROGRAM_OF = {family: program for program, families in PROGRAMS.items() for family in families}
ROWS = {
    "dot 1024 1": "attention, causal, T=1024",
    "dot 4096 1": "attention, causal, T=4096",
    "dot 1024 0": "attention, full, T=1024",
    "sheaf 1024 1": "sheaf attention, causal, T=1024",
    "sheaf 4096 1": "sheaf attention, causal, T=4096",
    "sheaf 4096 0": "sheaf attention, full, T=4096",
    "coherence 8 1024 512": "token coherence, 8x1024x512",
    "kuramoto_all 256 2": "Kuramoto steps, T=256, 2 heads, training",
    "kuramoto_all 4096 12": "Kuramoto steps, T=4096, 12 heads, training",
    "kuramoto_prefix 4096 12": "Kuramoto steps, causal, T=4096, training",
    "phase_prefix 4096 12": "phase attention, causal, T=4096, training",
    "ssm_forward 1 512 256": "Mamba block, T=512, d=256",
    "ssm_training 1 512 256": "Mamba block, T=512, d=256, training",
    "standard_forward 6 1 128": "transformer, 6 layers, 128 tokens",
    "standard_forward 12 1 128": "transformer, 12 layers, 128 tokens",
    "standard_training 6 8 128": "transformer, 6 layers, training 8x128",
    "standard_training 12 8 128": "transformer, 12 layers, training 8x128",
    "cort_forward 6 1 128": "CoRT as published, 6 layers, 128 tokens",
    "cort_training 6 8 128": "CoRT as published, 6 layers, training 8x128",
    "gemm 1 2048 512": "dense layer 512 to 2048, 1 token",
    "gemm 128 2048 512": "dense layer 512 to 2048, 128 tokens",
    "gemm 1024 2048 512": "dense layer 512 to 2048, 1024 tokens",
    "gemm_packed 1 2048 512": "dense layer, weights packed, 1 token",
    "gemm_packed 128 2048 512": "dense layer, weights packed, 128 tokens",
}
# Only compared, in double: output, gradients and stream to rounding.
CHECKS = ["ssm_double 2 1 24", "ssm_double 2 67 40"]


def target_of(row, way, peer_share):
    family, tokens = row.split()[:2]
    if family == "coherence" or family.startswith("kuramoto"):
        return 10.0
    if family == "sheaf" and tokens == "4096" and way == "cdist":
        return 10.0
    return 1.5 if peer_share < 0.55 else 1.0


def system_blas(python):
    """Folder of the libblas.so.3 to use if this PyTorch loads the system's, else none."""
    show = subprocess.run([python, "-c", "import torch; print(torch.__config__.show())"], capture_output=True,
                          text=True, check=True).stdout
    found = glob.glob("/usr/lib/*/*/libblas.so.3") if "BLAS_INFO=generic" in show else []
    return os.path.dirname(max(found, key=lambda path: ("openblas" in path, "openmp" in path, path))) if found else None


class Side:
    """A process that prepares and times rows (row.hpp has the commands); stopped but while it answers."""

    def __init__(self, command, threads, blas=None):
        count = str(threads)
        environment = dict(os.environ, OMP_NUM_THREADS=count, OPENBLAS_NUM_THREADS=count, MKL_NUM_THREADS=count)
        if blas:
            environment["LD_LIBRARY_PATH"] = blas + ":" + environment.get("LD_LIBRARY_PATH", "")
        self.command = command
        self.process = subprocess.Popen([*command, count], env=environment, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1)
        atexit.register(self.process.kill)  # a stopped process does not see that its input has ended
        self.name = self.answer()["name"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("%s ended with status %s" % (shlex.join(self.command), self.process.wait()))
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def ask(self, *words):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.send_signal(signal.SIGCONT)
        self.process.wait()


def prepare(ours, torch, row):
    """Floating-point operations and the peers' ways: [(name, side, way, difference)]."""
    with tempfile.TemporaryDirectory() as folder:
        mine = ours.ask("prepare", row, folder)
        theirs = torch.ask("prepare", row, folder)["ways"]
    for way, difference in mine["peers"].items():
        if not difference <= 1e-4:
            sys.exit("%s: %s differs by %.1e of the largest" % (row, way, difference))
    return mine["flops"], ([("PyTorch, " + way, torch, way, difference) for way, difference in theirs.items()] +
                           [(way, ours, way, difference) for way, difference in mine["peers"].items()])


def time_row(ours, peers, arguments):
    """Median seconds of rbar and of each peer, and the largest FMA peak met."""
    begin, seconds, peak = time.monotonic(), [[] for _ in range(len(peers) + 1)], 0.0

    def enough(turns, elapsed):
        """Three turns at least, but only two of those that take seconds."""
        return turns >= 2 and elapsed > 3 or turns >= 3 and elapsed > arguments.seconds or turns >= 15

    while not enough(len(seconds[0]), time.monotonic() - begin):
        for i, (side, way) in enumerate([(ours, "rbar")] + [(side, way) for _, side, way, _ in peers]):
            answer = side.ask("time", way, arguments.slice)
            seconds[i].append(answer["seconds"])
            peak = max(peak, answer.get("fma_peak", 0.0))
    return [statistics.median(times) for times in seconds], peak


COLUMNS = ["row", "threads", "peer", "rbar_seconds", "peer_seconds", "ratio", "target", "met", "rbar_peak_share",
           "peer_peak_share", "fma_peak", "difference"]


def show(result):
    print("%-44s %7d  %-32s %9.3f %9.3f %5.0f%% %5.0f%% %7.2f %6g  %-5s %7s" % (
        result["row"], result["threads"], result["peer"], result["rbar_seconds"] * 1e3, result["peer_seconds"] * 1e3,
        100 * result["rbar_peak_share"], 100 * result["peer_peak_share"], result["ratio"], result["target"],
        "yes" if result["met"] else "BEHIND" if result["ratio"] < 1 else "no", "%.0e" % result["difference"]),
          flush=True)


def compare(arguments):
    rows = [row for row in (arguments.row or ROWS) if re.search(arguments.filter, row + " " + ROWS.get(row, ""))]
    blas = system_blas(arguments.python)
    used = {PROGRAM_OF[row.split()[0]] for row in rows}
    checks = [check for check in CHECKS if PROGRAM_OF[check.split()[0]] in used]
    results, names = [], {}
    for threads in arguments.threads:
        torch = Side([arguments.python, os.path.join(HERE, "torch_rows.py")], threads, blas)
        programs = {}
        for row in ([] if results else checks) + rows:
            program = PROGRAM_OF[row.split()[0]]
            if program not in programs:
                programs[program] = Side([os.path.join(arguments.bench, "peers", program)], threads)
            ours = programs[program]
            flops, peers = prepare(ours, torch, row)
            if row in CHECKS:
                continue
            if not names:
                names = {"rbar": ours.name, "peer": torch.name + (", " + os.path.basename(blas) if blas else "")}
                print("%(rbar)s; %(peer)s" % names)
                print("%-44s %7s  %-32s %9s %9s %6s %6s %7s %6s  %-6s %6s" % (
                    "", "threads", "peer", "rbar, ms", "peer, ms", "peak", "peak", "ratio", "target", "met", "diff"))
            (mine, *theirs), peak = time_row(ours, peers, arguments)
            for (name, _, way, difference), taken in zip(peers, theirs):
                share = flops / taken / peak
                target = target_of(row, way, share)
                result = dict(zip(COLUMNS, (ROWS.get(row, row), threads, name, mine, taken, taken / mine, target,
                                            taken / mine >= target, flops / mine / peak, share, peak, difference)))
                results.append(result)
                show(result)
        for side in (torch, *programs.values()):
            side.close()
    return results, names


def main():
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/release/bench", help="the built bench directory")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, cores), cores}))
    parser.add_argument("--filter", default="", help="only rows that match this regular expression")
    parser.add_argument("--row", nargs="+", help="these rows instead, such as 'sheaf 8192 1' (time_*.cpp)")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a row goes on")
    parser.add_argument("--slice", type=float, default=0.1, help="how long one side's turn is, at least one run")
    parser.add_argument("--csv", help="write every row here")
    parser.add_argument("--svg", help="draw the ratios here")
    arguments = parser.parse_args()
    results, names = compare(arguments)
    print("%d of %d rows reach their target, %d are behind" % (
        sum(r["met"] for r in results), len(results), sum(r["ratio"] < 1 for r in results)))
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS + ["rbar", "peer_version", "command"])
            for result in results:
                writer.writerow([*result.values(), names["rbar"], names["peer"], shlex.join(sys.argv)])
    if arguments.svg and results:
        groups = {}
        for r in results:
            label = r["row"] + ", " + r["peer"].replace("PyTorch, ", "")
            target, bars = groups.setdefault(label, (r["target"], []))
            groups[label] = (max(target, r["target"]), bars)
            bars.append(("%d thread%s" % (r["threads"], "" if r["threads"] == 1 else "s"), r["ratio"], r["met"]))
        with open(arguments.svg, "w", encoding="utf-8") as file:
            file.write(ratio_chart("The peer's time over rbar's: " + names["peer"],
                                   [(label, target, bars) for label, (target, bars) in groups.items()],
                                   "black: target; red: behind, or its outline: target missed"))


if __name__ == "__main__":
    main()
