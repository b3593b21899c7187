import pytest
import torch
from torch import nn

from raydist.adversary.awp import perturbed, untraced, weights
from raydist.vector import FlatModel, at, flat, frozen, kept, split, state, trainable, write


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)
    )
    model[4].bias.requires_grad_(False)
    return model


def everything(model):
    """All that a holder could leave changed, with the bits of the numbers."""
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [(id(t), t.data_ptr(), t.detach().reshape(-1).tolist()) for t in tensors],
        [t.grad is None or t.grad.tolist() for t in model.parameters()],
        [t.requires_grad for t in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
    )


def states(model):
    return [torch.full_like(flat(trainable(model).values()), 0.5), 0 * state(model) + 0.5]


HOLDERS = {
    "frozen": frozen,
    "kept": lambda model: kept([*model.parameters(), *model.buffers()]),
    "weights": lambda model: at(model, states(model)[0]),
    "state": lambda model: at(model, states(model)[1]),
    "flat model": lambda model: FlatModel(model).at(states(model)[1]),
    "perturbed": lambda model: perturbed(model, [torch.ones_like(w) / 3 for w in weights(model)]),
    "untraced": untraced,
}


def disturb(name, model):
    """What a user of the holder may do to the model inside."""
    if name == "untraced":
        torch.rand(3)
        model(torch.rand(5, 1, 4, 4))
    if name != "untraced" and name != "frozen":
        assert not torch.equal(model[0].weight, network()[0].weight) or name == "kept"
        with torch.no_grad():
            model[0].weight.mul_(3)
    if name not in ("perturbed", "frozen"):
        model[1].running_var.add_(1)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", HOLDERS)
def test_every_holder_leaves_the_model_as_found_also_after_an_error(name, fails):
    model = network()
    model[2].eval()
    holder = HOLDERS[name](model)
    before = everything(model)
    if fails:
        with pytest.raises(RuntimeError, match="inside"), holder:
            disturb(name, model)
            raise RuntimeError("inside")
    else:
        with holder:
            disturb(name, model)
    assert everything(model) == before


@pytest.mark.parametrize("wrong", [1, -1])
def test_a_vector_of_another_length_is_refused_and_changes_nothing(wrong):
    model = network()
    before, w = everything(model), torch.zeros(len(state(model)) + wrong)
    with pytest.raises(ValueError, match="a vector has shape"), at(model, w):
        pass
    assert everything(model) == before


def test_a_model_is_held_at_weights_alone_or_at_a_state():
    model = network()
    w, s = states(model)
    assert len(s) == len(w) + 8  # a mean and a variance for each of 4 channels
    with at(model, w) as held:
        assert held is model and (model[0].weight == 0.5).all()
        assert (model[1].running_mean == 0).all()  # a statistic, which stays
        assert not (model[4].bias == 0.5).any()  # not trainable
    with at(model, s):
        assert torch.equal(state(model), s) and (model[1].running_mean == 0.5).all()


def test_splitting_is_the_inverse_of_flattening():
    tensors = [torch.zeros(2, 2), torch.ones(1)]
    with kept(tensors):
        write(tensors, torch.arange(5.0))
        assert flat(tensors).tolist() == [0, 1, 2, 3, 4]
        assert tensors[0].tolist() == [[0, 1], [2, 3]]
        assert all(map(torch.equal, split(flat(tensors), tensors), tensors))
    assert flat(tensors).tolist() == [0, 0, 0, 0, 1]


def test_a_buffer_that_a_pass_replaces_comes_back():
    model = network()
    own = model[1].running_mean
    with untraced(model):
        model[1].running_mean = torch.ones(4)
    assert model[1].running_mean is own and not own.any()


def test_a_model_without_trainable_parameters_has_no_vector():
    with pytest.raises(ValueError, match="no trainable parameter"):
        state(network().requires_grad_(False))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_flat_model_has_the_state_of_its_module(channels_last):
    held = FlatModel(network(), channels_last)
    assert torch.equal(held.model_order(held.state()), state(network()))
    assert len(held.statistics) == 8 and held.w.data_ptr() == held.state_vector.data_ptr()
