#!/usr/bin/env python3
"""PyTorch's side of compare.py: makes a row's ways (torch_layers.py, torch_models.py), compares their outputs with
rbar's and times them. A way whose outputs differ is never timed.

Commands on the standard input and answers, one line each, are those of row.hpp. The one argument is the number of
threads.
"""
import json
import math
import statistics
import sys
import time

import torch

from torch_layers import (Folder, coherence, coupled_to_all, coupled_to_earlier, dot, gemm, kuramoto, phase, sheaf,
                          ssm)
from torch_models import model_forward, model_training

# Largest allowed difference from rbar's outputs, of the largest number of the output: fp32 sums in two orders.
ROWS = {"dot": (dot, 1e-4), "sheaf": (sheaf, 1e-4), "coherence": (coherence, 1e-5),
        "kuramoto_all": (coupled_to_all(kuramoto), 1e-3), "kuramoto_prefix": (coupled_to_earlier(kuramoto), 1e-3),
        "phase_all": (coupled_to_all(phase), 1e-3), "phase_prefix": (coupled_to_earlier(phase), 1e-3),
        "standard_forward": (model_forward(False), 1e-4), "standard_training": (model_training(False), 1e-3),
        "cort_forward": (model_forward(True), 1e-4), "cort_training": (model_training(True), 1e-3),
        "gemm": (gemm, 1e-4), "gemm_packed": (gemm, 1e-4), "ssm_forward": (ssm(False), 1e-4),
        "ssm_training": (ssm(True), 2e-3), "ssm_double": (ssm(True), 1e-10)}


def worst_difference(folder, outputs):
    """Of an output's largest number, and the output's name. A NaN counts as infinite, zeros may be nothing but zeros."""
    worst = (0.0, "")
    for name, tensor in outputs.items():
        difference = float((tensor - folder(name, *tensor.shape)).abs().max())
        if difference != 0:
            relative = difference / max(float(tensor.abs().max()), 1e-300)
            worst = max(worst, (relative if relative == relative else math.inf, name))
    return worst


def prepare(row, path):
    family, *sizes = row
    make, tolerance = ROWS[family]
    folder = Folder(path, torch.float64 if family.endswith("double") else torch.float32)
    ways, differences = make(folder, *map(int, sizes)), {}
    for name, way in ways.items():
        outputs = way()
        if callable(outputs):
            outputs = outputs()
        differences[name], output = worst_difference(folder, outputs)
        if not differences[name] <= tolerance:
            sys.exit("%s: %s of %s differs by %.1e of the largest" % (" ".join(row), output, name, differences[name]))
    return ways, differences


def median_seconds(way, budget):
    time.sleep(0.02)  # rbar's threads fall asleep
    seconds, begin = [], time.perf_counter()
    while not seconds or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main():
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"name": "PyTorch " + torch.__version__}), flush=True)
    ways = {}
    for line in sys.stdin:
        command, *words = line.split()
        if command == "prepare":
            ways.clear()
            *row, path = words
            ways, differences = prepare(row, path)
            print(json.dumps({"ways": differences}), flush=True)
        else:
            print(json.dumps({"seconds": median_seconds(ways[" ".join(words[:-1])], float(words[-1]))}), flush=True)


if __name__ == "__main__":
    main()
