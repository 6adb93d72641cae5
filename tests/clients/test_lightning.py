"""Lightning: clipping, accumulation, mixed precision, schedulers, averaged weights, save and resume; Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

lightning = pytest.importorskip("lightning", reason="lightning is not installed: make clients installs it")

import torch
from client_task import OPTIMIZERS, assert_same, holds, loader, net, weights
from lightning.fabric.plugins.precision import MixedPrecision as FabricPrecision
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import steprule


class Lit(lightning.LightningModule):  # type: ignore[name-defined, misc]
    def __init__(self, optim: Any, name: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.net = net(bias=name != "Muon")
        self.make = lambda: getattr(optim, name)(self.net.parameters(), **options)
        self.norms: list[float] = []
        self.rates: list[float] = []

    def training_step(self, batch: Any, index: int) -> Any:
        return cross_entropy(self.net(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.norms.append(
            torch.stack([p.grad.norm() for p in self.net.parameters() if p.grad is not None]).norm().item()
        )
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = self.make()
        return [optimizer], [{"scheduler": StepLR(optimizer, 2, gamma=0.5), "interval": "step"}]


def trainer(folder: Path, precision: str = "32", **how: Any) -> Any:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22) if precision == "16-mixed" else None
    chosen = dict(precision=precision) if scaler is None else dict(plugins=[MixedPrecision(precision, "cpu", scaler)])
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)
    return lightning.Trainer(**{"max_epochs": 2, "accelerator": "cpu", **quiet, **chosen, **how})


def train(optim: Any, name: str, options: dict[str, Any], folder: Path, **how: Any) -> Lit:
    lit = Lit(optim, name, options)
    made = trainer(folder, **{"enable_checkpointing": False, **how})
    made.fit(lit, loader())
    lit.scale = made.precision_plugin.state_dict().get("scale")
    return lit


WAYS: list[dict[str, Any]] = [
    dict(gradient_clip_val=0.5),
    dict(accumulate_grad_batches=2),
    dict(precision="bf16-mixed", gradient_clip_val=0.5),
    dict(precision="16-mixed", gradient_clip_val=0.5),
]
HELD = ["clipping", "accumulation", "bf16", "fp16"]


@holds("scheduler")
@pytest.mark.parametrize(
    ("how", "name", "options"),
    [
        *(pytest.param(how, *o, marks=holds(held)) for how, held in zip(WAYS, HELD, strict=True) for o in OPTIMIZERS),
        (WAYS[0], "Muon", dict(lr=0.02)),
    ],
    ids=str,
)
def test_training_is_the_same(how: dict[str, Any], name: str, options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = (train(optim, name, options, tmp_path, **how) for optim in (steprule, torch.optim))
    assert ours.rates == theirs.rates
    assert ours.scale == theirs.scale
    rough = "precision" in how or name == "Muon"
    finite = [(a, b) for a, b in zip(ours.norms, theirs.norms, strict=True) if b < float("inf")]
    assert finite
    assert all(a == pytest.approx(b, rel=0.1 if rough else 1e-3) for a, b in finite)
    assert_same(weights(ours.net), weights(theirs.net), 2e-2 if rough else 1e-5)
    if how.get("precision") == "16-mixed":
        assert ours.scale < 2.0**22
        assert ours.optimizers().optimizer.steps_taken == len(finite) < 12


def test_fused_is_refused_for_clipping_as_torchs_is(tmp_path: Path) -> None:
    for optim in (steprule, torch.optim):
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            train(optim, "AdamW", dict(lr=0.01, fused=True), tmp_path, **WAYS[3])


@pytest.mark.parametrize(("name", "options"), [("SGD", dict(lr=0.05)), ("AdamW", dict(lr=0.01))])
def test_fused_reads_the_scale_in_the_step_as_torchs_does(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    # without momentum, which torch's leaves uninitialized where a first step is skipped
    chosen = {**options, "fused": True}
    ours, theirs = (train(optim, name, chosen, tmp_path, precision="16-mixed") for optim in (steprule, torch.optim))
    assert ours.scale == theirs.scale < 2.0**22
    # of gradients that are not divided by the scale yet
    assert ours.norms == pytest.approx(theirs.norms, rel=0.1, nan_ok=True)
    assert all(norm > 1000 for norm in ours.norms if norm == norm)
    assert_same(weights(ours.net), weights(theirs.net), 2e-2)
    assert ours.optimizers().optimizer.steps_taken < 12


@holds("averages")
def test_averaged_weights_are_the_same(tmp_path: Path) -> None:
    def how() -> dict[str, Any]:
        return dict(callbacks=[StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1)], max_epochs=3)

    ours, theirs = (train(optim, *OPTIMIZERS[0], tmp_path, **how()) for optim in (steprule, torch.optim))
    assert_same(weights(ours.net), weights(theirs.net))


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_checkpoint_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    whole = train(steprule, name, options, tmp_path)
    half = Lit(steprule, name, options)
    trainer(tmp_path, max_epochs=1, callbacks=[ModelCheckpoint(tmp_path, filename="half")]).fit(half, loader())
    rest = Lit(steprule, name, options)
    trainer(tmp_path, enable_checkpointing=False).fit(
        rest, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False
    )
    assert_same(weights(rest.net), weights(whole.net), 0.0)
    assert rest.rates == whole.rates[6:]


def test_lbfgs_in_16_bits_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="not compatible"):
        train(torch.optim, "LBFGS", {}, tmp_path, precision="16-mixed")
    with pytest.raises(TypeError, match="LBFGS evaluates the model several times in a step"):
        train(steprule, "LBFGS", {}, tmp_path, precision="16-mixed")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_fabric_clips_as_with_torch(precision: str) -> None:
    found = []
    for optim in (steprule, torch.optim):
        how: dict[str, Any] = dict(precision=precision)
        if precision == "16-mixed":
            how = dict(plugins=[FabricPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))])
        fabric = lightning.Fabric(accelerator="cpu", devices=1, **how)
        model, optimizer = fabric.setup(net_ := net(), optim.AdamW(net_.parameters(), lr=0.01))
        for x, y in fabric.setup_dataloaders(loader()):
            optimizer.zero_grad()
            fabric.backward(cross_entropy(model(x), y))
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
        found.append(weights(net_))
    ours, theirs = found
    assert_same(ours, theirs, 1e-5 if precision == "32-true" else 2e-2)
