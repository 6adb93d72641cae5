import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steprule import biases, by_ndim, embeddings, exclusive, groups, layer_decay, norms, scale
from steprule.grouping.globs import fold
from steprule.grouping.selectors import select, selector, untracked
from steprule.schedules import cosine, separate, write

BASE = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.01, "nesterov": False}


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({part: nn.Linear(width, width) for part in ("q", "k", "v", "out")})
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class ViT(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10)


class GPT(nn.Module):
    """As GPT-2 is written: everything in a sub-module, and the head tied to the token embedding."""

    def __init__(self, depth: int = 2, tied: bool = True, experts: int = 0) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "h": nn.ModuleList(Expert(experts) if experts else Block() for _ in range(depth)),
                "wte": nn.Embedding(7, 4),
                "wpe": nn.Embedding(5, 4),
                "ln_f": nn.LayerNorm(4),
            }
        )
        self.lm_head = nn.Linear(4, 7, bias=False)
        if tied:
            self.lm_head.weight = self.transformer.get_parameter("wte.weight")


class Expert(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.attn = nn.Linear(4, 4)
        self.experts = nn.ModuleList(Block() for _ in range(experts))


class Basic(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width // stride, width, 3, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(width // stride, width, 1, stride), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    def __init__(self, depths: tuple[int, ...] = (2, 1, 2)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        for i, depth in enumerate(depths):
            stage = [Basic(4 * 2**i, 2 if i and not j else 1) for j in range(depth)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(16, 10)


def names(found: list[dict[str, Any]]) -> list[list[str]]:
    return [group["param_names"] for group in found]


def values(found: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return {name: group[key] for group in found for name in group["param_names"]}


def selected(model: Any, what: Any) -> set[str]:
    return {name for name, _ in select(model, what)}


def test_without_overrides_there_is_one_group_with_everything() -> None:
    model = ViT()
    (group,) = groups(model, BASE)
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    assert all(p is q for p, q in zip(group["params"], model.parameters(), strict=True))
    assert {key: group[key] for key in BASE} == BASE


def test_later_entries_win_key_by_key() -> None:
    found = groups(
        ViT(1),
        BASE,
        {
            "*.bias": {"weight_decay": 0.0, "lr": 0.2},
            nn.LayerNorm: {"weight_decay": 0.5},
            re.compile(r"^head\."): {"lr": 1.0},
        },
    )
    lr, decay = values(found, "lr"), values(found, "weight_decay")
    assert (lr["head.weight"], decay["head.weight"]) == (1.0, 0.01)
    assert (lr["head.bias"], decay["head.bias"]) == (1.0, 0.0)
    assert (lr["norm.weight"], decay["norm.weight"]) == (0.1, 0.5)
    assert (lr["norm.bias"], decay["norm.bias"]) == (0.2, 0.5)
    assert (lr["blocks.0.mlp.0.weight"], decay["blocks.0.mlp.0.weight"]) == (0.1, 0.01)


def test_groups_are_plain_and_torch_takes_them() -> None:
    model = ViT(1)
    base = {"lr": 0.1, "weight_decay": 0.01}
    found = groups(model, base, {biases | norms: {"weight_decay": 0.0}})
    optimizer = torch.optim.AdamW(found)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert optimizer.param_groups[0]["param_names"] == found[0]["param_names"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.1])), min_size=1, max_size=12))
def test_equal_hyperparameters_share_a_group_in_the_order_of_the_parameters(kinds: list[tuple[int, float]]) -> None:
    named = [(f"p{i}.{kind}.{decay}", torch.zeros(2)) for i, (kind, decay) in enumerate(kinds)]
    overrides = {f"*.{kind}.*": {"lr": 0.1 * (kind % 2)} for kind in {kind for kind, _ in kinds}}
    overrides |= {f"*.{decay}": {"weight_decay": decay} for decay in {decay for _, decay in kinds}}
    found = groups(named, BASE, overrides)
    expected: dict[tuple[float, float], list[str]] = {}
    for (name, _), (kind, decay) in zip(named, kinds, strict=True):
        expected.setdefault((0.1 * (kind % 2), decay), []).append(name)
    assert names(found) == list(expected.values())
    assert [(group["lr"], group["weight_decay"]) for group in found] == list(expected)
    tensors = dict(named)
    assert all(p is tensors[n] for group in found for n, p in zip(group["param_names"], group["params"], strict=True))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("head.*", {"head.weight", "head.bias"}),
        ("blocks.{0,2}.norm?.weight", {f"blocks.{i}.norm{j}.weight" for i in (0, 2) for j in (1, 2)}),
        ("blocks.{0..2}.norm1.bias", {f"blocks.{i}.norm1.bias" for i in (0, 1, 2)}),
        ("blocks.{0..2..2}.norm1.bias", {f"blocks.{i}.norm1.bias" for i in (0, 2)}),
        ("blocks.[!0-1].norm1.bias", {"blocks.2.norm1.bias"}),
        ("blocks.1.*.?.bias", {f"blocks.1.{n}.bias" for n in ("mlp.0", "mlp.2", "attn.q", "attn.k", "attn.v")}),
        (re.compile(r"(cls|pos)_"), {"cls_token", "pos_embed"}),
        (nn.Conv2d, {"patch_embed.weight", "patch_embed.bias"}),
        (nn.GELU | selector(nn.Conv2d), {"patch_embed.weight", "patch_embed.bias"}),
        (
            nn.LayerNorm & selector("*.bias"),
            {"norm.bias", *(f"blocks.{i}.norm{j}.bias" for i in range(3) for j in (1, 2))},
        ),
        (lambda name, p, module: isinstance(module, nn.Linear) and len(p) == 10, {"head.weight", "head.bias"}),
        (by_ndim(3), {"cls_token", "pos_embed"}),
        (by_ndim(3, 4), {"cls_token", "pos_embed", "patch_embed.weight"}),
        ("head.*" & ~biases, {"head.weight"}),
        (nn.Conv2d | selector("head.bias"), {"patch_embed.weight", "patch_embed.bias", "head.bias"}),
        (norms & re.compile("^norm"), {"norm.weight", "norm.bias"}),
    ],
)
def test_selectors(what: Any, expected: set[str]) -> None:
    assert selected(ViT(), what) == expected


def test_a_module_class_means_all_that_lies_in_such_a_module() -> None:
    assert selected(ViT(), Block) == {name for name, _ in ViT().named_parameters() if name.startswith("blocks.")}


class T5Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class LayerNormBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 3)
        self.fc = nn.Linear(3, 3)


def test_ready_made_selectors() -> None:
    model = nn.ModuleDict(
        {
            "batch": nn.BatchNorm2d(3),
            "rms": nn.RMSNorm(3),
            "t5": T5Norm(),
            "block": LayerNormBlock(),
            "lstm": nn.LSTM(2, 2),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "words": nn.Embedding(3, 2),
            "bag": nn.EmbeddingBag(3, 2),
        }
    )
    assert selected(model, norms) == {
        *("batch.weight", "batch.bias", "rms.weight", "t5.scale", "block.norm.weight", "block.norm.bias")
    }
    assert selected(model, biases) == {
        *("batch.bias", "block.norm.bias", "block.fc.bias", "lstm.bias_ih_l0", "lstm.bias_hh_l0"),
        *("attention.in_proj_bias", "attention.bias_k", "attention.bias_v", "attention.out_proj.bias"),
    }
    assert selected(model, embeddings) == {"words.weight", "bag.weight"}


def test_selectors_print_as_they_are_written() -> None:
    both = ("*.weight" & by_ndim(2)) | ~norms
    assert str(both) == "(('*.weight' & by_ndim(2)) | ~norms)"
    assert str(selector(nn.Linear) | re.compile("a")) == "(Linear | re.compile('a'))"


@pytest.mark.parametrize("what", [3, None, int, nn.Linear(1, 1), ["a"]])
def test_something_else_is_no_selector(what: Any) -> None:
    with pytest.raises(TypeError, match="a selector is a glob"):
        select(ViT(), what)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("haed.*", r"'haed\.\*' matches no parameter; did you mean 'head\.\*'"),
        ("*.bais", r"did you mean '\*\.bias'"),
        ("head.wieght", r"did you mean 'head\.weight'"),
        (nn.Conv1d, r"^Conv1d matches no parameter; did you mean 'Conv2d'"),
        (re.compile("^$"), "matches no parameter"),
        (lambda name, p, module: False, "<lambda> matches no parameter"),
        (by_ndim(9), r"by_ndim\(9\) matches no parameter"),
    ],
)
def test_a_selector_that_matches_nothing_names_the_nearest(what: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(ViT(), BASE, {"*": {"lr": 0.2}, what: {"lr": 0.1}})
    with pytest.raises(ValueError, match=message):
        select(ViT(), what)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (norms | "*.bais", r"'\*\.bais' in \(norms \| '\*\.bais'\) matches no parameter; did you mean '\*\.bias'"),
        ("*.bias" | norms | "haed.*", r"'haed\.\*' in .* did you mean 'head\.\*'"),
        (by_ndim(2) & ~selector("haed.*"), r"'haed\.\*' in \(by_ndim\(2\) & ~'haed\.\*'\) matches no parameter"),
        (~(norms & selector(re.compile("nope"))), r"re.compile\('nope'\) in ~\(norms & "),
    ],
)
def test_a_name_within_a_combination_matches_something_by_itself(what: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(ViT(), BASE, {what: {"lr": 0.1}})


def test_what_has_no_name_may_be_absent_from_a_combination() -> None:
    linear = nn.Sequential(nn.Linear(2, 2, bias=False))
    assert [name for name, _ in select(linear, norms | biases | nn.Conv1d | "0.*")] == ["0.weight"]


def test_an_unknown_hyperparameter_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'weight_deacy' in the override of '\*.bias'; did you mean 'weight_decay'"):
        groups(ViT(), BASE, {"*.bias": {"weight_deacy": 0.0}})
    with pytest.raises(ValueError, match=r"'rho' .*; there are betas, lr, nesterov, weight_decay"):
        groups(ViT(), BASE, {"*.bias": {"rho": 0.0}})
    with pytest.raises(TypeError, match=r"override of '\*.bias' must be a dictionary"):
        groups(ViT(), BASE, {"*.bias": 0.1})  # type: ignore[dict-item]


def test_exclusive_entries_may_not_meet() -> None:
    clean = {**exclusive({nn.LayerNorm: {"lr": 1.0}, "head.*": {"lr": 2.0}}), "*.bias": {"weight_decay": 0.0}}
    found = groups(ViT(), BASE, clean)
    assert values(found, "lr")["norm.bias"] == 1.0
    assert values(found, "weight_decay")["norm.bias"] == 0.0
    with pytest.raises(ValueError, match=r"^norm.bias is matched by LayerNorm and '\*\.bias', which are exclusive"):
        groups(nn.ModuleDict({"norm": nn.LayerNorm(2)}), BASE, exclusive({nn.LayerNorm: {}, "*.bias": {}}))


def test_tied_parameters_appear_once_under_their_first_name() -> None:
    model = GPT()
    found = groups(model, BASE, {embeddings: {"weight_decay": 0.0}})
    listed = [name for group in names(found) for name in group]
    assert listed.count("transformer.wte.weight") == 1
    assert "lm_head.weight" not in listed
    with pytest.raises(ValueError, match=r"lm_head.weight is tied to transformer.wte.weight and goes by that name"):
        groups(model, BASE, {"lm_head.*": {"lr": 0.0}})
    pairs = list(model.named_parameters(remove_duplicate=False))
    assert sorted(names(groups(pairs, BASE))[0]) == sorted(listed)


def test_pairs_of_names_and_tensors_have_everything_but_modules() -> None:
    pairs = list(ViT().named_parameters())
    whats = ["*.bias", re.compile("^head"), by_ndim(1), biases, lambda name, p, module: module is None and p.ndim == 4]
    for what in whats:
        assert selected(pairs, what)
    for what in (nn.LayerNorm, norms, embeddings, "*.bias" & norms, ~norms):
        with pytest.raises(ValueError, match=r"selects by module, .* give the nn.Module itself"):
            groups(pairs, BASE, {what: {"lr": 0.0}})


def test_bare_tensors_are_selected_by_what_they_are() -> None:
    tensors = [torch.zeros(2), torch.zeros(2, 2), torch.zeros(3)]
    found = groups(tensors, BASE, {by_ndim(1): {"lr": 0.0}})
    assert [[p.shape for p in group["params"]] for group in found] == [[(2,), (3,)], [(2, 2)]]
    assert all("param_names" not in group for group in found)
    for what in ("*.bias", re.compile("a"), biases):
        with pytest.raises(ValueError, match=r"selects by name.*named_parameters"):
            groups(tensors, BASE, {what: {"lr": 0.0}})
    assert select(tensors, lambda name, p, module: len(p) == 3) == [("", tensors[2])]


def test_group_dictionaries_are_split_each_by_itself() -> None:
    body, head = nn.Linear(2, 2), nn.Linear(2, 2)
    given: list[Any] = [
        {"params": list(body.named_parameters()), "lr": 1.0},
        {"params": list(head.parameters()), "param_names": ["head.weight", "head.bias"], "lr": scale(10)},
        {"params": []},
    ]
    found = groups(given, BASE, {"*bias": {"weight_decay": 0.0, "lr": scale(0.5)}})
    assert [group.get("param_names") for group in found] == [["weight"], ["bias"], ["head.weight"], ["head.bias"], None]
    assert [group["lr"] for group in found] == [1.0, 0.5, 1.0, 0.5, 0.1]
    assert [group["weight_decay"] for group in found] == [0.01, 0.0, 0.01, 0.0, 0.01]
    assert given[0].keys() == {"params", "lr"}


@pytest.mark.parametrize("params", [torch.zeros(3), {torch.zeros(3)}, [3], [("a", 3)]])
def test_what_is_not_parameters_is_a_type_error(params: Any) -> None:
    with pytest.raises(TypeError, match="must be"):
        groups(params, BASE)


def test_scale_multiplies_what_the_optimizer_has() -> None:
    found = groups(ViT(1), BASE, {"*": {"lr": 5.0}, "head.*": {"lr": scale(0.5), "weight_decay": scale(2)}})
    assert values(found, "lr")["head.weight"] == 0.05
    assert values(found, "weight_decay")["head.weight"] == 0.02
    assert values(found, "lr")["norm.weight"] == 5.0


def test_scale_goes_on_under_a_schedule_a_function_and_a_tensor() -> None:
    for rate in (0.4 * cosine(10), lambda step: 0.4 * cosine(10)(step)):
        found = groups(ViT(2), BASE | {"lr": rate}, {"blocks.*": {"lr": scale(0.1)}, "blocks.0.*": {"lr": scale(0.1)}})
        assert len(found) == 2
        for group in found:
            group["schedules"] = separate(group)
        for step in (0, 4, 10):
            write(found, step)
            assert found[1]["lr"] == pytest.approx(0.1 * found[0]["lr"], rel=1e-15)
            assert found[0]["lr"] == pytest.approx(0.4 * cosine(10)(step), rel=1e-15)
    found = groups(ViT(2), BASE | {"lr": torch.tensor(0.4)}, {"blocks.*": {"lr": scale(0.1)}})
    assert len(found) == 2
    torch.testing.assert_close(found[1]["lr"], torch.tensor(0.04))


@pytest.mark.parametrize("name", ["betas", "nesterov"])
def test_scale_of_something_that_is_no_number(name: str) -> None:
    with pytest.raises(ValueError, match=rf"scale\(0.1\) can't multiply {name}="):
        groups(ViT(1), BASE, {"head.*": {name: scale(0.1)}})
    for bad in ("a", float("nan"), True):
        with pytest.raises(ValueError, match="factor must be a finite number"):
            scale(bad)  # type: ignore[arg-type]


def test_equal_schedules_share_a_group() -> None:
    found = groups(ViT(1), BASE, {"head.*": {"lr": 0.1 * cosine(9)}, "norm.*": {"lr": 0.1 * cosine(9)}})
    assert len(found) == 2


def test_untracked_names_what_trains_and_belongs_nowhere() -> None:
    model = GPT()
    params = list(model.parameters())
    assert untracked(model, params) == []
    model.extra = nn.Linear(4, 4)
    model.extra.bias.requires_grad_(False)
    assert [name for name, _ in untracked(model, params)] == ["extra.weight"]


def rates(model: nn.Module, overrides: dict[Any, Any]) -> dict[str, float]:
    return values(groups(model, {"lr": 1.0}, overrides), "lr")


def assert_rates(model: nn.Module, overrides: dict[Any, Any], by_hand: dict[str, float]) -> None:
    """``by_hand`` gives the rate of everything whose name starts so."""
    found = rates(model, overrides)
    for name, rate in found.items():
        (expected,) = {by_hand[start] for start in by_hand if f"{name}.".startswith(f"{start}.")}
        assert rate == pytest.approx(expected), name


VIT_BY_HAND = {
    "cls_token": 0.75**4,
    "pos_embed": 0.75**4,
    "patch_embed": 0.75**4,
    "blocks.0": 0.75**3,
    "blocks.1": 0.75**2,
    "blocks.2": 0.75,
    "norm": 1.0,
    "head": 1.0,
}
RESNET_BY_HAND = {
    "conv1": 0.5**6,
    "bn1": 0.5**6,
    "layer1.0": 0.5**5,
    "layer1.1": 0.5**4,
    "layer2.0": 0.5**3,
    "layer3.0": 0.5**2,
    "layer3.1": 0.5,
    "fc": 1.0,
}


def test_layer_decay_of_a_vit() -> None:
    model = ViT()
    assert_rates(model, layer_decay(model, 0.75), VIT_BY_HAND)


@pytest.mark.parametrize("tied", [True, False])
def test_layer_decay_of_a_gpt_whose_embeddings_come_after_the_blocks(tied: bool) -> None:
    model = GPT(tied=tied)
    by_hand = {"transformer.wte": 0.75**3, "transformer.wpe": 0.75**3, "transformer.h.0": 0.75**2}
    by_hand |= {"transformer.h.1": 0.75, "transformer.ln_f": 1.0, "lm_head": 1.0}
    assert_rates(model, layer_decay(model, 0.75), by_hand)


def test_layer_decay_of_a_resnet() -> None:
    model = ResNet()
    assert_rates(model, layer_decay(model, 0.5), RESNET_BY_HAND)


def test_layer_decay_takes_a_block_with_experts_as_one_layer() -> None:
    model = GPT(experts=4)
    by_hand = {"transformer.wte": 0.5**3, "transformer.wpe": 0.5**3, "transformer.h.0": 0.25}
    assert_rates(model, layer_decay(model, 0.5), by_hand | {"transformer.h.1": 0.5, "transformer.ln_f": 1.0})


def test_layer_decay_of_nested_containers_and_of_what_stands_between() -> None:
    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    stages = [nn.Sequential(Basic(4, 1), Basic(4, 1)), nn.Conv2d(4, 4, 1), nn.Sequential(Basic(4, 1))]
    model = nn.Sequential(conv, norm, nn.Sequential(*stages), nn.Flatten(), nn.Linear(3, 3))
    by_hand = {"0": 0.5**4, "1": 0.5**4, "2.0.0": 0.5**3, "2.0.1": 0.5**2, "2.1": 0.5**2, "2.2.0": 0.5, "4": 1.0}
    assert_rates(model, layer_decay(model, 0.5), by_hand)


def test_layer_decay_of_plain_layers() -> None:
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    model = nn.ModuleDict({"features": features, "classifier": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))})
    by_hand = {"features.0": 0.5**3, "features.1": 0.5**3, "features.3": 0.5**2}
    assert_rates(model, layer_decay(model, 0.5), by_hand | {"classifier.0": 0.5, "classifier.1": 1.0})


def test_layer_decay_in_an_order_given_by_hand() -> None:
    model = ResNet()
    order: list[Any] = ["conv1.*", selector("bn1.*") | "layer1.*", "layer2.*", "layer3.*", "*"]
    by_hand = {"conv1": 0.5**4, "bn1": 0.5**3, "layer1": 0.5**3, "layer2": 0.5**2, "layer3": 0.5, "fc": 1.0}
    assert_rates(model, layer_decay(model, 0.5, order), by_hand)
    with pytest.raises(ValueError, match=r"order leaves out \{bn1,fc\}\.\{weight,bias\}"):
        layer_decay(model, 0.5, ["conv1.*", "layer*"])
    with pytest.raises(ValueError, match=r"'fc\.\*' in order matches only parameters of the layers before"):
        layer_decay(model, 0.5, ["*", "fc.*"])
    with pytest.raises(ValueError, match=r"'layer9\.\*' matches no parameter; did you mean"):
        layer_decay(model, 0.5, ["layer9.*", "*"])


def test_layer_decay_goes_with_other_overrides_and_under_a_schedule() -> None:
    model = ViT()
    overrides = {**layer_decay(model, 0.75), biases | norms: {"weight_decay": 0.0}, "head.*": {"lr": 3.0}}
    found = groups(model, BASE | {"lr": 2.0 * cosine(10)}, overrides)
    for group in found:
        group["schedules"] = separate(group, step=5)
    assert values(found, "lr")["blocks.1.norm1.bias"] == pytest.approx(0.75**2)
    assert values(found, "weight_decay")["blocks.1.norm1.bias"] == 0.0
    assert values(found, "lr")["head.weight"] == 3.0
    assert len(found) == 2 * (1 + 3) + 1 + 2


class ByHand(nn.Module):
    """Its blocks are attributes: the plain layers inside them are not the layers of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = Block(), Block()


def test_layer_decay_without_layers_asks_for_them() -> None:
    with pytest.raises(ValueError, match=r"was found in ByHand.*order="):
        layer_decay(ByHand(), 0.5)
    with pytest.raises(ValueError, match=r"no ModuleList or Sequential of blocks was found in Bilinear.*order="):
        layer_decay(nn.Bilinear(2, 2, 2), 0.5)
    for bad in (0, -1, float("inf"), True, "0.5"):
        with pytest.raises(ValueError, match="decay must be a positive number"):
            layer_decay(ViT(), bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            GPT(12),
            [
                "transformer.h.{0..11}.norm{1,2}.{weight,bias}",
                "transformer.h.{0..11}.attn.*.{weight,bias}",
                "transformer.h.{0..11}.mlp.{0,2}.{weight,bias}",
                "transformer.{wte,wpe}.weight",
                "transformer.ln_f.{weight,bias}",
            ],
        ),
        (nn.Sequential(*(nn.Linear(1, 1) for _ in range(101))), ["{0..100}.{weight,bias}"]),
    ],
)
def test_fold_makes_a_deep_model_short(model: nn.Module, expected: list[str]) -> None:
    everything = [name for name, _ in model.named_parameters()]
    assert fold(everything) == fold(everything, everything) == expected


def test_fold_of_numbers() -> None:
    def folded(numbers: Any) -> list[str]:
        return fold(f"layer{i}.w" for i in numbers)

    assert folded([3]) == ["layer3.w"]
    assert folded([0, 1]) == ["layer{0,1}.w"]
    assert folded([0, 1, 2, 5]) == ["layer{0..2,5}.w"]
    assert folded(range(0, 99, 2)) == ["layer{0..98..2}.w"]
    assert fold(["a01.w", "a1.w"]) == ["{a01,a1}.w"]
    assert fold([]) == []


def test_fold_does_not_mind_the_order() -> None:
    assert fold(["1.weight", "0.weight", "0.bias", "1.bias"]) == ["{0,1}.{weight,bias}"]


def test_fold_says_star_only_where_it_is_true() -> None:
    group = [f"h.{i}.{part}.w" for i in range(9) for part in "abcd"]
    assert fold(group) == ["h.{0..8}.*.w"]
    assert fold(group, [*group, "h.3.e.w"]) == ["h.{0..8}.{a,b,c,d}.w"]


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "fc1", "fc2", "0", "1", "2", "3", "4", "10"]), max_size=4)
some_names = st.lists(words.filter(bool).map(".".join), max_size=25, unique=True)


@settings(deadline=None)
@given(some_names, st.randoms())
def test_folded_names_mean_exactly_the_names(universe: list[str], random: Any) -> None:
    chosen = [name for name in universe if random.random() < 0.6]
    globs = fold(chosen, universe)
    assert len(globs) <= len(chosen)
    found = {name for glob in globs for name, _ in select([(name, torch.zeros(1)) for name in chosen], glob)}
    assert found == set(chosen)
    rest = [(name, torch.zeros(1)) for name in universe if name not in chosen]
    for glob in globs if rest else []:
        with pytest.raises(ValueError, match="matches no parameter"):
            select(rest, glob)


def test_ten_thousand_parameters_are_no_matter() -> None:
    named = [(f"layers.{i}.{kind}", torch.zeros(1)) for i in range(5000) for kind in ("weight", "bias")]
    found = groups(named, BASE, {"*.bias": {"weight_decay": 0.0}, "layers.{0..9}.*": {"lr": scale(0.5)}})
    assert [len(group["params"]) for group in found] == [10, 10, 4990, 4990]
    everything = [name for name, _ in named]
    assert [fold(names_of, everything) for names_of in names(found)] == [
        ["layers.{0..9}.weight"],
        ["layers.{0..9}.bias"],
        ["layers.{10..4999}.weight"],
        ["layers.{10..4999}.bias"],
    ]


def test_a_function_selector_sees_name_parameter_and_owner() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    seen: list[tuple[str, torch.Tensor, nn.Module | None]] = []

    def everything(name: str, parameter: torch.Tensor, module: nn.Module | None) -> bool:
        seen.append((name, parameter, module))
        return True

    select(model, everything)
    assert [(name, module) for name, _, module in seen] == [
        *(("0.weight", model[0]), ("0.bias", model[0]), ("1.weight", model[1]), ("1.bias", model[1]))
    ]
    assert all(p is q for (_, p, _), q in zip(seen, model.parameters(), strict=True))
