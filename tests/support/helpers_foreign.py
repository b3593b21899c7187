"""Models and losses as users write them: they draw, and put weights and gradients elsewhere."""

import random
from types import SimpleNamespace

import networkx as nx
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from raydist.network.strategy import Strategy

DRAWN = []  # what `noisy` drew, in the order of its calls


def flat_linear(layer, classes):
    return nn.Sequential(nn.Flatten(), layer(64, classes))


# losses


def plain(model, x, x_adv, y):
    return F.cross_entropy(model(x_adv), y)


def clears(model, x, x_adv, y):
    model.zero_grad()
    return plain(model, x, x_adv, y)


def forgets(model, x, x_adv, y):
    for p in model.parameters():
        p.grad = None
    return plain(model, x, x_adv, y)


def replaces(model, x, x_adv, y):
    model[2].bias = nn.Parameter(model[2].bias.detach().clone())
    return plain(model, x, x_adv, y)


def noisy(model, x, x_adv, y):
    noise = float(torch.rand(())), float(np.random.rand()), random.random()
    DRAWN.append(noise)
    return plain(model, x, x_adv, y) * sum(noise)


# models


class ClampNew(nn.Linear):
    def forward(self, x):
        self.weight.data = self.weight.data.clamp(-0.05, 0.05)
        return super().forward(x)


class ClampInPlace(nn.Linear):
    def forward(self, x):
        self.weight.data.clamp_(-0.05, 0.05)
        return super().forward(x)


def clamp_new(shape, classes):
    return flat_linear(ClampNew, classes)


def clamp_in_place(shape, classes):
    return flat_linear(ClampInPlace, classes)


class Center(nn.Module):
    """Takes away the running mean of its inputs."""

    def __init__(self, size, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(size))

    def forward(self, x):
        if self.training:
            new = 0.5 * self.mean + 0.5 * x.detach().mean(0)
            if self.in_place:
                self.mean.copy_(new)
            else:
                self.mean = new
        return x - self.mean


def center_new(shape, classes):
    return nn.Sequential(nn.Flatten(), Center(64, False), nn.Linear(64, classes))


def center_in_place(shape, classes):
    return nn.Sequential(nn.Flatten(), Center(64, True), nn.Linear(64, classes))


class Late(nn.Module):
    """Makes its layer in the first forward, or only in the first one for training."""

    def __init__(self, classes, training_only):
        super().__init__()
        self.classes, self.training_only, self.first = classes, training_only, None
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x):
        x = x.flatten(1)
        if self.first is None and (self.training or not self.training_only):
            self.first = nn.Linear(x.shape[1], self.classes)
        return self.bias + (x[:, : self.classes] if self.first is None else self.first(x))


def late(shape, classes):
    return Late(classes, False)


def too_late(shape, classes):
    return Late(classes, True)


class Noise(nn.Module):
    """Draws in every pass, with all three generators, also in eval mode."""

    def forward(self, x):
        drop = random.random() < 0.5
        return x * np.random.uniform(0.9, 1.1) + 0.1 * torch.randn_like(x) * drop


def drawing_net(shape, classes):
    return nn.Sequential(nn.Flatten(), Noise(), nn.Linear(64, classes), nn.Dropout(0.1))


# models that a run cannot use, or only as they are


def linear(shape, classes):
    return flat_linear(nn.Linear, classes)


def scripted(shape, classes):
    return torch.jit.script(linear(shape, classes))


def lazy(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


class Wrapped(nn.Module):
    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def subtracts_in_place(shape, classes):
    return Wrapped(linear(shape, classes), before=lambda x: x.sub_(0.5))


def detached_inputs(shape, classes):
    return Wrapped(linear(shape, classes), before=torch.detach)


def detached_outputs(shape, classes):
    return Wrapped(linear(shape, classes), after=torch.detach)


def squeezed(shape, classes):
    return Wrapped(linear(shape, classes), after=torch.squeeze)


def fixed_batch(shape, classes):
    return Wrapped(linear(shape, classes), before=lambda x: x.view(32, -1))


def batch_norm(shape, classes, statistics=True):
    norm = nn.BatchNorm1d(64, track_running_stats=statistics)
    return nn.Sequential(nn.Flatten(), norm, nn.Linear(64, classes))


def breaks_in_training(shape, classes):
    def check(logits):
        assert not net.training, "no labels were given"
        return logits

    net = Wrapped(linear(shape, classes), after=check)
    return net


def few(model, x, x_adv, y):
    """Takes no batch as large as the experiment's."""
    assert len(x) < 5, "at most four images"
    return plain(model, x, x_adv, y)


def random_start(shape, classes):
    net = linear(shape, classes)
    net[1].weight.data = torch.tensor(np.random.randn(classes, 64) / 8, dtype=torch.float32)
    return net


# what fails in a run, and not before it

CALLS, STARTS, BROKEN = [], 0, False


def raises_later(model, x, x_adv, y, after):
    CALLS.append(len(x))
    if BROKEN and len(CALLS) > after:
        raise ArithmeticError("this batch\n\nis cursed")
    return plain(model, x, x_adv, y)


def starts(shape, classes):
    global STARTS
    STARTS -= 1
    if STARTS < 0:
        raise RuntimeError("no\nlibfoo")
    return linear(shape, classes)


def drawn_images(number):
    """Images and labels from global randomness, as a careless user draws them."""
    labels = np.arange(number) % 10
    images = np.random.rand(number, 1, 8, 8).astype(np.float32)
    images[:, 0, 0, :2] = [0.0, 1.0]
    return {"train": (images, labels), "test": (images, labels)}


def drawn_graph(agents):
    """A ring in an order from global randomness."""
    around = random.sample(range(agents), agents)
    return nx.Graph([(k, around[i - 1]) for i, k in enumerate(around)])


# attacks


def shifted(model, x, y, threat, *, generator, part=1.0):
    """As far as is allowed, into a random corner."""
    corner = torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1
    return threat.project(x + part * threat.eps * corner.to(x), x)


def ascends(model, x, y, threat, *, generator, steps=2):
    """PGD, as its users write it: with the gradients of the parameters left behind."""
    x_adv = threat.random_start(x, generator)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(model(x_adv), y, reduction="sum").backward()
        step = threat.eps / 4 * threat.steepest(x_adv.grad, x_adv)
        x_adv = threat.project(x_adv.detach() + step, x)
    return x_adv


def draws_globally(model, x, y, threat, *, generator):
    DRAWN.append((float(torch.rand(())), float(np.random.rand()), random.random()))
    return threat.project(x + threat.eps * DRAWN[-1][0], x)


def too_far(model, x, y, threat, *, generator):
    return (x + 2 * threat.eps).clamp(0, 1)


def out_of_the_box(model, x, y, threat, *, generator):
    return x + threat.eps


def flat_points(model, x, y, threat, *, generator):
    return x.flatten(1)


def no_points(model, x, y, threat, *, generator):
    return None


def not_a_number(model, x, y, threat, *, generator):
    return x * float("nan")


# optimisers


class Plain(torch.optim.Optimizer):
    """SGD, as its users write it."""

    def __init__(self, params, lr, scale=1.0):
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["seen"] = state.get("seen", torch.zeros_like(p)) + p.grad
                p.add_(p.grad, alpha=-group["lr"] * group["scale"])


class Elsewhere(Plain):
    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.data = p.data - 0.1 * p.grad


class Hoards(Plain):
    def step(self):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["past"] = [1.0]


# schedules


def halves(progress, top, after=0.5):
    return top if progress < after else top / 2


def doubles(progress, top):
    return 2 * top


def negative(progress, top):
    return -1.0


# strategies

same_diffusion = Strategy(sends="phi")
half_consensus = Strategy(sends="w", matrix=lambda A: (A + np.eye(len(A))) / 2)
same_centralized = Strategy("gradient", lambda A: np.full(A.shape, 1 / len(A)))
halves_all = Strategy("phi", lambda A: A / 2)


# partitions and rules


def stripes(labels, agents, seed, skip=0):
    return [np.arange(k + skip, len(labels), agents) for k in range(agents)]


def drawn_partition(labels, agents, seed):
    return np.array_split(np.random.permutation(len(labels)), agents)


def fewer(labels, agents, seed):
    return [np.arange(3)] * (agents - 1)


def lazy_rule(graph):
    """Half of what the averaging rule moves."""
    size = len(graph)
    links = nx.to_numpy_array(graph) + np.eye(size)
    return (links / links.sum(axis=0) + np.eye(size)) / 2


def careless_rule(graph):
    return nx.to_numpy_array(graph) + np.eye(len(graph))


def weighted(agents):
    return nx.Graph([(k, (k + 1) % agents, {"weight": 0.25}) for k in range(agents)])


class Beside(nn.Linear):
    """A linear model with one thing more, where PyTorch does not see it."""

    def __init__(self, classes, thing, used):
        super().__init__(64, classes)
        self.thing, self.used = thing, used

    def forward(self, x):
        return super().forward(self.used(self.thing, x.flatten(1)))


def _layer():
    return nn.Linear(64, 64)


def _ones(grad=True):
    return torch.ones(64, requires_grad=grad)


BESIDE = {
    "a list": lambda: ([_layer(), nn.ReLU()], lambda kept, x: kept[1](kept[0](x))),
    "a dict": lambda: ({"a": nn.Sequential(_layer())}, lambda kept, x: kept["a"](x)),
    "an object": lambda: (SimpleNamespace(a=_layer()), lambda kept, x: kept.a(x)),
    "a tensor": lambda: (_ones(), lambda kept, x: kept * x),
    "tensors": lambda: ([_ones()], lambda kept, x: kept[0] * x),
    "a new layer": lambda: (None, lambda kept, x: _layer()(x)),
    # nothing is wrong with these
    "frozen": lambda: ([_ones(False), _layer().requires_grad_(False)], lambda k, x: k[1](k[0] * x)),
    "unused": lambda: ([_layer()], lambda kept, x: x),
    "its own": lambda: (None, lambda kept, x: x + torch.zeros(64, requires_grad=True)),
}


def beside(shape, classes, case):
    return Beside(classes, *BESIDE[case]())
