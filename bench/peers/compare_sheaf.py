#!/usr/bin/env python3
"""Dense sheaf attention of rbar and of PyTorch's eager mode on the same numbers, in one table.

    y_i = sum_j softmax_j(-beta ||q_i - k_j||^2) v_j,   beta = 1 / (2 sqrt(d_h)),   8 heads, d_h = 64, batch 1

PyTorch in three ways: `cdist` is the definition as one writes it down; `expanded` knows that ||q||^2 cancels in
the row, so that one baddbmm gives the logits; `fused` is scaled_dot_product_attention with -beta ||k||^2 as its
additive mask, where this PyTorch has it. Runs alternate, so that a change of the machine's clock or load meets
every side; each side's inputs lie in the order it likes best. The outputs must agree, or there is no table.

    python3 bench/peers/compare_sheaf.py --rbar build/release/bench/peers/time_sheaf --csv sheaf.csv

A PyTorch that uses the system's BLAS (Debian's) is measured with every libblas.so.3 installed.
"""
import argparse
import array
import csv
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
import time

from compare_training import run, system_blas

HEADS, HEAD_DIM = 8, 64
INPUTS = ("query", "key", "value")
MASKS = ("full", "causal")
TOLERANCE = 1e-4  # of the largest output; an fp32 cdist of near points is itself off by this much


def flops(tokens, mask):
    """Multiply-adds of visible pairs counted twice: q.k and p.v."""
    pairs = tokens * (tokens + 1) / 2 if mask == "causal" else tokens * tokens
    return 4 * HEADS * HEAD_DIM * pairs


def write_inputs(folder, tokens):
    """Normal numbers as raw fp32 [tokens, heads, head_dim], the same on every machine."""
    generator = random.Random(1)
    noise = array.array("f", (generator.gauss(0, 1) for _ in range(65537)))  # they repeat, no two rows alike
    count = tokens * HEADS * HEAD_DIM
    noise *= len(INPUTS) * count // len(noise) + 1
    for i, name in enumerate(INPUTS):
        with open(os.path.join(folder, name + ".f32"), "wb") as file:
            noise[i * count:(i + 1) * count].tofile(file)


def time_torch(folder, tokens, threads, budget):
    """Times every formulation and compares its output with what rbar wrote into the folder."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    beta = 1 / (2 * HEAD_DIM ** 0.5)
    future = torch.full((tokens, tokens), float("-inf")).triu(1)

    def read(name):
        with open(os.path.join(folder, name + ".f32"), "rb") as file:
            values = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
        return values.view(tokens, HEADS, HEAD_DIM).transpose(0, 1).contiguous()

    query, key, value = (read(name) for name in INPUTS)

    def cdist(causal):
        logits = torch.cdist(query, key).square() * -beta
        if causal:
            logits = logits + future
        return torch.softmax(logits, -1) @ value

    def expanded(causal):
        bias = (key.square().sum(-1) * -beta).unsqueeze(1)
        logits = torch.baddbmm(bias + future if causal else bias, query, key.transpose(1, 2), alpha=2 * beta)
        return torch.softmax(logits, -1) @ value

    def fused(causal):
        bias = (key.square().sum(-1) * -beta).unsqueeze(1)
        mask = (bias + future if causal else bias.expand(HEADS, tokens, tokens)).unsqueeze(0)
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, scale=2 * beta)[0]

    ways = [cdist, expanded]
    if hasattr(F, "scaled_dot_product_attention"):
        try:
            F.scaled_dot_product_attention(query[None, :, :1], key[None, :, :1], value[None, :, :1], scale=1.0)
            ways.append(fused)
        except TypeError:  # before 2.1 it takes no scale
            pass
    result = {"name": "PyTorch " + torch.__version__, "seconds": {}, "difference": {}}
    with torch.no_grad():
        for way in ways:
            for mask in MASKS:
                begin = time.perf_counter()
                output, seconds = way(mask == "causal"), []
                while not seconds or (time.perf_counter() - begin < budget and len(seconds) < 25):
                    start = time.perf_counter()
                    output = way(mask == "causal")
                    seconds.append(time.perf_counter() - start)
                wanted = read(mask)
                result["seconds"][way.__name__ + " " + mask] = statistics.median(seconds)
                result["difference"][way.__name__ + " " + mask] = float(
                    (output - wanted).abs().max() / output.abs().max())
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rbar", default="build/release/bench/peers/time_sheaf", help="rbar's program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=3, help="processes a side and setting")
    parser.add_argument("--seconds", type=float, default=2, help="about how long one timing goes on")
    parser.add_argument("--blas", nargs="+", help="of the system's, only these (folders of libblas.so.3)")
    parser.add_argument("--csv", help="also write every row here")
    parser.add_argument("--torch-child", nargs=3, metavar=("FOLDER", "TOKENS", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_child:
        folder, tokens, threads = arguments.torch_child
        return time_torch(folder, int(tokens), int(threads), arguments.seconds)

    seconds = str(arguments.seconds)
    child = [arguments.python, os.path.abspath(__file__), "--seconds", seconds, "--torch-child"]
    peers = [(os.path.basename(os.path.dirname(path)), os.path.dirname(path)) for path in system_blas(arguments.python)]
    peers = [peer for peer in peers if not arguments.blas or peer[0] in arguments.blas] or [("", None)]
    rows = []
    print("%-46s %6s %-6s %7s %10s %8s %5s %14s %10s" % ("", "tokens", "mask", "threads", "ms", "GFLOP/s", "peak",
                                                         "rbar is", "difference"))
    for tokens in arguments.tokens:
        for threads in arguments.threads:
            with tempfile.TemporaryDirectory() as folder:
                write_inputs(folder, tokens)
                ours, theirs = [], {}
                for _ in range(arguments.repetitions):
                    ours.append(run([arguments.rbar, folder, str(tokens), str(HEADS), str(HEAD_DIM), str(threads),
                                     seconds], threads))
                    for blas, blas_folder in peers:
                        theirs.setdefault(blas, []).append(run(child + [folder, str(tokens), str(threads)], threads,
                                                               blas_folder))
            peak = max(result["fma_peak"] for result in ours)
            for mask in MASKS:
                best = statistics.median(result["seconds"][mask] for result in ours)
                table = [(ours[0]["name"], best, None)]
                for blas, results in theirs.items():
                    for way in [key for key in results[0]["seconds"] if key.endswith(mask)]:
                        table.append((results[0]["name"] + ", " + way[:-len(mask)] + blas,
                                      statistics.median(result["seconds"][way] for result in results),
                                      max(result["difference"][way] for result in results)))
                for name, taken, difference in table:
                    rate = flops(tokens, mask) / taken
                    print("%-46s %6d %-6s %7d %10.2f %8.0f %4.0f%% %14s %10s" % (
                        name[:46].strip(), tokens, mask, threads, taken * 1e3, rate * 1e-9, 100 * rate / peak,
                        "" if difference is None else "%.2fx faster" % (taken / best),
                        "" if difference is None else "%.1e" % difference), flush=True)
                    rows.append([name.strip(), tokens, mask, threads, taken, rate * 1e-9, rate / peak, taken / best,
                                 difference, shlex.join([sys.executable] + sys.argv)])
                    if difference is not None and difference > TOLERANCE:
                        sys.exit("the outputs differ by %.1e of the largest" % difference)
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["who", "tokens", "mask", "threads", "seconds", "gflops", "peak_share", "rbar_is_faster",
                             "difference", "command"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
