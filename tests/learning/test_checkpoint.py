import copy
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from raydist.learning.checkpoint import KEY_MAPS, add_noise, load, reset_last_layer
from raydist.learning.model import build
from raydist.seeding import Purpose, torch_generator

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def conv(inputs, outputs, size=3, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """The blocks of the published nets, with their names."""

    def __init__(self, kind, inputs, outputs, stride):
        super().__init__()
        self.kind, changes = kind, stride != 1 or inputs != outputs
        self.conv1, self.conv2 = conv(inputs, outputs, 3, stride), conv(outputs, outputs)
        self.bn1 = nn.BatchNorm2d(outputs if kind == "resnet-18" else inputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = self.convShortcut = None
        if changes and kind == "wide":
            self.convShortcut = conv(inputs, outputs, 1, stride)
        elif changes:
            norm = [nn.BatchNorm2d(outputs)] if kind == "resnet-18" else []
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), *norm)

    def forward(self, x):
        change = self.shortcut or self.convShortcut or nn.Identity()
        if self.kind == "resnet-18":
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(out + change(x))
        a = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return out + (x if isinstance(change, nn.Identity) else change(a))


def stage(kind, inputs, outputs, stride, blocks):
    rest = [Block(kind, outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(kind, inputs, outputs, stride), *rest)


class ResNet18(nn.Module):
    def __init__(self, kind, channels, classes):
        super().__init__()
        self.kind, (a, b, c, d) = kind, channels
        self.conv1 = conv(3, a)
        self.layer1, self.layer2 = stage(kind, a, a, 1, 2), stage(kind, a, b, 2, 2)
        self.layer3, self.layer4 = stage(kind, b, c, 2, 2), stage(kind, c, d, 2, 2)
        if kind == "resnet-18":
            self.bn1 = nn.BatchNorm2d(a)
        else:
            self.bn = nn.BatchNorm2d(d)
        self.linear = nn.Linear(d, classes)

    def forward(self, x):
        out = self.conv1(x)
        out = F.relu(self.bn1(out)) if self.kind == "resnet-18" else out
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = out if self.kind == "resnet-18" else F.relu(self.bn(out))
        return self.linear(out.mean((2, 3)))


class Layered(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.layer = stage("wide", *args)


class WideResNet(nn.Module):
    def __init__(self, blocks, channels, classes):
        super().__init__()
        stem, a, b, c = channels
        self.conv1 = conv(3, stem)
        self.block1 = Layered(stem, a, 1, blocks)
        self.sub_block1 = Layered(stem, a, 1, blocks)  # not used in forward, as in TRADES
        self.block2, self.block3 = Layered(a, b, 2, blocks), Layered(b, c, 2, blocks)
        self.bn1 = nn.BatchNorm2d(c)
        self.fc = nn.Linear(c, classes)

    def forward(self, x):
        out = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            out = block.layer(out)
        return self.fc(F.relu(self.bn1(out)).mean((2, 3)))


PUBLISHED = {
    "resnet-18": (lambda: ResNet18("resnet-18", (8, 16, 32, 64), 10), 0.125),
    "preact-resnet-18": (lambda: ResNet18("preact-resnet-18", (8, 16, 32, 64), 10), 0.125),
    "wrn-16-4": (lambda: WideResNet(2, (2, 8, 16, 32), 10), 0.125),
    "wrn-28-10": (lambda: WideResNet(4, (2, 20, 40, 80), 10), 0.125),
    "wrn-34-10": (lambda: WideResNet(5, (2, 20, 40, 80), 10), 0.125),
}


def drawn(model, seed=0):
    """The model in eval mode, every number in it random."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(17)
            continue
        draw = torch.rand(value.shape, generator=generator)
        size = value[0].numel()  # 1 for vectors: variances must be above 0
        value.copy_(draw + 0.5 if value.ndim == 1 else (draw - 0.5) * 2 / size**0.5)
    return model.eval()


def published(name):
    with torch.random.fork_rng(devices=[]):
        return drawn(PUBLISHED[name][0]())


def ours(name, seed=5, **params):
    return build(name, (3, 16, 16), 10, width=PUBLISHED[name][1], seed=seed, **params)


def images(n=4):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def same(a, b, x=None):
    x = images() if x is None else x
    with torch.no_grad():
        return torch.allclose(a.eval()(x), b.eval()(x), rtol=1e-4, atol=1e-5)


def written(folder, content, file="weights.pt"):
    (save_file if file.endswith("safetensors") else torch.save)(content, folder / file)
    return folder / file


def small(seed=0, **params):
    return build("small-cnn", (3, 16, 16), 10, seed=seed, **params)


@pytest.mark.parametrize("name", KEY_MAPS)
def test_every_key_map_makes_the_model_the_published_one(name, tmp_path):
    net, model = published(name), ours(name)
    file = written(tmp_path, {f"module.{k}": v for k, v in net.state_dict().items()})
    assert not same(net, model)
    load(model, file, KEY_MAPS[name])
    assert same(net, model)
    tracked = [v.item() for k, v in model.state_dict().items() if "num_batches" in k]
    assert set(tracked) == {17}


def test_a_published_net_loads_behind_our_normalisation(tmp_path):
    net, model = published("resnet-18"), ours("resnet-18", **STATISTICS)
    load(model, written(tmp_path, net.state_dict()), KEY_MAPS["resnet-18"])
    mean, std = (torch.tensor(STATISTICS[k])[:, None, None] for k in ("mean", "std"))
    assert same(net, nn.Sequential(model), images()) is False
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images()), net((images() - mean) / std))


def test_statistics_of_the_published_net_can_be_dropped_by_the_map(tmp_path):
    net, model = published("resnet-18"), ours("resnet-18")
    state = {**net.state_dict(), "mu": torch.zeros(3), "sigma": torch.ones(3)}
    file = written(tmp_path, state)
    with pytest.raises(ValueError, match=r"0 missing, 2 \(mu, sigma\) unexpected"):
        load(model, file, KEY_MAPS["resnet-18"])
    load(model, file, {**KEY_MAPS["resnet-18"], "^(mu|sigma)$": ""})
    assert same(net, model)


@pytest.mark.parametrize("saved", [{}, STATISTICS])
@pytest.mark.parametrize("loaded", [{}, STATISTICS])
@pytest.mark.parametrize("file", ["a.safetensors", "a.pt"])
def test_our_own_files_load_with_and_without_normalisation(saved, loaded, file, tmp_path):
    source, model = small(1, **saved), small(2, **loaded)
    load(model, written(tmp_path, source.state_dict(), file))
    inner = [m[-1] if p else m for m, p in ((source, saved), (model, loaded))]
    assert same(*inner)


@pytest.mark.parametrize(
    "wrap",
    [
        *("state_dict", "model_state_dict", "model", "net", "weights", "params"),
        *("ema", "state_dict_ema", "model_ema"),
    ],
)
def test_weights_are_found_inside_what_a_script_saved(wrap, tmp_path):
    source, model = small(1), small(2)
    content = {
        "epoch": 3,
        "acc": 0.5,
        wrap: {f"module.{k}": v for k, v in source.state_dict().items()},
    }
    load(model, written(tmp_path, content, "ckpt.pth"))
    assert same(source, model)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "model.", "net.", "module._orig_mod.", "model.net."]
)
def test_prefixes_that_all_names_have_in_common_are_dropped(prefix, tmp_path):
    source, model = small(1), small(2)
    load(model, written(tmp_path, {prefix + k: v for k, v in source.state_dict().items()}))
    assert same(source, model)


def test_the_average_of_torch_is_loaded_without_its_count(tmp_path):
    source, model = small(1), small(2)
    average = torch.optim.swa_utils.AveragedModel(source)
    load(model, written(tmp_path, average.state_dict()))
    assert same(source, model)


def test_a_part_named_model_within_one_named_model_loses_one_of_both(tmp_path):
    """A Lightning module around a net that has a part of the same name."""
    source, model = nn.Module(), nn.Module()
    source.model, model.model = small(1), small(2)
    load(model, written(tmp_path, {f"model.{k}": v for k, v in source.state_dict().items()}))
    assert same(source.model, model.model)


def test_two_sets_of_weights_are_not_chosen_from_unless_they_are_one(tmp_path):
    first, second, model = (small(seed) for seed in (1, 2, 3))
    state, ema = first.state_dict(), second.state_dict()
    file = written(tmp_path, {"state_dict": state, "extra": {"state_dict_ema": ema}})
    load(model, file)  # what stands elsewhere is not looked for
    assert same(first, model)
    for content in (
        {"state_dict": state, "state_dict_ema": ema},
        {"model": {"net": state, "ema": ema}},
    ):
        file = written(tmp_path, content)
        with pytest.raises(
            ValueError, match=r'\] and others in \[.*torch.load\(".*\)\[".*ema"\], "o'
        ):
            load(small(3), file)
    load(second, written(tmp_path, {"model": state, "ema": small(1).state_dict()}))
    assert same(first, second)
    other = {k: v for k, v in ema.items() if k != "0.weight"}  # of another model
    load(model, written(tmp_path, {"ema": other, "weights": small(4).state_dict()}))
    assert same(small(4), model)


@pytest.mark.parametrize(("save", "ending"), [(save_file, "pt"), (torch.save, "safetensors")])
def test_the_ending_of_a_file_does_not_matter(save, ending, tmp_path):
    source, model = small(1), small(2)
    save(source.state_dict(), tmp_path / f"a.{ending}")
    load(model, tmp_path / f"a.{ending}")
    assert same(source, model)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    model, state = small(2), small(1).state_dict()
    before = copy.deepcopy(model.state_dict())
    name = list(state)[2]
    state[name] = torch.full_like(state[name], value)
    with pytest.raises(
        ValueError, match=f"holds {re.escape(name)} with values that are not finite"
    ):
        load(model, written(tmp_path, state))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    load(model, tmp_path / "weights.pt", finite=False)
    assert not model.state_dict()[name].isfinite().any()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.to_sparse(), "as a sparse tensor, expected torch.float32: save tensor.to_de"),
        (lambda t: t.to("meta"), "without its numbers (device meta), expected torch.float32: "),
        (lambda t: t.to(torch.complex64), "as complex64, expected torch.float32: save tensor.real"),
        (lambda t: t.int(), "as int32, expected torch.float32: save the weights before"),
        (lambda t: t > 0, "as bool, expected torch.float32: "),
    ],
    ids=["sparse", "meta", "complex", "integer", "boolean"],
)
def test_weights_of_another_kind_are_refused_by_name(change, line, tmp_path):
    state = small(1).state_dict()
    name = next(n for n, tensor in state.items() if tensor.ndim > 1)
    state[name] = change(state[name])
    with pytest.raises(ValueError) as error:
        load(small(2), written(tmp_path, state))
    assert f"holds {name} {line}" in str(error.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda file: None, "does not exist, expected a file of weights"),
        (lambda file: file.mkdir(), "is a folder, expected a file of weights"),
        (lambda file: file.touch(), "is empty, expected a file of weights"),
        (lambda file: cut(file, torch.save), "(a part of it is missing): fetch it again"),
        (lambda file: cut(file, save_file), "(a part of it is missing): fetch it again"),
    ],
    ids=["gone", "folder", "empty", "cut off", "safetensors cut off"],
)
def test_a_file_without_weights_is_told_with_what_is_wrong(make, line, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(ValueError) as error:
        load(small(2), tmp_path / "a")
    assert str(error.value).startswith(f"{tmp_path}/a ") and line in str(error.value)


def cut(file, save):
    save(small(1).state_dict(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_what_only_code_can_read_is_named(tmp_path):
    file = written(tmp_path, {"state_dict": small(1).state_dict(), "acc": np.float64(0.5)})
    with pytest.raises(ValueError, match=r"\(it holds a numpy.*scalar, which only code can read\)"):
        load(small(2), file)
    with pytest.raises(ValueError, match=r"\(it holds a torch.nn.*Linear, which only code"):
        load(small(2), written(tmp_path, nn.Linear(2, 2)))
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"\(it is a pointer of Git LFS\): write git lfs pull"):
        load(small(2), file)


@pytest.mark.parametrize(
    ("key_map", "line"),
    [
        ({"*foo": ""}, r'key_map "*foo" = "" is no regular expression'),
        ({"a": "", "(": "x"}, 'key_map "(" = "x" is no regular expression'),
        ({r"^(0)\.": r"\2."}, r'key_map "^(0)\." = "\2." is no regular expression'),
    ],
)
def test_a_wrong_expression_is_named(key_map, line, tmp_path):
    file = written(tmp_path, small(1).state_dict())
    with pytest.raises(ValueError, match=re.escape(line)):
        load(small(2), file, key_map)


def test_a_part_named_module_keeps_its_name(tmp_path):
    def wrapped(seed):
        model = nn.Module()
        model.module = small(seed)
        return model

    source, model = wrapped(1), wrapped(2)
    load(model, written(tmp_path, source.state_dict()))
    assert same(source.module, model.module)


def test_old_files_without_counts_of_batches_load(tmp_path):
    net, model = published("wrn-16-4"), ours("wrn-16-4")
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    load(model, written(tmp_path, state), KEY_MAPS["wrn-16-4"])
    assert same(net, model)


def test_weights_are_cast_to_the_type_of_the_model(tmp_path):
    source, model = small(1), small(2).double()
    load(model, written(tmp_path, source.state_dict()))
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert same(source.double(), model, images().double())


def test_a_file_that_does_not_fit_is_refused_whole(tmp_path):
    model = small(2)
    before = copy.deepcopy(model.state_dict())
    state = small(1).state_dict()
    first, second = list(state)[:2]
    state = {k: v for k, v in state.items() if k != first}
    state[second] = torch.zeros(3)
    state |= {f"extra{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(ValueError) as error:
        load(model, written(tmp_path, state))
    text = str(error.value)
    assert f"1 ({first}) missing" in text
    assert "5 (extra0, extra1, extra2, ...) unexpected" in text
    shape = tuple(before[second].shape)
    assert f"1 ({second} (3,), expected {shape}) of another shape" in text
    assert "key_map" in text and "\n" not in text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("fault", ["missing", "unexpected", "of another shape"])
def test_one_fault_is_enough(fault, tmp_path):
    state = small(1).state_dict()
    if fault == "missing":
        del state["0.weight"]
    else:
        state["0.weight" if "shape" in fault else "more"] = torch.zeros(3)
    with pytest.raises(ValueError, match=rf"1 \(.*\) {fault}"):
        load(small(2), written(tmp_path, state))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"epoch": 3, "acc": 0.5}, r"holds 2 \(epoch, acc\), expected names of tensors"),
        ([1, 2], "holds list, expected names of tensors"),
        (nn.Linear(2, 2), "cannot be read as weights alone, expected"),
    ],
)
def test_files_without_a_state_dict_are_refused(content, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        load(small(), written(tmp_path, content))


@pytest.mark.parametrize("file", ["a.pt", "a.safetensors"])
def test_broken_and_absent_files_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*look for a misspelt path"):
        load(small(), tmp_path / file)
    (tmp_path / file).write_bytes(b"no weights here")
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        load(small(), tmp_path / file)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    file = written(tmp_path, {"a.x": torch.zeros(1), "b.x": torch.ones(1)})
    with pytest.raises(ValueError, match=re.escape("the name 'x', one of them 'b.x'")):
        load(small(), file, {r"^[ab]\.": ""})


# perturbed starts


@pytest.mark.parametrize("name", ["small-cnn", "wrn-16-4"])
def test_only_the_last_layer_is_drawn_anew_from_the_seed_alone(name):
    start = build(name, (3, 16, 16), 10, width=0.25, seed=1, **STATISTICS)
    nets = [copy.deepcopy(start) for _ in range(3)]
    nets[2] = build(name, (3, 16, 16), 10, width=0.25, seed=9)  # another start, no normalisation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        state = torch.get_rng_state()
        for net, seed in zip(nets, (4, 5, 4), strict=True):
            reset_last_layer(net, seed)
        assert torch.equal(state, torch.get_rng_state())
    changed = [
        k for k, v in nets[0].state_dict().items() if not torch.equal(v, start.state_dict()[k])
    ]
    assert changed == list(start.state_dict())[-2:]
    weights, biases = zip(*(list(net.parameters())[-2:] for net in nets), strict=True)
    assert torch.equal(weights[0], weights[2]) and torch.equal(biases[0], biases[2])
    assert not torch.isclose(weights[0], weights[1]).any()
    inputs = weights[0].shape[1]
    assert weights[0].abs().max() <= inputs**-0.5
    assert weights[0].var().item() == pytest.approx(1 / (3 * inputs), rel=0.15)


def test_noise_is_normal_on_every_parameter_and_nothing_else():
    start = ours("wrn-16-4", **STATISTICS)
    nets = [copy.deepcopy(start) for _ in range(3)]
    for net, seed in zip(nets, (4, 4, 5), strict=True):
        add_noise(net, 0.05, seed)
    old = dict(start.named_parameters())
    noise = [torch.cat([(p - old[k]).flatten() for k, p in n.named_parameters()]) for n in nets]
    assert torch.equal(noise[0], noise[1]) and not torch.isclose(noise[0], noise[2]).all()
    assert all(not torch.equal(p, old[k]) for k, p in nets[0].named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(start.buffers(), nets[0].buffers(), strict=True))
    n = noise[0].numel()
    assert noise[0].std().item() == pytest.approx(0.05, rel=4 / (2 * n) ** 0.5)
    assert abs(noise[0].mean().item()) < 4 * 0.05 / n**0.5
    inside = (noise[0].abs() < 0.05).double().mean().item()
    assert inside == pytest.approx(0.6827, abs=4 * 0.466 / n**0.5)
    assert abs(torch.corrcoef(torch.stack([noise[0], noise[2]]))[0, 1]) < 4 / n**0.5


def test_no_noise_changes_nothing_and_noise_keeps_the_type():
    model = small(1).double()
    before = copy.deepcopy(model.state_dict())
    add_noise(model, 0.0, 3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    add_noise(model, 0.1, 3)
    assert all(p.dtype == torch.float64 and p.requires_grad for p in model.parameters())


def test_reset_and_noise_draw_from_streams_of_their_own():
    model = nn.Linear(4, 3, bias=False)
    reset_last_layer(model, 4)
    first, second = (torch_generator(Purpose.MODEL, 4, round=n) for n in (1, 2))
    expected = torch.rand(3, 4, generator=first) - 0.5  # 1 / sqrt(4) at most
    torch.testing.assert_close(model.weight.data, expected)
    add_noise(model, 0.1, 4)
    torch.testing.assert_close(
        model.weight.data, expected + 0.1 * torch.randn(3, 4, generator=second)
    )


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"std is -0\.1, expected a number >= 0"):
        add_noise(small(), -0.1, 0)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear"):
        reset_last_layer(nn.Conv2d(1, 1, 1), 0)
