import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from raydist.learning.data import load
from raydist.learning.model import MODELS, NORMALISATION, build, parameter_count
from raydist.learning.resnet import PreActBlock, SEBlock

IMAGE_MODELS = sorted(set(MODELS) - {"point"})
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def own_model(shape, classes, hidden=3):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), nn.Linear(hidden, classes))


def no_model(shape, classes):
    return "a model"


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_model_maps_images_to_logits_with_gradients_in_all_parameters(name, shape):
    width = {} if name == "linear" else {"width": 0.125}
    model = build(name, shape, 7, **width)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_weights_are_a_function_of_the_seed_alone(name):
    width = {} if name == "linear" else {"width": 0.125}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = flat(build(name, (3, 32, 32), 10, seed=5, **width))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, flat(build(name, (3, 32, 32), 10, seed=5, **width)))
    assert not torch.equal(first, flat(build(name, (3, 32, 32), 10, seed=6, **width)))


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("linear", (1, 8, 8), 650),
        ("lenet", (1, 28, 28), 3_274_634),
        ("resnet-18", (3, 32, 32), 11_173_962),
        ("preact-resnet-18", (3, 32, 32), 11_172_170),
        ("senet-18", (3, 32, 32), 11_260_354),
        ("wrn-16-4", (3, 32, 32), 2_748_890),
        ("wrn-28-10", (3, 32, 32), 36_479_194),
        ("wrn-34-10", (3, 32, 32), 46_160_474),
        ("vgg-16", (3, 32, 32), 14_728_266),
    ],
)
def test_parameter_counts_are_the_published_ones(name, shape, count):
    assert parameter_count(build(name, shape, 10)) == count


def test_small_cnn_is_small_at_every_size():
    counts = [parameter_count(build("small-cnn", shape, 10)) for shape in SHAPES]
    # convolutions 3x3, then (32 H/4 W/4) x 64 and 64 x 10, all with biases
    convolutions = 16 * 9 + 16 + (16 * 16 + 16 * 32 + 32 * 32) * 9 + 16 + 32 + 32
    heads = [32 * pixels * 64 + 64 + 650 for pixels in (4, 49, 64)]
    assert counts == [
        convolutions + head + extra for head, extra in zip(heads, (0, 0, 288), strict=True)
    ]


def test_width_multiplies_all_channels():
    half = build("preact-resnet-18", (3, 32, 32), 10, width=0.5)
    assert [m.out_channels for m in half.modules() if isinstance(m, nn.Conv2d)] == [
        m.out_channels // 2
        for m in build("preact-resnet-18", (3, 32, 32), 10).modules()
        if isinstance(m, nn.Conv2d)
    ]


def copy_weights(source, target):
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours)


def torchvision_resnet():
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    return theirs


def torchvision_vgg():
    theirs = torchvision.models.vgg16_bn(init_weights=False)
    theirs.avgpool, theirs.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    return theirs


@pytest.mark.parametrize(
    ("name", "reference"), [("resnet-18", torchvision_resnet), ("vgg-16", torchvision_vgg)]
)
def test_resnet_and_vgg_compute_what_torchvisions_do(name, reference):
    ours, theirs = build(name, (3, 32, 32), 10), reference()
    copy_weights(ours, theirs)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)  # train mode
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


@pytest.mark.parametrize("kind", [PreActBlock, SEBlock])
@pytest.mark.parametrize(("inputs", "stride"), [(32, 1), (16, 1), (32, 2)])
def test_pre_activation_blocks_compute_their_equations(kind, inputs, stride):
    block = kind(inputs, 32, stride).eval()
    weights = dict(block.named_parameters())
    x = torch.randn(2, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
    one = (1 + 1e-5) ** -0.5  # BatchNorm at its initial statistics
    a = F.relu(x * one)
    out = F.relu(F.conv2d(a, weights["residual.0.weight"], stride=stride, padding=1) * one)
    out = F.conv2d(out, weights["residual.3.weight"], padding=1)
    if kind is SEBlock:
        w1, b1, w2, b2 = (p for name, p in weights.items() if ".weight." in name)
        hidden = F.relu(out.mean((2, 3)) @ w1[:, :, 0, 0].T + b1)
        out = out * torch.sigmoid(hidden @ w2[:, :, 0, 0].T + b2)[:, :, None, None]
    projected = (inputs, stride) != (32, 1)
    shortcut = F.conv2d(a, weights["projection.weight"], stride=stride) if projected else x
    assert torch.allclose(block(x), out + shortcut, atol=1e-5)


def test_wide_resnet_halves_the_image_in_its_second_and_third_stage():
    sizes = []
    model = build("wrn-16-4", (3, 32, 32), 10, width=0.25)
    for block in (m for m in model if isinstance(m, PreActBlock)):
        block.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2


def test_wide_resnet_starts_with_the_variance_of_its_papers_code():
    for m in build("wrn-16-4", (3, 32, 32), 10).modules():
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 10_000:
            fan_out = m.kernel_size[0] ** 2 * m.out_channels
            assert m.weight.var().item() == pytest.approx(2 / fan_out, rel=0.1)


def test_normalisation_is_inside_and_leaves_no_trace_in_the_state():
    statistics = {"mean": (0.5, 0.2, 0.1), "std": (0.25, 0.5, 2.0)}
    plain = build("linear", (3, 4, 4), 5)
    normalised = build("linear", (3, 4, 4), 5, **statistics)
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics.values())
    assert torch.equal(normalised(x), plain((x - mean) / std))
    assert not any("mean" in key or "std" in key for key in normalised.state_dict())
    assert parameter_count(normalised) == parameter_count(plain)
    assert normalised.double()(x.double()).dtype == torch.float64


def test_statistics_of_digits_are_those_of_the_set():
    data = load("digits", validation=0)
    x = np.concatenate([data.train[0], data.test[0]]) * data.scale
    assert NORMALISATION["digits"]["mean"] == pytest.approx([x.mean()], abs=5e-5)
    assert NORMALISATION["digits"]["std"] == pytest.approx([x.std()], abs=5e-5)


def test_point_is_the_difference_to_its_parameter():
    model = build("point", (2,), 0, start=[0.1, -3.0])
    assert [p.tolist() for p in model.parameters()] == [[0.1, -3.0]]
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    assert model(x).tolist() == [[0.1 - 1.0, -5.0], [0.1, -3.0]]
    assert build("point", (3,), 0)(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_a_model_of_ones_own_is_called_with_shape_classes_and_params():
    model = build(f"{__name__}:own_model", (1, 4, 4), 5, hidden=8, mean=(0.5,), std=(0.5,))
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 5)
    assert [type(m) for m in model] == [nn.Flatten, nn.Linear, nn.Linear]
    assert parameter_count(model) == 16 * 8 + 8 + 8 * 5 + 5


def test_parameter_count_leaves_out_frozen_parameters():
    model = build("linear", (1, 2, 2), 3)
    model[1].bias.requires_grad_(False)
    assert parameter_count(model) == 12


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("preact-resnet18", {}, 'write "preact-resnet-18"'),
        ("transformer", {}, "expected one of linear, small-cnn"),
        ("linear", {"width": 2.0}, "width"),
        ("small-cnn", {"width": 0.0}, "model.width is 0.0"),
        ("small-cnn", {"hidden": 3}, "hidden"),
        ("wrn-16-4", {"depth": 28}, "depth"),
        ("small-cnn", {"shape": (1, 3, 8)}, "3x8 pixels"),
        ("point", {"shape": (3,), "start": [1.0]}, "expected 3 numbers"),
        ("linear", {"mean": (0.5,)}, "give both"),
        ("linear", {"mean": (0.5,), "std": (0.5,)}, "expected 3 numbers each"),
        (f"{__name__}:no_model", {}, "returned a str, expected a torch.nn.Module"),
        (f"{__name__}:no_model", {"depth": 3}, "depth"),
        (f"{__name__}:missing", {}, "has no missing"),
    ],
)
def test_bad_models_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **{"shape": (3, 32, 32), "classes": 10, **arguments})


def test_a_builder_of_torchvision_is_told_the_number_of_classes():
    model = build("torchvision.models:resnet18", (3, 32, 32), 7)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    flat = build("torchvision.models:squeezenet1_1", (3, 32, 32), 3, dropout=0.0)
    assert flat(torch.rand(2, 3, 32, 32)).shape == (2, 3)
