"""Every setting that would go wrong in silence is refused, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from gradprom.errors import InputError
from gradprom.handlers import GradPromHandler
from tests.unit.handlers.rig import (
    conv,
    cross_entropy,
    make_batches,
    make_handler,
    make_network,
    make_recogniser,
    make_trainer,
    mse,
    sgd,
)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def run(
    handler: GradPromHandler, network: nn.Module | None = None, **kwargs: object
) -> SupervisedTrainer:
    trainer = make_trainer(network or make_network(), make_batches(), [handler], **kwargs)
    trainer.run()
    return trainer


# Arguments.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"recogniser": "unet"}, TypeError, "recogniser must be a torch module, got str"),
        ({"auxiliary_loss": None}, InputError, "'recognition' needs a loss"),
        ({"weight": -0.5}, ValueError, r"weight \(lambda\) .*-0.5"),
        ({"threshold": -0.1}, ValueError, "threshold .*-0.1"),
        ({"rule": "random"}, ValueError, "on_rate .*None"),
        ({"rule": "sometimes"}, ValueError, "rule .*'sometimes'"),
        ({"granularity": "layer"}, ValueError, "granularity .*'layer'"),
        ({"start_epoch": 0}, InputError, "start_epoch counts from 1, got 0"),
    ],
)
def test_arguments(settings: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"recogniser": make_recogniser(), "auxiliary_loss": cross_entropy, **settings}
    with pytest.raises(error, match=message):
        GradPromHandler(**arguments)


def test_negative_value_of_a_schedule() -> None:
    with pytest.raises(ValueError, match=r"weight \(lambda\) .*-1"):
        run(make_handler(make_recogniser(), weight=lambda epoch: 1 - epoch), epochs=2)


# The trainer.


class OwnIteration(SupervisedTrainer):
    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Tensor]) -> dict:
        return super()._iteration(engine, batchdata)


def test_other_engines() -> None:
    handler = make_handler(make_recogniser())
    with pytest.raises(TypeError, match="SupervisedTrainer, got SupervisedEvaluator"):
        SupervisedEvaluator("cpu", make_batches(), make_network(), val_handlers=[handler])


def test_other_iterations() -> None:
    network = make_network()
    parts = ("cpu", 1, make_batches(), network, sgd(network, 0.1), mse)
    with pytest.raises(InputError, match="remove iteration_update"):
        handlers = [make_handler(make_recogniser())]
        SupervisedTrainer(*parts, train_handlers=handlers, iteration_update=lambda *_: {})
    with pytest.raises(InputError, match="_iteration of the subclass"):
        OwnIteration(*parts, train_handlers=[make_handler(make_recogniser())])


def test_a_second_gate_or_the_same_twice() -> None:
    handler = make_handler(make_recogniser())
    for second in (handler, make_handler(make_recogniser(seed=5))):
        trainer = make_trainer(make_network(), make_batches(), [])
        handler.attach(trainer)
        with pytest.raises(InputError, match="has a GradPromHandler already"):
            second.attach(trainer)


# The network.


def test_parameters_outside_the_optimizer() -> None:
    network = make_network()
    with pytest.raises(InputError, match=r"lacks 2 trainable parameters .*0.weight first"):
        run(make_handler(make_recogniser()), network, optimizer=sgd(network[1:], 0.1))
    network[0].requires_grad_(False)
    run(make_handler(make_recogniser()), network, optimizer=sgd(network[1:], 0.1))


def test_network_without_parameters_to_train() -> None:
    network = make_network()
    optimizer = sgd(network, 0.1)
    with pytest.raises(InputError, match="no trainable parameter"):
        run(make_handler(make_recogniser()), network.requires_grad_(False), optimizer=optimizer)


@pytest.mark.usefixtures("alone")
def test_static_graph() -> None:
    network = DistributedDataParallel(make_network(), static_graph=True)
    with pytest.raises(InputError, match="static_graph=True"):
        run(make_handler(make_recogniser()), network)


@pytest.mark.usefixtures("alone")
def test_compiled_static_graph() -> None:
    network = DistributedDataParallel(make_network(), static_graph=True)
    with pytest.raises(InputError, match="static_graph=True"):
        run(make_handler(make_recogniser()), network, compile=True)


def test_sharded_network() -> None:
    class FSDPModule(nn.Sequential):
        """Stands for the mix-in of torch's fully_shard, which needs several processes."""

    with pytest.raises(InputError, match="FSDP"):
        run(make_handler(make_recogniser()), FSDPModule(*make_network()))


class Checkpointed(nn.Module):
    """The middle part is recomputed in the backward pass by torch's older method."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.before, self.middle, self.after = conv(2, 1, 4), conv(2, 4, 4), conv(2, 4, 1)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            x.requires_grad_()  # without it this kind of checkpoint has no gradient at all
            return checkpoint(self.inner, x, use_reentrant=True)
        return self.after(checkpoint(self.middle, self.before(x), use_reentrant=True))

    def inner(self, x: Tensor) -> Tensor:
        return self.after(self.middle(self.before(x)))


def test_reentrant_checkpoint() -> None:
    with pytest.raises(InputError, match="use_reentrant=False"):
        run(make_handler(make_recogniser()), Checkpointed(whole=True))


def test_reentrant_checkpoint_of_a_part() -> None:
    with pytest.raises(RuntimeError, match="use_reentrant=False"):  # torch's own sentence
        run(make_handler(make_recogniser()), Checkpointed(whole=False))


class Answer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = make_network(), kind

    def forward(self, x: Tensor) -> object:
        pred = self.inner(x)
        return [pred, pred] if self.kind == "list" else pred.detach()


@pytest.mark.parametrize("kind", ["list", "detached"])
def test_answers_that_are_not_one_tensor_with_gradient(kind: str) -> None:
    def loss(pred: list[Tensor] | Tensor, label: Tensor) -> Tensor:
        first = pred[0] if isinstance(pred, list) else pred
        return mse(first, label).requires_grad_()

    with pytest.raises(InputError, match="one tensor with a gradient, got "):
        run(make_handler(make_recogniser()), Answer(kind), loss_function=loss)


# The recogniser.


def test_recogniser_in_the_trainers_optimizer() -> None:
    network, recogniser = make_network(), make_recogniser()
    optimizer = torch.optim.SGD([*network.parameters(), *recogniser.parameters()], lr=0.1)
    with pytest.raises(InputError, match="in the trainer's optimizer"):
        run(make_handler(recogniser), network, optimizer=optimizer)


def test_recogniser_that_shares_parameters() -> None:
    network = make_network()
    with pytest.raises(InputError, match="shares parameters"):
        run(make_handler(nn.Sequential(network[0], conv(2, 4, 3))), network)


def test_recogniser_optimizer_with_other_parameters() -> None:
    recogniser, network = make_recogniser(), make_network()
    handler = make_handler(recogniser, recogniser_optimizer=sgd(network, 0.1))
    with pytest.raises(InputError, match="parameters of the recogniser only"):
        run(handler, network)


def test_recogniser_on_another_device() -> None:
    with pytest.raises(InputError, match="recogniser is on meta and the trainer on cpu"):
        run(make_handler(make_recogniser().to("meta")))


def test_label_free_target_of_a_learning_recogniser() -> None:
    with pytest.raises(InputError, match="clean needs a frozen recogniser"):
        run(make_handler(make_recogniser(), learns=True, auxiliary_target="clean"))


@pytest.mark.usefixtures("alone")
def test_frozen_recogniser_in_ddp() -> None:
    with pytest.raises(InputError, match="must not be wrapped in DDP"):
        run(make_handler(DistributedDataParallel(make_recogniser())))


class Cut(nn.Module):
    """A recogniser whose answer does not depend on its input as far as autograd can see."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_recogniser()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


@pytest.mark.parametrize(("learns", "message"), [(False, "has no gradient"), (True, "depend on")])
def test_recogniser_that_cuts_the_gradient(learns: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(make_handler(Cut(), learns=learns))


def test_target_that_is_no_tensor() -> None:
    batches = [{**b, "recognition": ["a", "b"]} for b in make_batches()]
    trainer = make_trainer(make_network(), batches, [make_handler(make_recogniser())])
    with pytest.raises(InputError, match="'recognition' of the batch must be a tensor, got list"):
        trainer.run()


@pytest.mark.parametrize("learns", [False, True])
def test_state_of_the_other_kind(learns: bool) -> None:
    saved = make_handler(make_recogniser(), learns=not learns).state_dict()
    with pytest.raises(InputError, match="differ in recogniser_optimizer"):
        make_handler(make_recogniser(), learns=learns).load_state_dict(saved)
