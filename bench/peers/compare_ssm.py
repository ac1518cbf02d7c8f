#!/usr/bin/env python3
"""Mamba's selective SSM block of rbar and of PyTorch's eager mode on the same numbers, in one table.

    [u | z] = W_in x,  u = SiLU(conv(u)),  [d | B | C] = W_x u,  D = softplus(W_D d + b),  A = -exp(A_log),
    h_t = exp(D_t A) h_{t-1} + D_t u_t B_t,  y_t = C_t h_t + skip u_t,  out = W_out (y SiLU(z))

The PyTorch side is written from the published equations (Gu, Dao, arXiv:2312.00752), with autograd for the gradients:
an independent check of rbar's forward pass, backward pass and stream. It runs on double first, where everything must
agree to rounding, and then on fp32, where it is timed: the recurrence as a loop over the tokens on [batch, channels,
states], which is what eager mode offers. Runs alternate. `training` is forward and backward.

    python3 bench/peers/compare_ssm.py --rbar build/release/bench/peers/time_ssm --csv ssm.csv

`--golden FILE` writes a small block's numbers as the safetensors file that tests/golden reads, and times nothing.
"""
import argparse
import array
import csv
import json
import math
import os
import random
import shlex
import statistics
import struct
import sys
import tempfile
import time

from compare_training import run, system_blas

EXPAND, STATES, TAPS = 2, 16, 4
TOLERANCE = {"float": 1e-4, "double": 1e-11}  # of the largest number of its kind
CODE = {"float": "f", "double": "d"}


def shapes(d_model):
    inner, rank = EXPAND * d_model, -(-d_model // 16)
    return {"in_proj.weight": (2 * inner, d_model), "conv_weight": (inner, TAPS), "conv_bias": (inner,),
            "x_proj.weight": (rank + 2 * STATES, inner), "dt_proj.weight": (inner, rank), "dt_proj.bias": (inner,),
            "A_log": (inner, STATES), "D": (inner,), "out_proj.weight": (d_model, inner)}


def write_inputs(folder, scalar, batch, tokens, d_model):
    """Raw numbers, the same on every machine. Steps of .004 to .1, rates of about 1 to 16."""
    generator = random.Random(1)
    noise = [generator.gauss(0, 1) for _ in range(65537)]  # they repeat, no two rows alike

    def write(name, count, value):
        start = generator.randrange(len(noise))
        with open(os.path.join(folder, name + ".raw"), "wb") as file:
            array.array(CODE[scalar], (value(i, noise[(start + i) % len(noise)]) for i in range(count))).tofile(file)

    for name in ("x", "dy"):
        write(name, batch * tokens * d_model, lambda i, n: n)
    for name, shape in shapes(d_model).items():
        width = 1 / math.sqrt(shape[-1])
        write(name, math.prod(shape),
              {"dt_proj.bias": lambda i, n: -4 + 0.8 * n, "D": lambda i, n: 1 + 0.3 * n,
               "A_log": lambda i, n: math.log(i % STATES + 1) + 0.1 * n}.get(name, lambda i, n: width * n))


def block(torch, p, x):
    """The published equations."""
    import torch.nn.functional as F

    batch, tokens, d_model = x.shape
    inner, rank = EXPAND * d_model, p["dt_proj.weight"].shape[1]
    u, z = F.linear(x, p["in_proj.weight"]).chunk(2, -1)
    u = F.conv1d(u.transpose(1, 2), p["conv_weight"].unsqueeze(1), p["conv_bias"], padding=TAPS - 1, groups=inner)
    u = F.silu(u[..., :tokens]).transpose(1, 2)
    delta, b, c = F.linear(u, p["x_proj.weight"]).split([rank, STATES, STATES], -1)
    delta = F.softplus(F.linear(delta, p["dt_proj.weight"], p["dt_proj.bias"]))
    decay = torch.exp(delta.unsqueeze(-1) * -torch.exp(p["A_log"]))  # [batch, tokens, inner, states]
    drive = (delta * u).unsqueeze(-1) * b.unsqueeze(2)
    h, y = torch.zeros_like(drive[:, 0]), []
    # Unbound: the gradient of an index is a zero-filled tensor of the whole size, once a token.
    for decay_t, drive_t, c_t in zip(decay.unbind(1), drive.unbind(1), c.unsqueeze(2).unbind(1)):
        h = decay_t * h + drive_t
        y.append((h * c_t).sum(-1))
    return F.linear((torch.stack(y, 1) + p["D"] * u) * F.silu(z), p["out_proj.weight"])


def run_torch(folder, scalar, batch, tokens, d_model, threads, budget, golden):
    """Compares with what rbar wrote into the folder, if it did, and times."""
    import torch

    torch.set_num_threads(threads)
    kind = {"float": torch.float32, "double": torch.float64}[scalar]

    def read(name, shape):
        with open(os.path.join(folder, name + ".raw"), "rb") as file:
            return torch.frombuffer(bytearray(file.read()), dtype=kind).view(shape)

    p = {name: read(name, shape).requires_grad_() for name, shape in shapes(d_model).items()}
    x = read("x", (batch, tokens, d_model)).requires_grad_()
    dy = read("dy", (batch, tokens, d_model))

    def step():
        for tensor in [x, *p.values()]:
            tensor.grad = None
        y = block(torch, p, x)
        y.backward(dy)
        return y.detach()

    y = step()
    results = {"y": y, "dx": x.grad, **{"grad." + name: tensor.grad for name, tensor in p.items()}}
    if golden:
        inputs = {"hidden": x, "dout": dy, **p}
        outputs = {"output": y, "dhidden": x.grad, **{"grad." + name: tensor.grad for name, tensor in p.items()}}
        return write_safetensors(golden, {name: t.detach().float() for name, t in {**inputs, **outputs}.items()})
    largest_gradient = max(float(value.abs().max()) for name, value in results.items() if name != "y")
    difference = {}
    for name, value in results.items():
        largest = float(value.abs().max()) if name == "y" else largest_gradient
        difference[name] = float((value - read("rbar." + name, value.shape)).abs().max()) / largest
    forward, training, begin = [], [], time.perf_counter()
    while not training or (time.perf_counter() - begin < budget and len(training) < 25):
        start = time.perf_counter()
        with torch.no_grad():
            block(torch, p, x)
        forward.append(time.perf_counter() - start)
        start = time.perf_counter()
        step()
        training.append(time.perf_counter() - start)
    print(json.dumps({"name": "PyTorch " + torch.__version__, "forward": statistics.median(forward),
                      "training": statistics.median(training), "difference": difference}))


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        values = array.array("f", tensor.reshape(-1).tolist()).tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rbar", default="build/release/bench/peers/time_ssm", help="rbar's program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--d-model", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=3, help="processes a side and setting")
    parser.add_argument("--seconds", type=float, default=2, help="about how long one timing goes on")
    parser.add_argument("--blas", nargs="+", help="of the system's, only these (folders of libblas.so.3)")
    parser.add_argument("--csv", help="also write every row here")
    parser.add_argument("--golden", metavar="FILE", help="write this file and stop")
    parser.add_argument("--torch-child", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_child:
        folder, scalar, *sizes = arguments.torch_child
        return run_torch(folder, scalar, *map(int, sizes), arguments.seconds, arguments.golden)

    child = [arguments.python, os.path.abspath(__file__), "--seconds", str(arguments.seconds), "--torch-child"]
    if arguments.golden:
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(folder, "double", 2, 37, 11)
            return run_torch(folder, "double", 2, 37, 11, 1, 0, arguments.golden)

    peers = [(os.path.basename(os.path.dirname(path)), os.path.dirname(path)) for path in system_blas(arguments.python)]
    peers = [peer for peer in peers if not arguments.blas or peer[0] in arguments.blas] or [("", None)]

    def both(folder, scalar, batch, tokens, d_model, threads, seconds):
        sizes = [str(size) for size in (batch, tokens, d_model, threads)]
        ours = run([arguments.rbar, folder, scalar, *sizes, str(seconds)], threads)
        theirs = {blas: run(child + [folder, scalar, *sizes], threads, blas_folder) for blas, blas_folder in peers}
        for differences in [{"the stream's y": ours["stepped"]}, *(result["difference"] for result in theirs.values())]:
            for name, difference in differences.items():
                if not difference <= TOLERANCE[scalar]:  # a NaN too
                    sys.exit("%s differs by %.1e of the largest (%s)" % (name, difference, scalar))
        return ours, theirs

    for tokens, d_model in ((1, 24), (67, 40), (300, 88)):
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(folder, "double", 2, tokens, d_model)
            ours, theirs = both(folder, "double", 2, tokens, d_model, 1, 0)
            print("double, 2 x %d tokens, d = %d: output, gradients and stream agree to %.1e" % (
                tokens, d_model, max(max(max(result["difference"].values()) for result in theirs.values()),
                                     ours["stepped"])))
    rows = []
    print("%-40s %6s %7s %7s %12s %12s %14s %10s" % ("", "tokens", "d", "threads", "forward ms", "training ms",
                                                     "rbar is", "difference"))
    for d_model in arguments.d_model:
        for tokens in arguments.tokens:
            for threads in arguments.threads:
                with tempfile.TemporaryDirectory() as folder:
                    write_inputs(folder, "float", arguments.batch, tokens, d_model)
                    ours, theirs = [], {}
                    for _ in range(arguments.repetitions):
                        mine, others = both(folder, "float", arguments.batch, tokens, d_model, threads,
                                            arguments.seconds)
                        ours.append(mine)
                        for blas, result in others.items():
                            theirs.setdefault(blas, []).append(result)
                best = {key: statistics.median(result[key] for result in ours) for key in ("forward", "training")}
                for blas, results in [(None, ours), *theirs.items()]:
                    taken = {key: statistics.median(result[key] for result in results) for key in best}
                    ratio = {key: taken[key] / best[key] for key in best}
                    difference = max(max(r["difference"].values()) for r in results) if blas is not None else None
                    name = (results[0]["name"] + " " + (blas or "")).strip()
                    print("%-40s %6d %7d %7d %12.2f %12.2f %14s %10s" % (
                        name[:40], arguments.batch * tokens, d_model, threads, taken["forward"] * 1e3,
                        taken["training"] * 1e3,
                        "" if blas is None else "%.1fx, %.1fx" % (ratio["forward"], ratio["training"]),
                        "" if difference is None else "%.1e" % difference), flush=True)
                    rows.append([name, arguments.batch, tokens, d_model, threads, taken["forward"], taken["training"],
                                 ratio["forward"], ratio["training"], difference, shlex.join([sys.executable] + sys.argv)])
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["who", "batch", "tokens", "d_model", "threads", "forward_seconds", "training_seconds",
                             "rbar_is_faster_forward", "rbar_is_faster_training", "difference", "command"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
