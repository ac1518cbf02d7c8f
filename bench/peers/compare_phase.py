#!/usr/bin/env python3
"""PhaseAttention of rbar and of PyTorch's eager mode on the same numbers, forward and backward, in one table.

    theta = pi tanh(W x + b), ten Kuramoto steps of dt = 0.1 over the tokens, y = W_o theta + b_o       (batch 1)

PyTorch in three ways. `pairs` is the published formulation: the phase differences of all pairs of tokens as a tensor
[batch, heads, tokens, tokens, oscillators], its sine, the mean; all tokens repel each other, the future included.
`mean field` gives the same numbers from C, S = mean cos, mean sin, which PyTorch could do as well. `prefix means` is
that, causal and attracting: rbar's default. Each is compared with rbar's layer of the same coupling. Every run is a
process of its own, runs alternate, and `GB` is the most memory that process had.

Outputs and all gradients must agree, or it stops there and then, without their row and without a file. Raw angles
jump by a turn at +-pi, where rounding decides: whole turns between the two sides (the table counts them) and what they
make of y and of W_o's gradient are taken out.

`pairs` needs about 12 tensors of tokens^2 * heads * oscillators numbers. Where that is more than --memory of what is
free, both sides get fewer heads (the table says how many), and below one head it is left out.

    python3 bench/peers/compare_phase.py --rbar build/release/bench/peers/time_phase --csv phase.csv
"""
import argparse
import array
import csv
import json
import math
import os
import random
import resource
import shlex
import statistics
import sys
import tempfile
import time

from compare_training import run, system_blas

D_MODEL, OSCILLATORS, STEPS, DT = 768, 32, 10, 0.1
WAYS = {"pairs": "pairs", "mean field": "pairs", "prefix means": "prefix"}  # -> rbar's coupling
TOLERANCE = 1e-3  # of the largest entry: sums over tokens^2 rounded in two different orders


def shapes(heads):
    width = heads * OSCILLATORS
    return {"to_phase.weight": (width, D_MODEL), "to_phase.bias": (width,), "natural_freq": (heads, OSCILLATORS),
            "coupling_matrix": (heads,), "from_phase.weight": (D_MODEL, width), "from_phase.bias": (D_MODEL,)}


def write_inputs(folder, tokens, heads):
    """Inputs, an output's gradient and parameters as raw fp32, the same on every machine."""
    generator = random.Random(1)
    sizes = {"x": (tokens, D_MODEL), "dy": (tokens, D_MODEL), **shapes(heads)}
    deviations = {"to_phase.weight": 0.04, "natural_freq": 0.1, "from_phase.weight": 0.04}
    for name, shape in sizes.items():
        noise = array.array("f", (generator.gauss(0, deviations.get(name, 1)) for _ in range(65537)))
        if name == "coupling_matrix":
            noise = array.array("f", (0.5 + abs(value) for value in noise))
        count = math.prod(shape)
        noise *= count // len(noise) + 1  # they repeat, no two rows alike
        with open(os.path.join(folder, name + ".f32"), "wb") as file:
            noise[:count].tofile(file)


def time_torch(folder, way, tokens, heads, threads, budget):
    import torch

    torch.set_num_threads(threads)

    def read(name, *shape):
        with open(os.path.join(folder, name + ".f32"), "rb") as file:
            return torch.frombuffer(bytearray(file.read()), dtype=torch.float32).view(*shape)

    x, dy = read("x", 1, tokens, D_MODEL).requires_grad_(), read("dy", 1, tokens, D_MODEL)
    weights = {name: read(name, *shape).requires_grad_() for name, shape in shapes(heads).items()}
    frequency = weights["natural_freq"].unsqueeze(1)       # [H, 1, N]
    strength = weights["coupling_matrix"].view(-1, 1, 1)

    def pairs(theta):
        return torch.sin(theta.unsqueeze(3) - theta.unsqueeze(2)).mean(3)  # over j of sin(theta_i - theta_j)

    def mean_field(theta):
        cosine, sine = torch.cos(theta), torch.sin(theta)
        return sine * cosine.mean(2, keepdim=True) - cosine * sine.mean(2, keepdim=True)

    count = torch.arange(1, tokens + 1, dtype=torch.float32).view(-1, 1)

    def prefix_means(theta):
        cosine, sine = torch.cos(theta), torch.sin(theta)
        return cosine * (sine.cumsum(2) / count) - sine * (cosine.cumsum(2) / count)

    coupling = {"pairs": pairs, "mean field": mean_field, "prefix means": prefix_means}[way]

    def forward_and_backward():
        for tensor in (x, *weights.values()):
            tensor.grad = None
        theta = math.pi * torch.tanh(torch.nn.functional.linear(x, weights["to_phase.weight"], weights["to_phase.bias"]))
        theta = theta.view(1, tokens, heads, OSCILLATORS).transpose(1, 2)
        for _ in range(STEPS):
            theta = theta + DT * (frequency + strength * coupling(theta))
            theta = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        theta = theta.transpose(1, 2).reshape(1, tokens, heads * OSCILLATORS)
        y = torch.nn.functional.linear(theta, weights["from_phase.weight"], weights["from_phase.bias"])
        y.backward(dy)
        return y.detach(), theta.detach()

    begin = time.perf_counter()
    seconds = []
    while len(seconds) < 2 or (time.perf_counter() - begin < budget and len(seconds) < 25):
        start = time.perf_counter()
        y, theta = forward_and_backward()
        seconds.append(time.perf_counter() - start)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    ours = WAYS[way] + "."
    width = heads * OSCILLATORS
    apart = theta - read(ours + "angles", 1, tokens, width)
    turns = 2 * math.pi * torch.round(apart / (2 * math.pi))
    theirs = {"y": y[0] - turns[0] @ weights["from_phase.weight"].detach().T, "dx": x.grad[0],
              **{name: tensor.grad for name, tensor in weights.items()}}
    theirs["from_phase.weight"] = theirs["from_phase.weight"] - dy[0].T @ turns[0]
    differences = {name: float((tensor - read(ours + name, *tensor.shape)).abs().max() / tensor.abs().max())
                   for name, tensor in theirs.items()}
    differences["angles"] = float((apart - turns).abs().max() / math.pi)
    # max() would step over a NaN.
    worst = next((name for name, value in differences.items() if not value <= TOLERANCE),
                 max(differences, key=differences.get))
    print(json.dumps({"name": "PyTorch " + torch.__version__, "seconds": statistics.median(seconds[1:]),
                      "resident": resident, "difference": differences[worst], "worst": worst,
                      "turns": int(turns.count_nonzero())}))


def free_bytes():
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rbar", default="build/release/bench/peers/time_phase", help="rbar's program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=3, help="processes a side and setting")
    parser.add_argument("--seconds", type=float, default=1, help="about how long one timing goes on")
    parser.add_argument("--memory", type=float, default=0.7, help="share of the free memory that `pairs` may take")
    parser.add_argument("--blas", nargs="+", help="of the system's, only these (folders of libblas.so.3)")
    parser.add_argument("--csv", help="also write every row here")
    parser.add_argument("--torch-child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_child:
        folder, way, *numbers = arguments.torch_child
        return time_torch(folder, way, *map(int, numbers), arguments.seconds)

    seconds = str(arguments.seconds)
    child = [arguments.python, os.path.abspath(__file__), "--seconds", seconds, "--torch-child"]
    blas = {os.path.basename(os.path.dirname(path)): os.path.dirname(path) for path in system_blas(arguments.python)}
    # Most of the time is not in the products of matrices: the best BLAS is enough.
    name, folder_of_blas = max(blas.items()) if blas else ("", None)
    if arguments.blas:
        name, folder_of_blas = arguments.blas[0], blas[arguments.blas[0]]
    rows = []
    print("%-34s %6s %5s %7s %11s %7s %14s %10s %6s" % ("", "tokens", "heads", "threads", "ms", "GB", "rbar is",
                                                       "difference", "turns"))
    for tokens in arguments.tokens:
        for way, ours_way in WAYS.items():
            heads, needed = arguments.heads, 12 * 4 * tokens ** 2 * OSCILLATORS
            if way == "pairs":
                fit = int(arguments.memory * free_bytes() / needed)
                if fit < 1:
                    print("%-34s %6d %5d   left out: %.0f GB for %d heads do not fit" % (
                        "PyTorch, pairs", tokens, heads, 1e-9 * needed * heads, heads), flush=True)
                    continue
                if fit < heads:
                    heads = fit
                    print("%-34s %6d %5d   as many heads as fit into the memory" % ("pairs", tokens, heads))
            for threads in arguments.threads:
                with tempfile.TemporaryDirectory() as folder:
                    write_inputs(folder, tokens, heads)
                    numbers = [str(tokens), str(heads), str(threads)]
                    ours, theirs = [], []
                    for _ in range(arguments.repetitions):
                        ours.append(run([arguments.rbar, folder, ours_way, str(tokens), str(D_MODEL), str(heads),
                                         str(OSCILLATORS), str(threads), seconds], threads))
                        theirs.append(run(child + [folder, way] + numbers, threads, folder_of_blas))
                for result in theirs:
                    if not result["difference"] <= TOLERANCE:
                        sys.exit("they differ by %.1e of the largest entry: %s (%s, %d tokens)" % (
                            result["difference"], result["worst"], way, tokens))
                best = statistics.median(result["seconds"] for result in ours)
                title = theirs[0]["name"] + ", " + way
                for who, results in ((ours[0]["name"] + ", " + ours_way, ours), (title, theirs)):
                    taken = statistics.median(result["seconds"] for result in results)
                    resident = max(result["resident"] for result in results)
                    difference = max((result["difference"] for result in results if "difference" in result),
                                     default=None)
                    print("%-34s %6d %5d %7d %11.2f %7.2f %14s %10s %6s" % (
                        who, tokens, heads, threads, taken * 1e3, resident * 1e-9,
                        "" if difference is None else "%.1fx faster" % (taken / best),
                        "" if difference is None else "%.1e" % difference,
                        results[0].get("turns", "")), flush=True)
                    rows.append([who, tokens, heads, threads, taken, resident, taken / best, difference,
                                 shlex.join([sys.executable] + sys.argv)])
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["who", "tokens", "heads", "threads", "seconds", "resident_bytes", "rbar_is_faster",
                             "difference", "command"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
