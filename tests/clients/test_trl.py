"""trl's SFTTrainer: clipping, accumulation, bfloat16, float16 with a scaler, schedulers, save and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl", reason="trl is not installed: make clients installs it")

import datasets
import tokenizers
import torch
import transformers
from accelerate.state import AcceleratorState
from client_task import MUON, OPTIMIZERS, SCALE, averages, digits, holds, scaling
from torch import Tensor
from torch.optim.lr_scheduler import StepLR

import steprule
from steprule.schedules import Native, cosine

LEVELS = 17
"""Shades of a pixel, each a token; after them come the ten labels."""
COUNT = 48


def pictures() -> Any:
    """A label, then what its picture's pixels are: 65 tokens each."""
    pixels, labels = digits(COUNT)
    shades = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * (LEVELS - 1)).round().long()
    rows = torch.cat([labels[:, None] + LEVELS, shades], dim=1)
    return datasets.Dataset.from_dict({"input_ids": rows.tolist()})


def model() -> Any:
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=LEVELS + 11, max_position_embeddings=80, pad_token_id=27, **shape)
        return transformers.LlamaForCausalLM(config)


def tokenizer() -> Any:
    words = {str(i): i for i in range(LEVELS + 10)} | {"[PAD]": LEVELS + 10}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[PAD]")


def train(make: Any, folder: Path, resume: Path | None = None, scaled: bool = False, **how: Any) -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = trl.SFTConfig(
        str(folder), per_device_train_batch_size=8, use_cpu=True, report_to=[], disable_tqdm=True, seed=3,
        **{"max_grad_norm": 0.5, "num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1, **how},
    )  # fmt: skip
    net = model()
    made = make(net)
    means = averages(made[0])
    trainer = trl.SFTTrainer(net, arguments, train_dataset=pictures(), processing_class=tokenizer(), optimizers=made)
    trainer.means = means
    if scaled:
        scaling(trainer.accelerator)  # fp16=True is refused without a GPU
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def stepped(optim: Any, name: str, options: dict[str, Any]) -> Any:
    def make(net: Any) -> Any:
        trained = [p for p in net.parameters() if p.ndim == 2 or name != "Muon"]
        optimizer = getattr(optim, name)(trained, **options)
        return optimizer, StepLR(optimizer, 2, gamma=0.5)

    return make


def weights(trainer: Any) -> list[Tensor]:
    return [p.detach().float() for p in trainer.model.parameters()]


def rates(trainer: Any) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(dict(), id="plainly"),
        pytest.param(dict(gradient_accumulation_steps=2), marks=holds("accumulation"), id="accumulating"),
        pytest.param(dict(bf16=True), marks=holds("bf16"), id="bf16"),
        pytest.param(dict(scaled=True), marks=holds("fp16"), id="fp16"),
    ],
)
def test_training_is_the_same(name: str, options: dict[str, Any], how: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = (train(stepped(optim, name, options), tmp_path, **how) for optim in (steprule, torch.optim))
    assert rates(ours) == rates(theirs)
    # where a gradient is all but zero AdamW makes of a rounding a step
    tolerance = 2e-2 if "bf16" in how or "scaled" in how else 1e-3
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.means, theirs.means, rtol=tolerance, atol=tolerance)
    assert not torch.equal(weights(ours)[0], next(model().parameters()))
    if "scaled" in how:
        assert ours.accelerator.scaler.get_scale() == theirs.accelerator.scaler.get_scale() < SCALE
        assert ours.optimizer.optimizer.steps_taken < 6


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = (weights(train(stepped(optim, name, options), tmp_path)) for optim in (steprule, torch.optim))
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_checkpoint_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    make = stepped(steprule, name, options)
    whole = train(make, tmp_path / "whole", save_strategy="steps", save_steps=3)
    rest = train(make, tmp_path / "rest", tmp_path / "whole/checkpoint-3")
    torch.testing.assert_close(weights(rest), weights(whole), rtol=0, atol=0)
    assert rates(rest) == rates(whole)
    assert rest.optimizer.optimizer.steps_taken == 6


def test_a_schedule_of_ours_beside_native(tmp_path: Path) -> None:
    def make(net: Any) -> Any:
        optimizer = steprule.AdamW(net, lr=0.01 * cosine(6))
        return optimizer, Native(optimizer)

    trainer = train(make, tmp_path)
    assert trainer.optimizer.optimizer.param_groups[0]["lr"] == 0.01 * cosine(6)(5)
