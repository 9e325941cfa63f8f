# Steps of gradient descent that are differentiated, as torch has them: tests/data/meta.json. Run with torch 2.x.
import json
import torch

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def rounded(t):
    return [round(v, 9) for v in t.detach().reshape(-1).tolist()]


def case(sizes, act, steps, lr):
    layers = []
    for i in range(len(sizes) - 1):
        layers.append(torch.nn.Linear(sizes[i], sizes[i + 1]))
        if i < len(sizes) - 2:
            layers.append({"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "gelu": torch.nn.GELU}[act]())
    net = torch.nn.Sequential(*layers)
    x, y, x2, y2 = (torch.randn(5, n) for n in (sizes[0], sizes[-1], sizes[0], sizes[-1]))
    names = [n for n, _ in net.named_parameters()]
    with torch.no_grad():  # as they are stored
        for t in [*net.parameters(), x, y, x2, y2]:
            t.copy_(torch.round(t * 1e6) / 1e6)
    out = {"sizes": sizes, "act": act, "steps": steps, "lr": lr, "weights": [rounded(p) for p in net.parameters()],
           "x": rounded(x), "y": rounded(y), "x2": rounded(x2), "y2": rounded(y2)}
    for order in (2, 1):
        fast = dict(net.named_parameters())
        for _ in range(steps):
            loss = (torch.func.functional_call(net, fast, x) - y).square().mean()
            grads = torch.autograd.grad(loss, [fast[n] for n in names], create_graph=order == 2)
            fast = {n: fast[n] - lr * g for n, g in zip(names, grads)}
        loss = (torch.func.functional_call(net, fast, x2) - y2).square().mean()
        out[f"loss{order}"] = loss.item()
        out[f"grads{order}"] = [rounded(g) for g in torch.autograd.grad(loss, list(net.parameters()))]
    return out


cases = [case([1, 4, 4, 1], "tanh", 1, 0.1), case([2, 5, 3], "relu", 3, 0.05), case([3, 4, 2], "gelu", 2, 0.2)]
with open("tests/data/meta.json", "w") as f:
    f.write(json.dumps(cases, separators=(",", ":")) + "\n")
