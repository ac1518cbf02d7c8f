"""PyTorch's formulations of rbar's layers, one function a family of rows.

A family makes, from the folder with a row's inputs and its sizes, the ways to compute the row: functions without
arguments that run it once and return its outputs by name, or a function that returns them where that takes time of
its own.
"""
import math
import os

import torch
import torch.nn.functional as F

HEADS, HEAD_DIM = 8, 64  # of attention and of the models
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
