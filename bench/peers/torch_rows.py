#!/usr/bin/env python3
"""PyTorch's side of compare.py: for each row its formulations, checked against rbar's numbers, then timed.

A formulation ("way") of a row is a function without arguments that runs it once and returns its outputs. Inputs and
rbar's outputs lie in a folder as raw numbers (row.hpp); a way whose outputs differ from rbar's is never timed.
Commands on the standard input and answers, one line each, are those of row.hpp.
"""
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

HEADS, HEAD_DIM = 8, 64  # of attention and of the models
DIM, HIDDEN = HEADS * HEAD_DIM, 4 * HEADS * HEAD_DIM
FUSED = hasattr(F, "scaled_dot_product_attention")


class Folder:
    """The raw numbers of one row."""

    def __init__(self, path, dtype=torch.float32):
        self.path, self.dtype = path, dtype

    def __call__(self, name, *shape, dtype=None):
        with open(os.path.join(self.path, name + ".raw"), "rb") as file:
            numbers = torch.frombuffer(bytearray(file.read()), dtype=dtype or self.dtype)
        return numbers.view(*shape) if shape else numbers

    def parameters(self, shapes):
        return {name: self("parameter." + name, *shape).requires_grad_() for name, shape in shapes.items()}


def future(tokens):
    return torch.full((tokens, tokens), float("-inf")).triu(1)


# --- attention ----------------------------------------------------------------------------------


def heads_first(folder, tokens, *names):
    """[heads, tokens, head_dim], the order that PyTorch likes best."""
    return [folder(name, tokens, HEADS, HEAD_DIM).transpose(0, 1).contiguous() for name in names]


def tokens_first(way):
    return lambda: {"y": way().transpose(0, 1)}


def dot(folder, tokens, causal):
    query, key, value = heads_first(folder, tokens, "query", "key", "value")
    mask = future(tokens) if causal else torch.zeros(1, 1)

    def fused():
        return F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=bool(causal))[0]

    def eager():
        logits = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=HEAD_DIM ** -0.5)
        return torch.bmm(torch.softmax(logits, -1), value)

    return {"SDPA": tokens_first(fused)} if FUSED else {"baddbmm, softmax, bmm": tokens_first(eager)}


def sheaf(folder, tokens, causal):
    """softmax_j(-beta ||q_i - k_j||^2) v_j. `cdist` is the definition as one writes it down; `expanded` knows that
    ||q||^2 cancels in the row; `fused` makes -beta ||k||^2 the additive mask of SDPA."""
    query, key, value = heads_first(folder, tokens, "query", "key", "value")
    beta = 1 / (2 * HEAD_DIM ** 0.5)
    mask = future(tokens)

    def cdist():
        logits = torch.cdist(query, key).square() * -beta
        return torch.softmax(logits + mask if causal else logits, -1) @ value

    def bias():
        norms = (key.square().sum(-1) * -beta).unsqueeze(1)
        return norms + mask if causal else norms

    def expanded():
        return torch.softmax(torch.baddbmm(bias(), query, key.transpose(1, 2), alpha=2 * beta), -1) @ value

    def fused():
        visible = bias().expand(HEADS, tokens, tokens).unsqueeze(0)
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=visible, scale=2 * beta)[0]

    ways = {"cdist": cdist, "expanded": expanded}
    if FUSED:
        try:
            F.scaled_dot_product_attention(query[:, :1], key[:, :1], value[:, :1], scale=1.0)
            ways["fused"] = fused
        except TypeError:  # before 2.1 it takes no scale
            pass
    return {name: tokens_first(way) for name, way in ways.items()}


# --- coherence and oscillators ------------------------------------------------------------------


def phasors(x):
    angle = 2 * math.pi * torch.sigmoid(x)
    return torch.cos(angle), torch.sin(angle)


def length(cosine, sine, dim):
    return torch.sqrt(cosine.mean(dim).square() + sine.mean(dim).square())


def coherence(folder, *shape):
    x = folder("x", *shape)
    return {"eager": lambda: {"y": length(*phasors(x), -1)}}


OSCILLATORS = 32


def oscillate(theta, frequency, strength, coupling):
    """Ten Kuramoto steps of dt = 0.1 over the tokens; theta [1, heads, tokens, oscillators]."""
    frequency, strength, dt = frequency.unsqueeze(1), strength.view(-1, 1, 1), 0.1
    for _ in range(10):
        theta = theta + dt * (frequency + strength * coupling(theta))
        theta = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
    return theta


def angles(folder, theta):
    """The angles, and by how many turns they are from rbar's: raw angles jump by a turn at +-pi, where rounding
    decides."""
    turns = 2 * math.pi * torch.round((theta - folder("angles", *theta.shape)) / (2 * math.pi))
    return theta - turns, turns


def gradients(x, p):
    return {"dx": x.grad, **{"grad." + name: tensor.grad for name, tensor in p.items()}}


def clear_gradients(x, p):
    for tensor in (x, *p.values()):
        tensor.grad = None


def kuramoto(folder, tokens, heads, coupling):
    p = folder.parameters({"natural_frequency": (heads, OSCILLATORS), "coupling_strength": (heads,)})
    width = heads * OSCILLATORS
    x, dy = folder("x", 1, tokens, width).requires_grad_(), folder("dy", 1, tokens, width)

    def way():
        clear_gradients(x, p)
        theta = oscillate(x.view(1, tokens, heads, OSCILLATORS).transpose(1, 2), *p.values(), coupling)
        theta = theta.transpose(1, 2).reshape(1, tokens, width)
        theta.backward(dy)
        return lambda: {"y": angles(folder, theta.detach())[0], **gradients(x, p)}

    return way


def phase(folder, tokens, heads, coupling):
    """theta = pi tanh(W x + b), ten Kuramoto steps, y = W_o theta + b_o; and backward."""
    d_model, width = 768, heads * OSCILLATORS
    shapes = {"to_phase.weight": (width, d_model), "to_phase.bias": (width,), "natural_freq": (heads, OSCILLATORS),
              "coupling_matrix": (heads,), "from_phase.weight": (d_model, width), "from_phase.bias": (d_model,)}
    p = folder.parameters(shapes)
    x, dy = folder("x", 1, tokens, d_model).requires_grad_(), folder("dy", 1, tokens, d_model)

    def way():
        clear_gradients(x, p)
        theta = math.pi * torch.tanh(F.linear(x, p["to_phase.weight"], p["to_phase.bias"]))
        theta = oscillate(theta.view(1, tokens, heads, OSCILLATORS).transpose(1, 2), p["natural_freq"],
                          p["coupling_matrix"], coupling)
        theta = theta.transpose(1, 2).reshape(1, tokens, width)
        y = F.linear(theta, p["from_phase.weight"], p["from_phase.bias"])
        y.backward(dy)

        def outputs():
            """What whole turns make of y and of W_o's gradient is taken out."""
            unturned, turns = angles(folder, theta.detach())
            results = {"y": y.detach() - turns @ p["from_phase.weight"].detach().T, "angles": unturned,
                       **gradients(x, p)}
            results["grad.from_phase.weight"] = results["grad.from_phase.weight"] - dy[0].T @ turns[0]
            return results

        return outputs

    return way


def coupled_to_all(layer):
    """`pairs` is the published formulation: the phase differences of all pairs of tokens as a tensor [batch, heads,
    tokens, tokens, oscillators]. `mean field` gives the same numbers from the means of cosine and sine."""
    def pairs(theta):
        return torch.sin(theta.unsqueeze(3) - theta.unsqueeze(2)).mean(3)  # over j of sin(theta_i - theta_j)

    def mean_field(theta):
        cosine, sine = torch.cos(theta), torch.sin(theta)
        return sine * cosine.mean(2, keepdim=True) - cosine * sine.mean(2, keepdim=True)

    def row(folder, tokens, heads):
        ways = {"mean field": layer(folder, tokens, heads, mean_field)}
        if 12 * 4 * tokens ** 2 * OSCILLATORS * heads <= 2e9:  # `pairs` needs about 12 such tensors
            ways["pairs"] = layer(folder, tokens, heads, pairs)
        return ways

    return row


def coupled_to_earlier(layer):
    def row(folder, tokens, heads):
        count = torch.arange(1, tokens + 1, dtype=torch.float32).view(-1, 1)

        def prefix_means(theta):
            cosine, sine = torch.cos(theta), torch.sin(theta)
            return cosine * (sine.cumsum(2) / count) - sine * (cosine.cumsum(2) / count)

        return {"prefix means": layer(folder, tokens, heads, prefix_means)}

    return row


# --- models -------------------------------------------------------------------------------------


class Model:
    """The decoder of rbar's `standard` and `cort` rows as functions of its parameters (rbar's names), with the three
    projections of a query, a key and a value in one product. GPT-2 style; tied head."""

    def __init__(self, folder, layers, batch, tokens, routed):
        self.layers, self.batch, self.length, self.routed = layers, batch, tokens, routed
        vocabulary = 256
        shapes = {"token_embedding.weight": (vocabulary, DIM), "position_embedding.weight": (tokens, DIM),
                  "final_norm.weight": (DIM,), "final_norm.bias": (DIM,)}
        self.up, self.down = ("ffn.net.0", "ffn.net.3") if routed else ("feed_forward.up", "feed_forward.down")
        for prefix in (f"layers.{layer}." for layer in range(layers)):
            linear = {"attention.out_proj": (DIM, DIM), self.up: (HIDDEN, DIM), self.down: (DIM, HIDDEN)}
            if routed:
                linear.update({"router.route_proj": (1, DIM), "mixer.gate": (1, 2 * DIM), "mixer.out_proj": (DIM, DIM)})
                shapes.update({prefix + "mixer.W1.weight": (DIM, DIM), prefix + "mixer.W2.weight": (DIM, DIM)})
            for name, shape in linear.items():
                shapes[prefix + name + ".weight"], shapes[prefix + name + ".bias"] = shape, shape[:1]
            for name in ("norm1", "norm2"):
                shapes[prefix + name + ".weight"] = shapes[prefix + name + ".bias"] = (DIM,)
        self.p = folder.parameters(shapes)
        for prefix in (f"layers.{layer}.attention." for layer in range(layers)):
            for kind in ("weight", "bias"):
                parts = [folder(f"parameter.{prefix}{name}_proj.{kind}") for name in "qkv"]
                joined = torch.cat([part.view(-1, DIM) if kind == "weight" else part for part in parts])
                self.p[prefix + "qkv." + kind] = joined.requires_grad_()
        self.mask = future(tokens).unsqueeze(0)
        self.tokens = folder("tokens", batch, tokens, dtype=torch.int32).long()
        self.targets = folder("targets", batch * tokens, dtype=torch.int32).long()

    def linear(self, name, x):
        return F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def norm(self, name, x):
        return F.layer_norm(x, (DIM,), self.p[name + ".weight"], self.p[name + ".bias"])

    def attention(self, prefix, x):
        batch, tokens, _ = x.shape
        qkv = self.linear(prefix + "qkv", x).view(batch, tokens, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        if FUSED:
            y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        else:
            q, k, v = (part.reshape(batch * HEADS, tokens, HEAD_DIM) for part in qkv)
            weights = torch.softmax(torch.baddbmm(self.mask, q, k.transpose(1, 2), alpha=HEAD_DIM ** -0.5), -1)
            y = torch.bmm(weights, v).view(batch, HEADS, tokens, HEAD_DIM)
        return self.linear(prefix + "out_proj", y.transpose(1, 2).reshape(batch, tokens, DIM))

    def routing_scores(self, prefix, x):
        """.4 sigmoid(variance) + .4 coherence + .2 sigmoid(w x + b), the coherence half of the token's features, half
        of each feature over a centred window of 8 tokens."""
        window = 8
        cosine, sine = phasors(x)
        padding = ((window - 1) // 2, window - 1 - (window - 1) // 2)
        mean = [F.avg_pool1d(F.pad(part.transpose(1, 2), padding, mode="replicate"), window, 1)
                for part in (cosine, sine)]
        local = torch.sqrt(mean[0].square() + mean[1].square()).mean(1)
        r = 0.5 * length(cosine, sine, -1) + 0.5 * local
        learned = torch.sigmoid(self.linear(prefix + "route_proj", x)).squeeze(-1)
        return 0.4 * torch.sigmoid(x.var(-1)) + 0.4 * r + 0.2 * learned

    def mixer(self, prefix, x, scores):
        batch, tokens, _ = x.shape
        even, odd = x[:, 0::2], x[:, 1::2]
        gate = torch.sigmoid(self.linear(prefix + "gate", torch.cat([even, odd], -1)))
        mixed = torch.stack([gate * F.linear(even, self.p[prefix + "W1.weight"]) + (1 - gate) * even,
                             gate * F.linear(odd, self.p[prefix + "W2.weight"]) + (1 - gate) * odd], 2)
        c = scores.unsqueeze(-1)
        return self.linear(prefix + "out_proj", c * mixed.view(batch, tokens, DIM) + (1 - c) * x)

    def routed_attention(self, prefix, x):
        """As published: attention and mixer of every token, and one of the two discarded."""
        scores = self.routing_scores(prefix + "router.", x)
        chosen = torch.topk(scores, max(1, int(0.15 * x.shape[1])), largest=False).indices
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)
        return torch.where(mask.unsqueeze(-1), self.attention(prefix + "attention.", x),
                           self.mixer(prefix + "mixer.", x, scores))

    def forward(self):
        h = self.p["token_embedding.weight"][self.tokens] + self.p["position_embedding.weight"]
        for prefix in (f"layers.{layer}." for layer in range(self.layers)):
            x = self.norm(prefix + "norm1", h)
            h = h + (self.routed_attention(prefix, x) if self.routed else self.attention(prefix + "attention.", x))
            h = h + self.linear(prefix + self.down, F.gelu(self.linear(prefix + self.up, self.norm(prefix + "norm2", h))))
        return F.linear(self.norm("final_norm", h), self.p["token_embedding.weight"])


def model_forward(routed):
    def row(folder, layers, batch, tokens):
        model = Model(folder, layers, batch, tokens, routed)

        def way():
            with torch.no_grad():
                return {"y": model.forward()}

        return {"eager": way}

    return row


def model_training(routed):
    def row(folder, layers, batch, tokens):
        model = Model(folder, layers, batch, tokens, routed)
        groups = [{"params": [p for p in model.p.values() if (p.dim() > 1) == matrices], "weight_decay": decay}
                  for matrices, decay in ((True, 0.1), (False, 0.0))]
        options = {"foreach": True} if "foreach" in torch.optim.AdamW.__init__.__code__.co_varnames else {}
        optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), **options)

        def step():
            optimizer.zero_grad(set_to_none=True)
            logits = model.forward()
            loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), model.targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        losses = []

        def way():
            losses.append(step())
            if len(losses) == 1:
                losses.append(step())
            return {"y": torch.tensor(losses[:2])}

        return {"eager": way}

    return row


# --- others -------------------------------------------------------------------------------------


def gemm(folder, tokens, out, width):
    x, weight = folder("x", tokens, width), folder("weight", out, width)
    return {"F.linear": lambda: {"y": F.linear(x, weight)}}


SSM_EXPAND, SSM_STATES, SSM_TAPS = 2, 16, 4


def ssm_shapes(d_model):
    inner, rank = SSM_EXPAND * d_model, -(-d_model // 16)
    return {"in_proj.weight": (2 * inner, d_model), "conv_weight": (inner, SSM_TAPS), "conv_bias": (inner,),
            "x_proj.weight": (rank + 2 * SSM_STATES, inner), "dt_proj.weight": (inner, rank), "dt_proj.bias": (inner,),
            "A_log": (inner, SSM_STATES), "D": (inner,), "out_proj.weight": (d_model, inner)}


def ssm_block(p, x):
    """Mamba's block from the published equations (Gu, Dao, arXiv:2312.00752):
        [u | z] = W_in x,  u = SiLU(conv(u)),  [d | B | C] = W_x u,  D = softplus(W_D d + b),  A = -exp(A_log),
        h_t = exp(D_t A) h_{t-1} + D_t u_t B_t,  y_t = C_t h_t + skip u_t,  out = W_out (y SiLU(z))
    The recurrence is a loop over the tokens on [batch, channels, states], which is what eager mode offers."""
    tokens = x.shape[1]
    inner, rank = p["A_log"].shape[0], p["dt_proj.weight"].shape[1]
    u, z = F.linear(x, p["in_proj.weight"]).chunk(2, -1)
    u = F.conv1d(u.transpose(1, 2), p["conv_weight"].unsqueeze(1), p["conv_bias"], padding=SSM_TAPS - 1, groups=inner)
    u = F.silu(u[..., :tokens]).transpose(1, 2)
    delta, b, c = F.linear(u, p["x_proj.weight"]).split([rank, SSM_STATES, SSM_STATES], -1)
    delta = F.softplus(F.linear(delta, p["dt_proj.weight"], p["dt_proj.bias"]))
    decay = torch.exp(delta.unsqueeze(-1) * -torch.exp(p["A_log"]))  # [batch, tokens, inner, states]
    drive = (delta * u).unsqueeze(-1) * b.unsqueeze(2)
    h, y = torch.zeros_like(drive[:, 0]), []
    # Unbound: the gradient of an index is a zero-filled tensor of the whole size, once a token.
    for decay_t, drive_t, c_t in zip(decay.unbind(1), drive.unbind(1), c.unsqueeze(2).unbind(1)):
        h = decay_t * h + drive_t
        y.append((h * c_t).sum(-1))
    return F.linear((torch.stack(y, 1) + p["D"] * u) * F.silu(z), p["out_proj.weight"])


def ssm(training):
    def row(folder, *shape):
        p = folder.parameters(ssm_shapes(shape[-1]))
        x, dy = folder("x", *shape).requires_grad_(), folder("dy", *shape)

        def forward():
            with torch.no_grad():
                y = ssm_block(p, x)
            return {"y": y, "stream": y}

        def forward_and_backward():
            clear_gradients(x, p)
            y = ssm_block(p, x)
            y.backward(dy)
            return {"y": y.detach(), "stream": y.detach(), **gradients(x, p)}

        return {"eager loop": forward_and_backward if training else forward}

    return row


# Largest allowed difference from rbar's outputs, of the largest number of the output: fp32 sums in two orders.
ROWS = {"dot": (dot, 1e-4), "sheaf": (sheaf, 1e-4), "coherence": (coherence, 1e-5),
        "kuramoto_all": (coupled_to_all(kuramoto), 1e-3), "kuramoto_prefix": (coupled_to_earlier(kuramoto), 1e-3),
        "phase_all": (coupled_to_all(phase), 1e-3), "phase_prefix": (coupled_to_earlier(phase), 1e-3),
        "standard_forward": (model_forward(False), 1e-4), "standard_training": (model_training(False), 1e-3),
        "cort_forward": (model_forward(True), 1e-4), "cort_training": (model_training(True), 1e-3),
        "gemm": (gemm, 1e-4), "ssm_forward": (ssm(False), 1e-4), "ssm_training": (ssm(True), 2e-3),
        "ssm_double": (ssm(True), 1e-10)}


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
