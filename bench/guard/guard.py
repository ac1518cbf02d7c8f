#!/usr/bin/env python3
"""Fails when a kernel has lost a fifth of its speed.

    python3 bench/guard/guard.py --bench build/release/bench            # compares with bounds.json
    python3 bench/guard/guard.py --bench build/release/bench --record   # writes what it measures into bounds.json

Every figure is a ratio taken within one process: a share of the FMA peak or of the copy bandwidth measured between the
runs, or one kernel's time over another's. None is an absolute time, but processors differ in what bounds a kernel, so
bounds are those of a class: the widest SIMD that the benches are built for and the processor's vendor and family. On a
processor of another class the figures are printed and nothing fails. bounds.json has, for each program, benchmark and counter, the
figure of each class on a quiet machine. One that is worse than 80% of it (a `time_ratio` or `over_...` is a ratio of
times: smaller is better) is taken again, up to --rounds times, and the best counts: a busy neighbour must not fail it.
--record takes all figures in every round and writes the medians; it adds a row whose counter is {} there.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

BOUNDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bounds.json")


def class_of(architecture):
    simd = next((name for name in ("avx512", "avx2") if name in architecture), architecture)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            about = dict(line.split("\t: ") for line in file.read().split("\n") if "\t: " in line)
    except OSError:
        about = {}
    return " ".join([simd] + [about[key].strip() for key in ("vendor_id", "cpu family") if key in about])


def left_of(counter, value, bound):
    """The share of the bound's speed that is left."""
    return bound / value if counter == "time_ratio" or counter.startswith("over_") else value / bound


def measure(folder, program, benchmarks):
    """The machine's class and {benchmark: counters}."""
    names = "|".join(re.sub(r"([<>()+])", r"[\1]", name) for name in benchmarks)
    command = [os.path.join(folder, program), "--threads=1", "--benchmark_format=json",
               "--benchmark_filter=^(%s)(/iterations|/manual|/real|$)" % names]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    report = json.loads(output or '{"benchmarks": []}')
    found = {name: run for run in report["benchmarks"] for name in benchmarks
             if (run["name"] + "/").startswith(name + "/")}
    for name in benchmarks:
        if name not in found or "error_message" in found[name]:
            sys.exit("%s: %s: %s" % (program, name, found.get(name, {}).get("error_message", "no such benchmark")))
    return class_of(report["context"]["architecture"]), found


def take(folder, figures, values):
    """Appends to values[figure]; the machine's class. A figure is (program, benchmark, counter)."""
    kind = ""
    for program in dict.fromkeys(figure[0] for figure in figures):
        mine = [figure for figure in figures if figure[0] == program]
        kind, found = measure(folder, program, list(dict.fromkeys(benchmark for _, benchmark, _ in mine)))
        for figure in mine:
            values.setdefault(figure, []).append(found[figure[1]][figure[2]])
    return kind


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/release/bench", help="the built bench directory")
    parser.add_argument("--loss", type=float, default=0.2, help="the share of a figure whose loss is an error")
    parser.add_argument("--rounds", type=int, default=5, help="how often a figure may be taken")
    parser.add_argument("--record", action="store_true", help="write bounds.json")
    parser.add_argument("--programs", action="store_true", help="only print which programs have to be built")
    arguments = parser.parse_args()
    with open(BOUNDS, encoding="utf-8") as file:
        bounds = json.load(file)
    if arguments.programs:
        return print(*bounds)

    start, values, kind = time.monotonic(), {}, ""

    def bound_of(figure):
        program, benchmark, counter = figure
        return bounds[program][benchmark][counter].get(kind)

    def left(figure):  # the best of what was taken
        return max(left_of(figure[2], value, bound_of(figure)) for value in values[figure])

    figures = [(program, benchmark, counter) for program, benchmarks in bounds.items()
               for benchmark, counters in benchmarks.items() for counter in counters]
    lost = figures
    for _ in range(arguments.rounds):
        kind = take(arguments.bench, figures if arguments.record else lost, values)
        lost = [figure for figure in lost if bound_of(figure) and left(figure) < 1 - arguments.loss]
        if not lost and not arguments.record:
            break

    print(kind)
    print("%-15s %-52s %-11s %7s %7s %6s" % ("", "", "", "now", "bound", "left"))
    for figure in figures:
        line, bound = "%-15s %-52s %-11s %7.3f" % (*figure, statistics.median(values[figure])), bound_of(figure)
        mark = "  LOST" if figure in lost else ""
        print(line + (" %7.3f %5.0f%%%s" % (bound, 100 * left(figure), mark) if bound else "  no bound"))
    print("%d figures, %.0f s" % (len(figures), time.monotonic() - start))
    if arguments.record:
        for figure in figures:
            program, benchmark, counter = figure
            bounds[program][benchmark][counter][kind] = float("%.3g" % statistics.median(values[figure]))
        with open(BOUNDS, "w", encoding="utf-8") as file:
            json.dump(bounds, file, indent=2)
            file.write("\n")
    elif lost:
        sys.exit("%d of them lost more than %.0f%%" % (len(lost), 100 * arguments.loss))


if __name__ == "__main__":
    main()
