"""What a run would meet in its rounds or at its end is told before it starts."""

import helpers_foreign
import numpy as np
import pytest
import torch
from experiments import digits
from safetensors.torch import load_file
from test_foreign import scramble

from raydist import run_experiment
from raydist.config.experiment import validate
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.engine.probe import probe
from raydist.errors import InputError

ONE = {"data": {"batch": 1}}
NO_STATISTICS = {"model": {"params": {"statistics": False}}}


@pytest.mark.parametrize(
    ("name", "tables", "line"),
    [
        ("subtracts_in_place", {}, "changes its images in place"),
        ("detached_inputs", {}, "gives no gradient with respect to its images"),
        ("detached_outputs", {}, "returned logits without a gradient"),
        ("squeezed", {}, r"returned \(10,\) for 1 images, expected logits of shape \(1, 10\)"),
        ("squeezed", ONE, r"returned \(10,\) for 1 images"),
        ("fixed_batch", {}, "does not take images of shape .* mat1 and mat2"),
        ("batch_norm", ONE, r"does not learn from one image at a time .* write data.batch = 2"),
        (
            "batch_norm",
            NO_STATISTICS,
            r"does not take one image alone .* write track_running_stats = True",
        ),
        ("breaks_in_training", {}, "does not take images of shape .* no labels were given"),
    ],
)
def test_a_model_that_training_or_evaluation_cannot_use(name, tables, line):
    model = {"name": f"helpers_foreign:{name}"} | tables.get("model", {})
    with pytest.raises(InputError, match=rf'^model "helpers_foreign:{name}" {line}'):
        make_plan(validate(digits(**(tables | {"model": model}))))


@pytest.mark.parametrize(
    ("case", "place", "remedy"),
    [
        ("a list", "self.thing[0].weight of shape (64, 64)", "self.thing = nn.ModuleList(...)"),
        ("a dict", "self.thing['a'].0.weight of shape", "self.thing = nn.ModuleDict(...)"),
        ("an object", "self.thing.a.weight of shape", "self.thing as a torch.nn.Module"),
        ("a tensor", "self.thing of shape (64,)", "self.thing = nn.Parameter(...)"),
        ("tensors", "self.thing[0] of shape", "self.thing = nn.ParameterList(...)"),
        ("a new layer", "weights of shape", "their layer as an attribute of the model"),
    ],
)
def test_weights_that_would_stay_untrained_are_refused_by_name(case, place, remedy):
    model = {"name": "helpers_foreign:beside", "params": {"case": case}}
    with pytest.raises(InputError) as error:
        make_plan(validate(digits(model=model)))
    line = str(error.value)
    assert f"computes with {place}" in line and f"would stay untrained: write {remedy}" in line


@pytest.mark.parametrize("case", ["frozen", "unused", "its own"])
def test_what_needs_no_training_is_not_taken_for_weights(case):
    make_plan(validate(digits(model={"name": "helpers_foreign:beside", "params": {"case": case}})))


def test_a_model_of_ours_and_one_image():
    model = {"name": "preact-resnet-18", "width": 0.0625}
    with pytest.raises(InputError, match=r"one image at a time .* write data.batch = 2 or more"):
        make_plan(validate(digits(model=model, **ONE)))
    assert probe(validate(digits(**ONE)), make_plan(validate(digits())).data)[0] == 650


def test_a_loss_sees_the_batch_of_training():
    with pytest.raises(InputError, match=r"^loss: AssertionError: at most four images"):
        make_plan(validate(digits(loss={"name": "helpers_foreign:few"})))
    make_plan(validate(digits(loss={"name": "helpers_foreign:few"}, data={"batch": 4})))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", ["scripted", "lazy", "random_start"])
def test_scripted_lazy_and_own_starts_are_trained_as_any_other(name):
    """The twin is the layer itself, started alike."""

    def weights(name, i):
        scramble(i)
        return run_experiment(digits(model={"name": f"helpers_foreign:{name}"})).weights

    found = weights(name, 1)
    assert found.shape == (4, 650) and np.abs(found[0] - found[1]).max() > 0
    np.testing.assert_array_equal(found, weights(name, 2))
    if name == "scripted":
        np.testing.assert_array_equal(found, weights("linear", 3))


def test_a_layer_of_the_first_pass_is_trained_exchanged_and_saved(tmp_path):
    tree = digits(model={"name": "helpers_foreign:late"})
    pool = LocalPool(make_plan(validate(tree)))
    starts = pool.states()
    pool.shutdown()
    assert all(np.array_equal(starts[0], start) for start in starts)
    result = run_experiment(tree, out=tmp_path / "run")
    saved = load_file(tmp_path / "run/weights/agent-000.safetensors")
    np.testing.assert_array_equal(
        torch.cat([saved[n].flatten() for n in ("bias", "first.weight", "first.bias")]),
        result.weights[0].astype(np.float32),
    )
    assert (result.weights[0][10:] != starts[0][10:]).mean() > 0.5


def test_the_probe_leaves_no_trace():
    def draws():
        return torch.get_rng_state().tolist(), str(np.random.get_state())

    before = draws()
    make_plan(validate(digits(model={"name": "helpers_foreign:drawing_net"})))
    assert draws() == before and helpers_foreign.DRAWN is not None
