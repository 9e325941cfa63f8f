"""Cases of convolutions, pooling and batch normalisation."""

import torch
import torch.nn.functional as F
from torch.nn import grad

from vectors import case, distinct, f, of

INF, NAN = float("inf"), float("nan")


def pads(p):
    """Padding of an op as F.pad's: {top, bottom, left, right}."""
    return [p[2], p[3], p[0], p[1]]


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, list) and len(padding) == 4:
        x, padding = F.pad(x, pads(padding)), 0
    return F.conv2d(x, w, b, stride, padding, dilation, groups)


def convolutions():
    for x, w, bias, attr in (
        ((2, 3, 5, 6), (4, 3, 3, 2), True, {}),
        ((1, 4, 7, 8), (6, 2, 3, 3), True, {"stride": 2, "padding": 1, "groups": 2}),
        ((6, 4, 9), (6, 1, 1, 3), False, {"stride": [1, 3], "padding": [0, 2], "dilation": [1, 2], "groups": 6}),
        ((2, 2, 4, 5), (3, 2, 2, 3), True, {"padding": [0, 1, 2, 0]}),
        ((1, 3, 3, 4), (40, 3, 1, 1), True, {}),
        ((2, 2, 9, 9), (3, 2, 2, 2), False, {"stride": 4, "dilation": 3}),
        ((1, 33, 4, 4), (5, 33, 3, 3), True, {"padding": 1}),
        ((1, 1, 12, 12), (3, 1, 8, 8), True, {"stride": 4}),
    ):
        n = w[1] * w[2] * w[3]
        case("conv2d", [f(*x), f(*w), f(w[0]) if bias else None], lambda *a, t=attr: conv2d(*a, **t), attr, "sum", n=n)
        if isinstance(attr.get("padding"), list) and len(attr["padding"]) == 4 or len(x) == 3:
            continue
        y = conv2d(torch.zeros(x), torch.zeros(w), **attr).shape
        rest = [attr.get(k, d) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))]
        case(
            "conv2d_input_backward",
            [f(*y), f(*w)],
            lambda g, w, x=x, r=rest: grad.conv2d_input(x, w, g, *r),
            dict(attr, size=list(x[-2:])),
            "sum",
            n=w[0] * w[2] * w[3],
        )
        case(
            "conv2d_weight_backward",
            [f(*x), f(*y)],
            lambda x, g, w=w, r=rest: grad.conv2d_weight(x, w, g, *r),
            dict(attr, kernel=list(w[-2:])),
            "sum",
            n=y[0] * y[2] * y[3],
        )
    for x, w, attr in (
        ((2, 3, 9), (4, 3, 3), {}),
        ((4, 11), (4, 2, 3), {"stride": 2, "padding": 3, "dilation": 2, "groups": 2}),
    ):
        case("conv1d", [f(*x), f(*w), f(w[0])], lambda *a, t=attr: F.conv1d(*a, **t), attr, "sum", n=w[1] * w[2])


def pools():
    for x, attr in (
        ((2, 3, 6, 7), {"kernel_size": 2}),
        ((2, 9, 8), {"kernel_size": [3, 2], "stride": [2, 1], "padding": 1}),
        ((1, 2, 7, 40), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
        ((1, 2, 8, 8), {"kernel_size": 3, "stride": 3, "ceil_mode": True}),
        ((1, 1, 6, 6), {"kernel_size": 2, "stride": 4, "padding": 1, "ceil_mode": True}),
    ):
        case("max_pool2d", [distinct(*x)], lambda x, t=attr: F.max_pool2d(x, **t), attr, "exact", note="places")
    case(
        "max_pool2d",
        [of([[[1.0, NAN, -INF, -INF], [2.0, 3.0, -INF, -INF]]])],
        lambda x: F.max_pool2d(x, 2),
        {"kernel_size": 2},
        "exact",
        note="special",
    )
    case("max_pool1d", [distinct(2, 3, 9)], lambda x: F.max_pool1d(x, 3, 2, 1), {"kernel_size": 3, "stride": 2, "padding": 1})
    g = [0, 5, 5, 7, 1, 0, 0, 8]
    case(
        "max_pool2d_backward",
        [f(2, 1, 2, 2), of([[[g[0:2], g[2:4]]], [[g[4:6], g[6:8]]]], "i64")],
        lambda g, i: torch.zeros(2, 1, 9).scatter_add(2, i.reshape(2, 1, 4), g.reshape(2, 1, 4)).reshape(2, 1, 3, 3),
        {"size": 3},
    )
    for x, attr in (
        ((2, 3, 6, 7), {"kernel_size": 2}),
        ((2, 9, 8), {"kernel_size": [3, 2], "stride": [2, 1], "padding": 1}),
        ((1, 2, 9, 8), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
        ((1, 2, 8, 8), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
        ((1, 2, 8, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
        ((1, 1, 6, 6), {"kernel_size": 2, "stride": 4, "padding": 1, "ceil_mode": True}),
        ((1, 2, 8, 8), {"kernel_size": 3, "divisor_override": 4}),
    ):
        case("avg_pool2d", [f(*x)], lambda x, t=attr: F.avg_pool2d(x, **t), attr, "sum", n=9)
    case("avg_pool1d", [f(2, 3, 9)], lambda x: F.avg_pool1d(x, 3, 2, 1), {"kernel_size": 3, "stride": 2, "padding": 1}, "sum", n=3)
    for x, size in (((2, 2, 6, 8), [3, 2]), ((3, 7, 5), [2, 3]), ((1, 2, 3, 4), [5, 4]), ((2, 3, 5, 5), 1)):
        case("adaptive_avg_pool2d", [f(*x)], lambda x, s=size: F.adaptive_avg_pool2d(x, s), {"output_size": size}, "sum", n=25)
    case("adaptive_avg_pool1d", [f(2, 3, 7)], lambda x: F.adaptive_avg_pool1d(x, 3), {"output_size": 3}, "sum", n=3)


def moments(x):
    dims = [d for d in range(x.dim()) if d != 1]
    return x.mean(dims), x.var(dims)


def batch_norms():
    for s in ((6, 3), (2, 3, 5), (2, 2, 3, 7), (37, 2), (1, 2, 3, 17)):
        n, c = 8 * s[0] * 5, s[1]
        train = lambda x, w=None, b=None: (F.batch_norm(x, None, None, w, b, True), *moments(x))
        case("batch_norm_train", [f(*s), f(c), f(c)], train, tol="sum", n=n)
        case("batch_norm_train", [f(*s)], train, tol="sum", n=n)
        case("batch_norm", [f(*s), None, None, f(c), f(c)], lambda x, m, v, w, b, t=train: t(x, w, b), {"training": True}, "sum", n=n)
        case(
            "batch_norm",
            [f(*s), f(c), f(c, lo=0.5, hi=2), f(c), f(c)],
            lambda x, m, v, w, b: (
                (x - m.reshape(-1, *[1] * (x.dim() - 2))) / (v + 0.01).sqrt().reshape(-1, *[1] * (x.dim() - 2))
                * w.reshape(-1, *[1] * (x.dim() - 2)) + b.reshape(-1, *[1] * (x.dim() - 2)), m, v),
            {"eps": 0.01},
            "sum",
            n=8,
        )

        def backward(x, g, w):
            x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
            b = torch.zeros_like(w, requires_grad=True)
            return torch.autograd.grad(F.batch_norm(x, None, None, w, b, True), (x, w, b), g.detach())

        case("batch_norm_backward", [f(*s), f(*s), f(c)], backward, tol="sum", n=n, grad=False)


def make():
    convolutions()
    pools()
    batch_norms()
