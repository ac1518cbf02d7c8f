#!/usr/bin/env python3
"""Training throughput of rbar and PyTorch on the same model, in one table.

The model is GPT-2 style: 6 layers, d = 512, 8 heads, feed-forward 2048, exact GELU, learned positions,
tied embedding of 256 bytes; a step is 8 x 128 tokens: forward, cross-entropy, backward, AdamW.
Runs alternate, so that a change of the machine's clock or load meets both sides.

    python3 bench/peers/compare_training.py --rbar build/release/bench/peers/train_standard

A PyTorch that uses the system's BLAS (Debian's) is measured with every libblas.so.3 installed.
"""
import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import time

BATCH, LENGTH, VOCABULARY, DIM, LAYERS, HEADS, HIDDEN = 8, 128, 256, 512, 6, 8, 2048


def flops_per_step():
    """Multiply-adds counted twice; causal attention at half; backward is twice the forward."""
    matrices = LAYERS * (4 * DIM * DIM + 2 * DIM * HIDDEN) + VOCABULARY * DIM
    attention = LAYERS * LENGTH * DIM  # q.k and p.v over the visible half
    return 3 * 2 * (matrices + attention) * BATCH * LENGTH


def train_torch(threads, steps):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    fused_attention = hasattr(F, "scaled_dot_product_attention")

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
            self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
            self.up, self.down = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)

        def forward(self, h, mask):
            batch, length, _ = h.shape
            qkv = self.qkv(self.norm1(h)).view(batch, length, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
            if fused_attention:
                y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
            else:
                q, k, v = (part.reshape(batch * HEADS, length, DIM // HEADS) for part in qkv)
                weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=(DIM // HEADS) ** -0.5)
                y = torch.bmm(torch.softmax(weights, -1), v).view(batch, HEADS, length, DIM // HEADS)
            h = h + self.out(y.transpose(1, 2).reshape(batch, length, DIM))
            return h + self.down(F.gelu(self.up(self.norm2(h))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, DIM), nn.Embedding(LENGTH, DIM)
            nn.init.normal_(self.tokens.weight, std=0.02)
            nn.init.normal_(self.positions.weight, std=0.02)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(DIM)
            self.register_buffer("mask", torch.full((1, LENGTH, LENGTH), float("-inf")).triu(1))

        def forward(self, tokens):
            h = self.tokens(tokens) + self.positions.weight
            for block in self.blocks:
                h = block(h, self.mask)
            return F.linear(self.norm(h), self.tokens.weight)

    model = Model()
    options = {"foreach": True} if "foreach" in torch.optim.AdamW.__init__.__code__.co_varnames else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, **options)
    inputs = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    targets = torch.randint(0, VOCABULARY, (BATCH, LENGTH)).view(-1)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs).view(-1, VOCABULARY), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    begin = time.perf_counter()
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        if seconds and start - begin > 20:  # a plain BLAS takes half a minute a step
            break
        loss = step()
        seconds.append(time.perf_counter() - start)
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"name": "PyTorch " + torch.__version__, "parameters": parameters, "loss": round(loss, 4),
                      "median_s": statistics.median(seconds), "best_s": min(seconds)}))


def system_blas(python):
    """Folders of the installed libblas.so.3 if this PyTorch loads the system's, else none."""
    show = subprocess.run([python, "-c", "import torch; print(torch.__config__.show())"], capture_output=True,
                          text=True, check=True).stdout
    return sorted(glob.glob("/usr/lib/*/*/libblas.so.3")) if "BLAS_INFO=generic" in show else []


def run(command, threads, blas_folder=None):
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads),
                       MKL_NUM_THREADS=str(threads))
    if blas_folder:
        environment["LD_LIBRARY_PATH"] = blas_folder + ":" + environment.get("LD_LIBRARY_PATH", "")
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit("%s failed:\n%s" % (" ".join(command), result.stderr))
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rbar", default="build/release/bench/peers/train_standard", help="rbar's program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=8, help="timed steps a run")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--torch-child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_child:
        return train_torch(arguments.torch_child, arguments.steps)

    steps = str(arguments.steps)
    child = [arguments.python, os.path.abspath(__file__), "--steps", steps, "--torch-child"]
    peers = [(os.path.basename(os.path.dirname(path)), os.path.dirname(path)) for path in system_blas(arguments.python)]
    peers = peers or [("", None)]
    print("%-44s %7s %10s %9s %8s %6s %12s" % ("", "threads", "ms a step", "tokens/s", "GFLOP/s", "peak", "rbar is"))
    for threads in arguments.threads:
        runs = {}
        for _ in range(arguments.repetitions):
            runs.setdefault("rbar", []).append(run([arguments.rbar, str(threads), steps], threads))
            for blas, folder in peers:
                runs.setdefault(blas, []).append(run(child + [str(threads)], threads, folder))
        peak = max(r["fma_peak"] for r in runs["rbar"])
        ours = statistics.median(r["median_s"] for r in runs["rbar"])
        for key, results in runs.items():
            seconds = statistics.median(r["median_s"] for r in results)
            name = results[0]["name"] + (", " + key if key not in ("rbar", "") else "")
            rate = flops_per_step() / seconds
            ratio = "" if key == "rbar" else "%.2fx faster" % (seconds / ours)
            print("%-44s %7d %10.1f %9.0f %8.0f %5.0f%% %12s" % (name[:44], threads, seconds * 1e3,
                  BATCH * LENGTH / seconds, rate * 1e-9, 100 * rate / peak, ratio), flush=True)
        assert len({r["parameters"] for results in runs.values() for r in results}) == 1, "the models differ"


if __name__ == "__main__":
    main()
