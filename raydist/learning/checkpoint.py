"""Trained weights as a start: files of this project and of published nets, and perturbed starts.

A published file has its own names for the same tensors; a key map translates them. `KEY_MAPS` has
those of the usual layouts, by the name of our model.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raydist.learning.model import Normalise
from raydist.seeding import Purpose, torch_generator

KeyMap = Mapping[str, str]

NESTED = (  # where training scripts keep the weights
    *("state_dict", "model_state_dict", "model", "net", "weights", "params"),
    *("ema", "model_ema", "state_dict_ema", "params_ema"),
)
# Of torch.compile, DataParallel, Lightning, and of our models that normalise their inputs.
PREFIXES = ("_orig_mod.", "module.", "model.", "net.")
COUNTS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and AveragedModel: no weights
SAVE = "torch.save(model.state_dict(), file)"
SHOWN = 3  # keys that a message names

# rounds of Purpose.MODEL; 0 is the initialisation
RESET, NOISE = 1, 2


def load(
    model: nn.Module, file: str | Path, key_map: KeyMap | None = None, finite: bool = True
) -> None:
    """Load the weights of a file into a model, all of them or none.

    A prefix that all names in the file have in common (`PREFIXES`) is dropped if the names fit
    without it. Counts of batches that are not in the file (`num_batches_tracked`) stay as they
    are: they have no effect.

    A key map fixes names only. That the function is the same (input normalisation, the order
    of operations in a block) cannot be seen in a file: compare the clean accuracy.

    Args:
        model: the receiver; with or without our normalisation, which has no weights.
        file: a file of safetensors or of `torch.save`, whatever its ending: a state dict, or a
            dictionary that has it under one of `NESTED`. No other pickled object is accepted.
        key_map: regular expression to replacement, applied in order to each name with `re.sub`; a
            name that becomes empty is left out. None changes nothing.
        finite: whether weights that are not finite are refused, as for a start; a model that
            diverged is judged as it is.

    Raises:
        ValueError: the file holds no weights, several that fit, or some that are not finite; the
            key map is none, or makes two names one; names or shapes are not those of the model.
    """
    target = _without_normalisation(model)
    wanted = target.state_dict()
    content = _read(Path(file))
    candidates = _candidates(content)
    if not candidates:
        what = _listed(list(content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{file} holds {what}, expected names of tensors, or those under one of: "
            + ", ".join(NESTED)
        )
    named = {place: _fitting(found, wanted, key_map or {}) for place, found in candidates.items()}
    fitting = {place: found for place, found in named.items() if not _misfit(found, wanted)}
    if not fitting:
        raise ValueError(
            f"{file} does not fit the model: {_misfit(next(iter(named.values())), wanted)}; give "
            "the model of that file, or a key_map (there is one for "
            f"{', '.join(KEY_MAPS)})"
        )
    (place, chosen), *others = fitting.items()
    for name, tensor in chosen.items():
        _check_kind(file, name, tensor, wanted.get(name, tensor))
        if finite and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{file} holds {name} with values that are not finite: take an earlier checkpoint"
            )
    for other, found in others:
        if any(
            not torch.equal(found[n].double(), chosen[n].double()) for n in found.keys() & chosen
        ):
            raise ValueError(
                f"{file} holds weights in {place} and others in {other}, expected one of them: "
                f'write torch.save(torch.load("{file}", weights_only=True){other}, "other.pt") '
                "and name that file"
            )
    target.load_state_dict(chosen, strict=False)


def reset_last_layer(model: nn.Module, seed: int) -> None:
    """Draw the last linear layer anew, from the seed alone: U(−1/√m, 1/√m), m its inputs.

    Args:
        model: changed in place.
        seed: the run's seed, ≥ 0.

    Raises:
        ValueError: the model has no linear layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("model has no torch.nn.Linear, expected one to reset: use add_noise")
    generator = torch_generator(Purpose.MODEL, seed, round=RESET)
    bound = layers[-1].in_features ** -0.5
    for parameter in layers[-1].parameters():
        draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
        _assign(parameter, bound * (2 * draw - 1))


def add_noise(model: nn.Module, std: float, seed: int) -> None:
    """Add N(0, std²) to every parameter, from the seed alone; running statistics stay.

    Args:
        model: changed in place.
        std: standard deviation ≥ 0, in the units of the weights.
        seed: the run's seed, ≥ 0.

    Raises:
        ValueError: a negative standard deviation.
    """
    if not std >= 0:
        raise ValueError(f"std is {std}, expected a number >= 0: write 0.01")
    generator = torch_generator(Purpose.MODEL, seed, round=NOISE)
    for parameter in model.parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        _assign(parameter, parameter + std * draw.to(parameter))


def _assign(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def _check_kind(file: str | Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    """A tensor of a file can be copied into the model's without a loss.

    Args:
        file: the file of weights.
        name: the name of the tensor.
        tensor: the tensor as the file has it.
        wanted: the model's.

    Raises:
        ValueError: if it has no numbers, not all of them, or those of another kind.
    """
    kind = f"{tensor.dtype}".removeprefix("torch.")
    if tensor.is_meta:
        what, write = "without its numbers (device meta)", "save the model after it was loaded"
    elif tensor.layout != torch.strided:
        what, write = "as a sparse tensor", "save tensor.to_dense()"
    elif tensor.is_complex() and not wanted.is_complex():
        what, write = f"as {kind}", f"save tensor.real, or a model of {wanted.dtype}"
    elif wanted.is_floating_point() and not tensor.is_floating_point():
        what, write = f"as {kind}", "save the weights before they were rounded"
    else:
        return
    raise ValueError(f"{file} holds {name} {what}, expected {wanted.dtype}: {write}")


def _without_normalisation(model: nn.Module) -> nn.Module:
    normalised = isinstance(model, nn.Sequential) and isinstance(model[0], Normalise)
    return model.get_submodule("net") if normalised else model


def _read(file: Path) -> object:
    """Read a file, on the CPU: tensors by name, or the tree that a script kept beside them."""
    start = _start(file)
    try:
        if start[8:9] == b"{":  # after the length of its header: safetensors, whatever the ending
            return dict(load_file(file))
        with file.open("rb") as opened, warnings.catch_warnings(action="ignore"):
            # by a path torch would go by the ending too
            return torch.load(opened, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        found, why, write = re.search(r"GLOBAL ([\w.]+)", str(error)), "", f"write {SAVE}"
        if start.startswith(b"version ht"):
            why, write = " (it is a pointer of Git LFS)", "write git lfs pull"
        elif isinstance(error, SafetensorError) or "central directory" in str(error):
            why, write = " (a part of it is missing)", "fetch it again"
        elif "TorchScript" in str(error):
            why = " (it is a TorchScript archive)"
            write = "write torch.save(torch.jit.load(old).state_dict(), file)"
        elif found is not None:
            why = f" (it holds a {found[1]}, which only code can read)"
        raise ValueError(
            f"{file} cannot be read as weights alone, expected .safetensors or a saved state dict"
            f"{why}: {write}"
        ) from error


def _start(file: Path) -> bytes:
    """The first bytes of a file of weights.

    Args:
        file: its path.

    Returns:
        Ten bytes, or as many as there are.

    Raises:
        ValueError: if there is no such file, or nothing in it.
    """
    expected = "expected a file of weights, .safetensors or of torch.save"
    if not file.exists():
        raise ValueError(f"{file} does not exist, {expected}: look for a misspelt path")
    if file.is_dir():
        raise ValueError(f"{file} is a folder, {expected}: name a file in it")
    with file.open("rb") as opened:
        start = opened.read(10)
    if not start:
        raise ValueError(f"{file} is empty, {expected}: fetch or save it again")
    return start


def _candidates(content: object, place: str = "") -> dict[str, dict[str, Tensor]]:
    """All state dicts in what a file holds, by the keys that lead to them."""
    if not isinstance(content, Mapping):
        return {}
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {place: dict(content)}
    inner = [_candidates(content[n], f'{place}["{n}"]') for n in NESTED if n in content]
    return {where: found for each in inner for where, found in each.items()}


def _fitting(
    tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], key_map: KeyMap
) -> dict[str, Tensor]:
    """The tensors by our names: without as many common prefixes as make them fit."""
    found = _renamed(tensors, key_map)
    while _misfit(found, wanted):
        names = [name for name in tensors if name not in COUNTS]
        common = (p for p in PREFIXES if names and all(n.startswith(p) for n in names))
        prefix = next(common, None)
        if prefix is None:
            return found
        tensors = {name.removeprefix(prefix): tensors[name] for name in names}
        found = _renamed(tensors, key_map)
    return found


def _misfit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first fault of names and shapes; "" if there is none."""
    missing = [n for n in wanted if n not in found and not n.endswith(COUNTS)]
    unexpected = [n for n in found if n not in wanted]
    reshaped = [
        f"{n} {tuple(t.shape)}, expected {tuple(wanted[n].shape)}"
        for n, t in found.items()
        if n in wanted and t.shape != wanted[n].shape
    ]
    if not (missing or unexpected or reshaped):
        return ""
    return (
        f"{_listed(missing)} missing, {_listed(unexpected)} unexpected, {_listed(reshaped)} of "
        "another shape"
    )


def _renamed(tensors: Mapping[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in key_map.items():
            try:
                new = re.sub(pattern, replacement, new)
            except (re.error, IndexError) as error:
                raise ValueError(
                    f'key_map "{pattern}" = "{replacement}" is no regular expression with its '
                    f"replacement ({error}): write a dot as \\\\. and groups as \\\\1"
                ) from error
        if new in result:
            raise ValueError(f"key_map gives two tensors the name {new!r}, one of them {name!r}")
        if new:
            result[new] = tensor
    return result


def _listed(names: list[str]) -> str:
    """The number of names, and the first few."""
    if not names:
        return "0"
    dots = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} ({', '.join(map(str, names[:SHOWN]))}{dots})"


_PRE_ACTIVATION = {
    r"^(\d+)\.bn1\.": r"\1.activate.0.",
    r"^(\d+)\.conv1\.": r"\1.residual.0.",
    r"^(\d+)\.bn2\.": r"\1.residual.1.",
    r"^(\d+)\.conv2\.": r"\1.residual.3.",
}


def _resnet(first: int) -> dict[str, str]:
    """Names of the blocks of depth 18, which begin at position `first` of our model."""
    return {
        rf"^layer{stage + 1}\.{block}\.": f"{first + 2 * stage + block}."
        for stage in range(4)
        for block in range(2)
    }


def _wide_resnet(depth: int) -> dict[str, str]:
    n = (depth - 4) // 6
    blocks = {
        rf"^block{stage + 1}\.layer\.{block}\.": f"{1 + n * stage + block}."
        for stage in range(3)
        for block in range(n)
    }
    return {
        r"^sub_block1\..*": "",  # in the files of TRADES, used by nothing
        r"^conv1\.": "0.",
        r"^bn1\.": f"{3 * n + 1}.",
        r"^fc\.": f"{3 * n + 5}.",
        **blocks,
        **_PRE_ACTIVATION,
        r"\.convShortcut\.": ".projection.",
    }


# ResNets as in kuangliu/pytorch-cifar and RobustBench, wide ones as in TRADES and RobustBench.
# The published pre-activation ResNets need a BatchNorm before the pooling (`bn`, as ours), and must
# take the shortcut of a new shape from the activated input (RobustBench's PreActBlockV2): those
# with PreActBlock have the same names, but are another function.
KEY_MAPS: dict[str, dict[str, str]] = {
    "resnet-18": {
        r"^conv1\.": "0.",
        r"^bn1\.": "1.",
        r"^linear\.": "13.",
        **_resnet(3),
        r"^(\d+)\.conv1\.": r"\1.residual.0.",
        r"^(\d+)\.bn1\.": r"\1.residual.1.",
        r"^(\d+)\.conv2\.": r"\1.residual.3.",
        r"^(\d+)\.bn2\.": r"\1.residual.4.",
    },
    "preact-resnet-18": {
        r"^conv1\.": "0.",
        r"^bn\.": "9.",
        r"^linear\.": "13.",
        **_resnet(1),
        **_PRE_ACTIVATION,
        r"\.shortcut\.0\.": ".projection.",
    },
    "wrn-16-4": _wide_resnet(16),
    "wrn-28-10": _wide_resnet(28),
    "wrn-34-10": _wide_resnet(34),
}
