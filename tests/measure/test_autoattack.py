"""The adapter against the package itself, and each known trap of the package."""

import dataclasses
import logging
import pickle
import random
import sys

import numpy as np
import pyautoattack
import pytest
import torch
from pyautoattack import checks
from sklearn.datasets import load_digits
from torch import nn

from raydist.adversary.threat import ThreatModel
from raydist.measure import autoattack as module
from raydist.measure.autoattack import autoattack
from raydist.measure.cascade import FEW_CLASSES, FLAGS, STANDARD, Cascade
from raydist.measure.guard import Guarded

LINF = ThreatModel("linf", 0.08)
PACKAGE_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def digits(classes):
    bunch = load_digits(n_class=classes)
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return x, torch.from_numpy(bunch.target).long()


def trained(classes, seed=0, steps=150):
    """A small net, trained with the full batch for about a second."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))
    x, y = digits(classes)
    optim = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optim.zero_grad()
        nn.functional.cross_entropy(model(x[:-100]), y[:-100]).backward()
        optim.step()
    optim.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def net():
    return trained(10)


@pytest.fixture(scope="module")
def held_out():
    x, y = digits(10)
    return x[-40:], y[-40:]


class Masked(nn.Module):
    """Quantised input: the gradient with respect to the pixels is zero everywhere."""

    def __init__(self, net, levels=4):
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x):
        return self.net((x * self.levels).round() / self.levels)


class Mapped(nn.Module):
    """A net with a function of (input, logits) behind it."""

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(x, self.net(x))


def fewer(init_hyperparam):
    def init(attack, x):
        init_hyperparam(attack, x)
        attack.n_queries = 300

    return init


def quick(model, x, y, **options):
    """The cheapest attack only."""
    options = {"classes": 10, "attacks": ("apgd-ce",), "threat": LINF} | options
    return autoattack(model, x, y, options.pop("threat"), **options)


# --- agreement with the package


@pytest.mark.parametrize(
    ("norm", "eps"),
    [
        ("linf", 0.08),
        pytest.param("l2", 0.5, marks=pytest.mark.long),
        pytest.param("l1", 0.7, marks=pytest.mark.long),
    ],
)
def test_final_verdict_equals_the_packages_own_standard_run(net, held_out, norm, eps, monkeypatch):
    x, y = held_out
    if norm != "linf":  # one query is slow there: fewer of them, on both sides
        square = pyautoattack.square.SquareAttack
        monkeypatch.setattr(square, "init_hyperparam", fewer(square.init_hyperparam))
    verdict = autoattack(net, x, y, ThreatModel(norm, eps), classes=10, batch=40, seed=3)
    with torch.random.fork_rng([]):
        package = pyautoattack.AutoAttack(net, eps=eps, norm=PACKAGE_NORM[norm], seed=3)
        x_adv, _ = package.run_standard_evaluation(x, y, batch_size=40)
    expected = (net(x_adv).argmax(1) == y).numpy()
    np.testing.assert_array_equal(verdict.robust, expected)
    assert 0 < verdict.accuracies["square"] < verdict.accuracies["clean"]
    assert verdict.accuracies["square"] == expected.mean()
    assert verdict.standard and verdict.attacks == STANDARD
    assert verdict.flags == ()  # an honest model


@pytest.mark.parametrize("norm", PACKAGE_NORM)
def test_parameters_are_those_of_the_packages_standard_version(norm):
    eps, seed, device = 0.1, 5, torch.device("cpu")
    guard = Guarded(nn.Identity(), 10, set())
    ours = module.perturbations(guard, ThreatModel(norm, eps), seed, device)
    theirs = pyautoattack.AutoAttack(None, eps=eps, norm=PACKAGE_NORM[norm], seed=seed)
    theirs.fab.targeted = True  # as in its run of fab-t
    pairs = {
        "apgd-ce": theirs.apgd,
        "apgd-t": theirs.apgd_targeted,
        "fab-t": theirs.fab,
        "square": theirs.square,
    }
    wiring = {"model", "predict", "logger", "device"}
    for name, attack in pairs.items():
        mine = vars(ours[name].__self__)
        assert {k: v for k, v in mine.items() if k not in wiring} == {
            k: v for k, v in vars(attack).items() if k not in wiring
        }, name


# --- the verdict


def test_masks_and_accuracies_of_a_verdict():
    broken_by = np.array([-1, 0, 1, 2, -1, 3, 4, 4], dtype=np.int8)
    verdict = Cascade(STANDARD, broken_by, (0.0,) * 4, frozenset())
    assert verdict.robust.tolist() == [True, False, False, False, True, False, False, False]
    assert verdict.left_by["apgd-t"].tolist() == [True, False, False, False, True, True, True, True]
    assert verdict.accuracies == {
        "clean": 7 / 8,
        "apgd-ce": 6 / 8,
        "apgd-t": 5 / 8,
        "fab-t": 4 / 8,
        "square": 2 / 8,
    }
    assert verdict.flags == ("square-stronger",)
    assert dataclasses.replace(verdict, broken_by=broken_by.clip(max=3)).flags == ()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(verdict)).broken_by, broken_by)


def test_one_image_in_a_thousand_left_to_square_is_no_flag():
    broken_by = np.full(1000, -1, dtype=np.int8)
    broken_by[7] = 4
    some, whole = (
        Cascade(STANDARD, part, (1.0, 2.0, 3.0, 4.0), frozenset())
        for part in (broken_by[:100], broken_by)
    )
    assert some.flags == ("square-stronger",)
    assert whole.flags == ()


def test_square_alone_is_stronger_than_nothing():
    broken_by = np.array([-1, 1, 1], dtype=np.int8)
    assert Cascade(("square",), broken_by, (0.0,), frozenset()).flags == ()


def test_shards_of_whole_batches_give_the_masks_of_one_run(net, held_out):
    x, y = held_out
    right = net(x).argmax(1) == y  # so that shards do not cut the images into other batches
    x, y = x[right][:32], y[right][:32]
    whole = quick(net, x, y, batch=16, seed=2)
    shards = [quick(net, x[i : i + 16], y[i : i + 16], batch=16, seed=2) for i in (0, 16)]
    assert 0 < whole.robust.sum() < 32
    parts = np.concatenate([shard.broken_by for shard in shards])
    np.testing.assert_array_equal(parts, whole.broken_by)


def test_budget_zero_is_the_clean_verdict(net, held_out):
    x, y = held_out
    verdict = autoattack(net, x, (y + (y == 3)) % 10, ThreatModel("linf", 0.0), classes=10)
    expected = np.where((net(x).argmax(1) == (y + (y == 3)) % 10).numpy(), -1, 0)
    np.testing.assert_array_equal(verdict.broken_by, expected)
    assert len(set(expected)) == 2
    assert verdict.seconds == (0.0,) * 4  # no attack was run


def test_a_large_budget_breaks_every_image(net, held_out):
    x, y = held_out
    verdict = quick(net, x, y, threat=ThreatModel("linf", 0.9))
    assert not verdict.robust.any()


def test_an_empty_shard_has_an_empty_verdict(net, held_out):
    x, y = held_out
    verdict = quick(net, x[:0], y[:0])
    assert verdict.broken_by.shape == (0,)
    assert np.isnan(verdict.accuracies["clean"])


def test_progress_reports_every_batch(net, held_out):
    x, y = held_out
    seen = []
    verdict = quick(net, x, y, batch=16, on_progress=lambda *report: seen.append(report))
    right = int((verdict.broken_by != 0).sum())
    assert seen[:3] == [("clean", 16, 40), ("clean", 32, 40), ("clean", 40, 40)]
    assert seen[3:] == [("apgd-ce", min(done, right), right) for done in range(16, right + 16, 16)]


# --- the traps


def test_trap_state_file_is_not_used(net, held_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyautoattack.autoattack.EvaluationState, "to_disk", None)
    quick(net, *held_out)
    assert list(tmp_path.iterdir()) == []


def test_trap_dynamic_counter_does_not_stick_to_the_next_model(net, held_out, monkeypatch):
    x, y = held_out[0][:4], held_out[1][:4]

    def purified(x, logits):
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            torch.autograd.grad(net(point).sum(), point)
        return logits

    monkeypatch.setitem(checks.funcs, "grad", 3)  # left by a direct use of the package
    before = dict(checks.funcs)
    assert "dynamic" in quick(Mapped(net, purified), x, y).flags
    assert checks.funcs == before
    assert "dynamic" not in quick(net, x, y).flags
    assert checks.funcs == before


def test_trap_trace_function_survives(net, held_out):
    x, y = held_out[0][:2], held_out[1][:2]

    def tracer(frame, event, arg):
        return None

    def failing(x, logits):
        raise RuntimeError("no logits today")

    before = sys.gettrace()
    try:
        sys.settrace(tracer)
        quick(net, x, y, threat=ThreatModel("linf", 0.0))
        kept = sys.gettrace()
        with pytest.raises(RuntimeError, match="today"):
            quick(Mapped(net, failing), x, y)
        kept_after_error = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept is tracer
    assert kept_after_error is tracer


def test_trap_global_random_state_is_left_alone(net, held_out):
    random.seed(1)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()
    python_before = random.getstate()
    one = quick(net, *held_out, seed=4)
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before[1])
    assert random.getstate() == python_before
    torch.rand(7)
    np.testing.assert_array_equal(quick(net, *held_out, seed=4).broken_by, one.broken_by)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trap_global_random_state_of_the_gpu_is_left_alone(held_out):
    model, x, y = trained(10).cuda(), held_out[0].cuda(), held_out[1].cuda()
    before = torch.cuda.get_rng_state()
    on_gpu = quick(model, x, y)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert on_gpu.accuracies["apgd-ce"] == pytest.approx(
        quick(model.cpu(), *held_out).accuracies["apgd-ce"], abs=0.05
    )


@pytest.mark.parametrize("classes", [2, 3, pytest.param(4, marks=pytest.mark.long), 6])
def test_trap_fewer_than_ten_classes(classes):
    x, y = digits(classes)
    verdict = autoattack(
        trained(classes, steps=40), x[-6:], y[-6:], ThreatModel("linf", 0.12), classes=classes
    )
    assert verdict.attacks == (STANDARD if classes >= 4 else FEW_CLASSES)
    assert verdict.standard == (classes >= 4)
    assert ("few-classes" in verdict.flags) == (classes < 4)
    assert "targeted DLR" in FLAGS["few-classes"]
    guard = Guarded(nn.Identity(), classes, set())
    seen = module.perturbations(guard, LINF, 0, torch.device("cpu"))
    assert seen["apgd-t"].__self__.n_target_classes == classes - 1
    assert seen["fab-t"].__self__.n_target_classes == classes - 1


def test_trap_restarts_of_the_custom_version_are_those_of_the_standard_one(net, held_out):
    calls = []

    def counted(x, logits):
        calls.append(len(x))
        return logits

    verdict = quick(Mapped(net, counted), *held_out, attacks=("apgd-ce",))
    assert verdict.robust.any()
    # 5 random, 1 range, 1 dynamic; clean; attack: 1 + (1 + 100) per restart; final
    assert len(calls) == 7 + 1 + 102 + 1


def test_trap_per_attack_results_are_kept(net, held_out):
    x, y = held_out
    first = quick(net, x, y)
    both = quick(net, x, y, attacks=("apgd-ce", "fab-t"))
    np.testing.assert_array_equal(both.left_by["apgd-ce"], first.robust)
    assert (both.robust <= first.robust).all()
    assert len(both.seconds) == 2 and min(both.seconds) > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("only_attacked", [False, True])
def test_trap_nan_logits_never_count_as_robust(net, held_out, bad, only_attacked):
    x, y = held_out
    clean = {tuple(image.flatten().tolist()) for image in x}

    def diverged(x, logits):
        spared = [only_attacked and tuple(image.flatten().tolist()) in clean for image in x]
        return torch.where(torch.tensor(spared).unsqueeze(1), logits, bad)

    with pytest.raises(FloatingPointError, match="diverged"):
        quick(Mapped(net, diverged), x, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x * 255}, "write x / 255"),
        ({"x": lambda x: x - 0.5}, "write x / 255"),
        ({"x": lambda x: x * float("nan")}, "or is nan"),
        ({"x": lambda x: x.double()}, "write x.float()"),
        ({"x": lambda x: x.flatten(1)}, "N, C, H, W"),
        ({"y": lambda y: y.int()}, "write y.long()"),
        ({"y": lambda y: y[:-1]}, "int64"),
        ({"y": lambda y: y + 5}, "labels below classes"),
        ({"y": lambda y: y - 5}, "labels below classes"),
        ({"classes": 12}, "classes is 12, but the model's output"),
        ({"classes": 1}, "classes is 1"),
        ({"classes": 3, "attacks": ("apgd-t",)}, "expected >= 4 with apgd-t"),
        ({"batch": 0}, "batch is 0"),
        ({"attacks": ("pgd",)}, "expected different names from"),
        ({"attacks": ()}, "expected different names from"),
        ({"attacks": ("fab", "fab")}, "expected different names from"),
        ({"threat": ThreatModel("linf", 0.1, (-1.0, 1.0))}, "rescale x"),
    ],
)
def test_trap_wrong_input_is_refused_clearly(net, held_out, change, message):
    x, y = held_out
    x, y = change.pop("x", lambda x: x)(x), change.pop("y", lambda y: y)(y)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        quick(net, x, y, **change)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_trap_images_too_small_for_square_are_refused(norm):
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"its {norm} form does not tile images of 4 x 4"):
        autoattack(nn.Flatten(), x, y, ThreatModel(norm, 0.1), classes=16)


def test_trap_training_mode_leaves_batch_norm_and_mode_as_found(held_out):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quick(model, *held_out)
    assert [part.training for part in model] == [True, True, False]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_trap_zero_gradient_warnings_become_one_flag(net, held_out, caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    verdict = quick(Masked(net), *held_out, attacks=("apgd-ce", "apgd-t"))
    assert verdict.flags == ("partial", "zero-gradient")
    assert caplog.records == [] and len(recwarn) == 0
    assert capfd.readouterr() == ("", "")


def test_trap_parameter_gradients_are_not_left_behind(held_out):
    model = trained(10, steps=5)
    model[1].bias.requires_grad_(False)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    quick(model, *held_out, attacks=("fab-t",))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


def test_trap_channels_last_images(net, held_out):
    x, y = held_out
    three = Mapped(nn.Identity(), lambda x, _: net(x.mean(1, keepdim=True)))
    coloured = x.repeat(1, 3, 1, 1)
    moved = coloured.to(memory_format=torch.channels_last)
    assert not moved.is_contiguous()
    plain, verdict = (quick(three, z, y, attacks=("apgd-t",)) for z in (coloured, moved))
    np.testing.assert_array_equal(verdict.broken_by, plain.broken_by)


def test_trap_square_writes_into_the_logits_of_a_model_that_returns_its_input():
    # the model is the identity: label = brightest pixel, robust iff it leads by more than 2 eps
    x = torch.tensor([[0.5, 0.8, 0.3, 0.1], [0.5, 0.6, 0.1, 0.1]]).view(2, 1, 2, 2)
    kept, y = x.clone(), torch.tensor([1, 1])
    verdict = quick(nn.Flatten(), x, y, classes=4, attacks=("square",))
    assert verdict.robust.tolist() == [True, False]
    assert torch.equal(x, kept)


# --- models that hide their gradient


def test_masked_model_has_zero_gradients_and_square_breaks_far_more(net, held_out):
    x, y = held_out
    verdict = autoattack(Masked(net), x, y, ThreatModel("linf", 0.13), classes=10)
    white_box = verdict.accuracies["fab-t"]
    assert verdict.accuracies["clean"] - white_box < 0.2
    assert white_box - verdict.accuracies["square"] > 0.2
    assert verdict.flags == ("zero-gradient", "square-stronger")


def test_model_that_detaches_its_input_is_flagged(net, held_out):
    x, y = held_out[0][:8], held_out[1][:8]
    detached = Mapped(net, lambda x, logits: net(x.detach()))
    assert "zero-gradient" in quick(detached, x, y).flags


def test_randomised_model_is_flagged(net, held_out):
    noisy = Mapped(net, lambda x, logits: logits + 0.1 * torch.randn(logits.shape))
    assert "randomised" in quick(noisy, *held_out).flags


def test_probabilities_are_flagged(net, held_out):
    softmax = Mapped(net, lambda x, logits: logits.softmax(1))
    assert "probabilities" in quick(softmax, *held_out).flags
