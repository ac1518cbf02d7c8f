"""PyTorch's side of rbar's `standard_*` and `cort_*` rows: the models in eager mode, forward and training."""
import torch
import torch.nn.functional as F

from torch_layers import FUSED, HEADS, HEAD_DIM, future, length, phasors

DIM, HIDDEN = HEADS * HEAD_DIM, 4 * HEADS * HEAD_DIM


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
            hidden = F.gelu(self.linear(prefix + self.up, self.norm(prefix + "norm2", h)))
            h = h + self.linear(prefix + self.down, hidden)
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
