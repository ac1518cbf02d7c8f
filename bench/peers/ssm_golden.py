#!/usr/bin/env python3
"""Writes the safetensors file that tests/golden/test_ssm_golden.cpp reads: a small Mamba block's inputs, parameters,
output and gradients by the published equations in PyTorch (torch_layers.py), computed in double.

    python3 bench/peers/ssm_golden.py tests/golden/selective_ssm.safetensors
"""
import array
import json
import math
import random
import struct
import sys

import torch

from torch_layers import SSM_STATES, ssm_block, ssm_shapes

BATCH, TOKENS, D_MODEL = 2, 37, 11


def inputs():
    """The same on every machine. Steps of .004 to .1, rates of about 1 to 16."""
    generator = random.Random(1)
    noise = [generator.gauss(0, 1) for _ in range(65537)]

    def draw(shape, value):
        start, count = generator.randrange(len(noise)), math.prod(shape)
        numbers = array.array("d", (value(i, noise[(start + i) % len(noise)]) for i in range(count)))
        return torch.frombuffer(bytearray(numbers.tobytes()), dtype=torch.float64).view(*shape)

    x, dy = (draw((BATCH, TOKENS, D_MODEL), lambda i, n: n) for _ in range(2))
    special = {"dt_proj.bias": lambda i, n: -4 + 0.8 * n, "D": lambda i, n: 1 + 0.3 * n,
               "A_log": lambda i, n: math.log(i % SSM_STATES + 1) + 0.1 * n}
    return x, dy, {name: draw(shape, special.get(name, lambda i, n, width=shape[-1]: n / math.sqrt(width)))
                   for name, shape in ssm_shapes(D_MODEL).items()}


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        values = array.array("f", tensor.reshape(-1).tolist()).tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    x, dout, p = inputs()
    for tensor in (x, *p.values()):
        tensor.requires_grad_()
    y = ssm_block(p, x)
    y.backward(dout)
    tensors = {"hidden": x, "dout": dout, **p, "output": y, "dhidden": x.grad,
               **{"grad." + name: tensor.grad for name, tensor in p.items()}}
    write_safetensors(sys.argv[1], {name: tensor.detach().float() for name, tensor in tensors.items()})


if __name__ == "__main__":
    main()
