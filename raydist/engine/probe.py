"""Trial of model and loss before a run, as training and evaluation will use them.

Our own models and losses are known to work except for BatchNorm on one image, so two images pass
through them. Foreign ones make a whole local step, and meet eval mode, one image alone and input
gradients.
"""

import os

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from raydist.adversary.attack import by_name
from raydist.adversary.schedule import Timetable
from raydist.config.adversary import OwnAttack
from raydist.config.experiment import Experiment
from raydist.config.training import KnownNetwork, Network
from raydist.engine.agent.foreign import is_foreign
from raydist.engine.agent.own import Own
from raydist.engine.agent.passes import unsafe_in_channels_last
from raydist.engine.agent.step import LocalStep
from raydist.engine.agent.task import DTYPES, build_model, loss_named
from raydist.engine.agent.tasks import ImageTask
from raydist.engine.checks import checked, input_of, one_line
from raydist.engine.stray import stray
from raydist.errors import InputError
from raydist.learning import model as models
from raydist.learning.data import Data, to_tensor
from raydist.learning.model import parameter_count
from raydist.seeding import Purpose, drawing
from raydist.vector import FlatModel, frozen

COPIES = 3  # of a model's parameters that an agent holds at least
LARGEST = 2**27  # numbers that a foreign model may give out here: half a gigabyte in float32


def check_memory(config: Experiment, shape: tuple[int, ...], classes: int) -> None:
    """Check that one model of ours fits into this machine, without building it.

    Args:
        config: the experiment.
        shape: shape of one input.
        classes: number of classes.

    Raises:
        InputError: if the model does not fit.
    """
    if not isinstance(config.model, KnownNetwork) or config.model.width <= 1:
        return
    name, width = config.model.name, config.model.width
    with torch.device("meta"):
        model = checked("model", models.build, name, shape, classes, width=width)
    needed = COPIES * parameter_count(model) * DTYPES[config.dtype].itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise InputError(
            f"model.width is {width:g}: {parameter_count(model):,} parameters need "
            f"{needed / 1e9:,.0f} GB, but this machine has {memory / 1e9:,.0f} GB: write less"
        )


def probe_key(config: Experiment) -> str:
    """Key of everything that `probe` depends on, common to many trials of a study."""
    kept: dict[str, bool | set[str]] = dict.fromkeys(
        ("model", "loss", "dtype", "precision", "channels_last"), True
    )
    kept["data"] = {"set", "params", "root", "validation", "batch"}
    own = [name for name in config.evaluate.attacks if ":" in name]
    if own or isinstance(config.attack, OwnAttack):
        kept |= {"attack": True, "threat": True, "evaluate": {"attacks"}}
    return config.model_dump_json(include=kept)


def probe(config: Experiment, data: Data | None) -> tuple[int, int]:
    """Build the model, and try model and loss on images.

    Args:
        config: the experiment.
        data: the images, if any.

    Returns:
        The number of parameters; the count of numbers that the modules output for one sample.

    Raises:
        InputError: if the model or the loss cannot be trained, attacked or measured.
    """
    with drawing(Purpose.IN_CODE, config.seed):
        shape, classes, _ = input_of(config, data)
        check_memory(config, shape, classes)
        model = checked("model", build_model, config, shape, classes)
        checked("loss", loss_named, config)
        parameters = parameter_count(model)
        if parameters == 0:
            raise InputError(f'model "{config.model.name}" has no parameters to train')
        network = config.model if isinstance(config.model, Network) else None
        if network and config.channels_last and unsafe_in_channels_last(model):
            raise InputError(
                f'channels_last is not safe for model "{network.name}" of width '
                f"{network.width:g}: it has strided 1x1 convolutions of fewer than 16 "
                "channels: write channels_last = false"
            )
        return parameters, 0 if data is None else _Trial(config, data, model).run()


class _Trial:
    """A model and a loss on the first training images."""

    def __init__(self, config: Experiment, data: Data, model: nn.Module) -> None:
        self.config, self.data, self.model = config, data, model
        self.name = f'model "{config.model.name}"'
        # before any pass, as an agent does, so that changes by passes are seen
        self.flat = FlatModel(model, config.channels_last) if is_foreign(config) else None

    def run(self) -> int:
        """Try everything; return the count of numbers that the modules output for one image."""
        images = min(2, self.config.data.batch)
        self._train(images)  # BatchNorm's statistics of two images are no worse than any
        each = self._count()
        if is_foreign(self.config):
            self._alone()
            self._input_gradient(images)
            self._learn(max(images, min(self.config.data.batch, LARGEST // max(1, each))))
        else:
            self._loss(*self._images(images))
        self._attacks(images)
        return each

    def _attacks(self, images: int) -> None:
        """Try the user's own attacks of the evaluation."""
        threat, draw = Own(self.config, 0).threat, torch.Generator()
        for name in self.config.evaluate.attacks:
            if ":" in name:
                x, y = self._images(images)
                attack = checked("evaluate.attacks", by_name, name, {})
                checked("evaluate.attacks", attack, self.model, x, y, threat, generator=draw)

    def _images(self, images: int) -> tuple[Tensor, Tensor]:
        x, y = (part[:images] for part in self.data.train)
        pixels = to_tensor(x, self.data.scale, DTYPES[self.config.dtype])
        return pixels, torch.from_numpy(y.copy())

    def _forward(self, x: Tensor) -> Tensor:
        """Compute the logits; check their shape, and that x is unchanged."""
        before = x.clone()
        outputs = self.model(x)
        expected = (len(x), self.data.classes)
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(
                f"{self.name} returned {got} for {len(x)} images, expected logits of shape "
                f"{expected}"
            )
        if not torch.equal(x, before):
            raise InputError(
                f"{self.name} changes its images in place, which the attack still needs: write "
                "x = x - 0.5, not x -= 0.5 or x.sub_(0.5)"
            )
        return outputs

    def _train(self, images: int) -> None:
        """Try a forward pass in train mode."""
        x, _ = self._images(images)
        try:
            outputs = self._forward(x)
        except InputError:
            raise
        except Exception as error:
            raise InputError(self._why_not(images, error)) from error
        if not outputs.requires_grad:
            raise InputError(
                f"{self.name} returned logits without a gradient: its forward must not run under "
                "torch.no_grad() or detach them"
            )
        beside = stray(self.model, outputs) if is_foreign(self.config) else ""
        if beside:
            raise InputError(f"{self.name} {beside}")

    def _why_not(self, images: int, error: Exception) -> str:
        """Explain an error in train mode: one image is too few, or any images fail."""
        if images == 1:
            try:
                self._forward(self._images(2)[0])
                return (
                    f"{self.name} does not learn from one image at a time ({one_line(error)}): "
                    "write data.batch = 2 or more"
                )
            except Exception as other:
                error = other
        return f"{self.name} does not take images of shape {self.data.shape}: {one_line(error)}"

    def _count(self) -> int:
        """Count the numbers that the innermost modules output for one image, in eval mode."""
        counted: list[int] = []

        def count(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not list(module.children()):
                counted.append(output.numel())

        x, _ = self._images(2)
        open_ = [m for m in self.model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        hooks = [module.register_forward_hook(count) for module in open_]
        with frozen(self.model), torch.no_grad():
            self.model(x)
        for hook in hooks:
            hook.remove()
        return sum(counted) // len(x)

    def _alone(self) -> None:
        """Try one image alone in eval mode, because a set's last batch may hold just one."""
        try:
            with frozen(self.model), torch.no_grad():
                self._forward(self._images(1)[0])
        except InputError:
            raise
        except Exception as error:
            norms = [m for m in self.model.modules() if isinstance(m, _NormBase)]
            blind = any(norm.running_mean is None for norm in norms)
            hint = ": write track_running_stats = True" if blind else ""
            raise InputError(
                f"{self.name} does not take one image alone in eval mode, as evaluation has it "
                f"({one_line(error)}){hint}"
            ) from error

    def _input_gradient(self, images: int) -> None:
        """Try the gradient that attacks follow."""
        x, _ = self._images(images)
        try:
            with frozen(self.model):
                torch.autograd.grad(self.model(x.requires_grad_()).sum(), x)
        except Exception as error:
            raise InputError(
                f"{self.name} gives no gradient with respect to its images, which attacks follow "
                f"({one_line(error)}): its forward must neither detach nor round them"
            ) from error

    def _learn(self, images: int) -> None:
        """Try a local step on a batch, attacked by one step."""
        config = self.config.model_copy(
            update={
                "data": self.config.data.model_copy(update={"batch": images}),
                "attack": self.config.attack.model_copy(
                    update={"steps": min(1, self.config.attack.steps), "restarts": 1}
                ),
                "compile": False,
                "cuda_graphs": False,
            }
        )
        x, y = (part[:images] for part in self.data.train)
        task = ImageTask(config, 0, (x, y), self.data.scale, torch.device("cpu"))
        assert self.flat is not None
        local = LocalStep(config, 0, Timetable(1), task, self.flat)
        if config.loss.name == "wasserstein":
            local.distributional.learn(local.distributional.power(0))
        own = isinstance(config.attack, OwnAttack)
        batch = checked("attack" if own else "model", local.attack, 1, False)
        self._loss(batch.x, batch.y, batch.points.x_adv)
        checked("loss", local.gradient, batch)

    def _loss(self, x: Tensor, y: Tensor, x_adv: Tensor | None = None) -> None:
        """Check that the loss is a scalar with a gradient."""
        function = loss_named(self.config)
        value = checked("loss", function, self.model.train(), x, x if x_adv is None else x_adv, y)
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.requires_grad:
            got = type(value).__name__
            if isinstance(value, Tensor):
                grad = "" if value.requires_grad else ", without a gradient"
                got = f"a tensor of shape {tuple(value.shape)}{grad}"
            raise InputError(
                f'loss "{self.config.loss.name}" returned {got}, expected a scalar tensor with a '
                "gradient"
            )
