"""A model as a row of blocks: by nesting alone, on nets of every habit of naming."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.compat import import_torchvision
from frostline.optim import depth_of
from frostline.optim.blocks import Block, block_of, depths_of
from frostline.state import names


class Layer(nn.Module):
    """A block with parts."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.attention = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.output(self.attention(x).relu()))


class Encoder(nn.Module):
    """Blocks under `layer`, as in BERT and ViT of transformers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.layer:
            x = each(x)
        return x


def paths_of(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(block.path for block in block_of(model).values()))


def repeated_in(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(block.path for block in block_of(model).values() if block.repeated))


def test_a_net_of_plain_layers_is_a_row_of_its_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert paths_of(model) == ["0", "2.0", "2.1"]
    assert repeated_in(model) == []


def test_a_module_is_looked_into_where_a_row_lies_below_it():
    model = nn.ModuleDict({"embed": nn.Linear(2, 2), "trunk": Encoder(3), "fc": nn.Linear(2, 1)})
    assert paths_of(model) == ["embed", "trunk.layer.0", "trunk.layer.1", "trunk.layer.2", "fc"]
    assert repeated_in(model) == ["trunk.layer.0", "trunk.layer.1", "trunk.layer.2"]


def test_a_module_without_a_row_below_it_is_one_block():
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    assert paths_of(nn.Sequential(Stem(), nn.Linear(2, 2))) == ["0", "1"]


def test_parameters_of_the_root_and_of_opened_modules_stand_alone():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(2))
            self.encoder = Encoder(2)
            self.encoder.scale = nn.Parameter(torch.ones(2))

    found = block_of(Net())
    assert found["cls_token"] == Block("cls_token", repeated=False)
    assert found["encoder.scale"] == Block("encoder.scale", repeated=False)
    assert depths_of(found)["cls_token"] == depths_of(found)["encoder.scale"] == 0


def test_every_name_of_a_shared_module_is_told():
    layer = Layer()
    model = nn.ModuleDict({"first": layer, "again": layer})
    assert set(block_of(model)) == {name for name, _ in model.named_parameters(remove_duplicate=False)}


def test_a_sequence_with_a_forward_of_its_own_is_a_block():
    class Residual(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + super().forward(x)

    class Stage(nn.Sequential):
        """A name for a chain, as torchvision's AnyStage."""

    assert paths_of(nn.Sequential(Residual(Layer(), Layer()), Residual(Layer(), Layer()))) == ["0", "1"]
    stages = nn.Sequential(Stage(Layer(), Layer()), Stage(Layer(), Layer()))
    assert paths_of(stages) == ["0.0", "0.1", "1.0", "1.1"]
    assert set(depths_of(block_of(stages)).values()) == {1, 2, 3, 4}, "no stem before the row: 0 stays free"


def test_a_sequence_with_a_name_and_only_leaves_is_a_block():
    class ConvNorm(nn.Sequential):
        pass

    assert paths_of(nn.Sequential(ConvNorm(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 1))) == ["0", "1"]


def test_a_stage_of_one_block_counts_as_much_as_one_of_two():
    # EfficientNet's first and last stages have one block each.
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Layer()), nn.Sequential(Layer(), Layer()))
    assert repeated_in(model) == ["1.0", "2.0", "2.1"]
    assert list(dict.fromkeys(depths_of(block_of(model)).values())) == [0, 1, 2, 3]


def test_what_stands_alone_elsewhere_is_a_layer_and_makes_no_row():
    class ConvNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = ConvNorm()
            self.two = nn.Sequential(ConvNorm(), ConvNorm())
            self.three = nn.Sequential(ConvNorm(), ConvNorm())

    model = nn.ModuleDict({"stem": ConvNorm(), "a": Inception(), "b": Inception()})
    assert paths_of(model) == ["stem", "a", "b"], "parallel branches are not one behind the other"
    assert list(dict.fromkeys(depths_of(block_of(model)).values())) == [0, 1, 2]


def test_an_alias_beside_a_list_does_not_hide_its_row():
    model = nn.ModuleDict({"encoder": Encoder(3)})
    model.register_module("last", model["encoder"].layer[-1])
    assert repeated_in(model) == ["encoder.layer.0", "encoder.layer.1", "encoder.layer.2", "last"]


def test_what_stands_between_and_behind_a_row_counts_with_what_is_before_it():
    row = {f"layer.{index}.w": Block(f"layer.{index}", repeated=True) for index in (0, 1)}
    between = {"layer.0.w": row["layer.0.w"], "merge.w": Block("merge", repeated=False), "layer.1.w": row["layer.1.w"]}
    behind = {"norm.w": Block("norm", repeated=False, is_norm=True), "last": Block("last", repeated=False)}
    before = {"token": Block("token", repeated=False), "stem.w": Block("stem", repeated=False)}
    assert depths_of({**before, **between, **behind}) == {
        "token": 0,
        "stem.w": 0,
        "layer.0.w": 1,
        "merge.w": 1,
        "layer.1.w": 2,
        "norm.w": 2,
        "last": 0,
    }, "a parameter under its own name is of the root, wherever it is registered"


def test_without_a_row_every_block_counts_but_norms_which_go_with_the_one_before():
    model = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.Linear(2, 2)
    )
    depths = depths_of(block_of(model))
    assert [depths[f"{index}.weight"] for index in range(6)] == [0, 0, 1, 1, 1, 2]
    first = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    assert set(depths_of(block_of(first)).values()) == {0}, "a norm before everything is of the stem"


def test_order_wins_over_registration_and_what_never_ran_stays_behind_its_neighbour():
    blocks = {f"{name}.w": Block(name, repeated=False) for name in ("c", "unused", "a", "b")}
    assert depths_of(blocks) == {"c.w": 0, "unused.w": 1, "a.w": 2, "b.w": 3}
    assert depths_of(blocks, ["a", "b", "c"]) == {"a.w": 0, "b.w": 1, "c.w": 2, "unused.w": 3}
    assert depths_of(blocks, ["a.deep.part", "b", "c", "a"])["a.w"] == 0, "a part that ran counts for its block"
    assert depths_of(blocks, []) == depths_of(blocks), "nothing ran: the order of registration"


def test_bert_with_a_classifier(falls):
    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.Sequential(nn.Embedding(9, 2), nn.LayerNorm(2))
            self.encoder = Encoder(4)
            self.pooler = nn.ModuleDict({"dense": nn.Linear(2, 2)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pooler["dense"](self.encoder(self.embeddings(x))[:, 0])

    class BertForSequenceClassification(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = Bert()
            self.classifier = nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.bert(x))

    model = BertForSequenceClassification()
    depths = depth_of(model)
    assert depths.head == {"classifier.weight", "classifier.bias"}
    assert depths.of["bert.embeddings.0.weight"] == depths.of["bert.embeddings.1.weight"] == 0
    assert [depths.of[f"bert.encoder.layer.{n}.output.weight"] for n in range(4)] == [1, 2, 3, 4]
    assert depths.of["bert.pooler.dense.weight"] == 4
    assert depths.of["classifier.weight"] == depths.deepest == 5
    assert falls(model, depths.of, torch.zeros(2, 3, dtype=torch.long)) == []


def test_vit_with_tokens_below_the_root(falls):
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
            self.position_embeddings = nn.Parameter(torch.zeros(1, 4, 2))
            self.projection = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.cls_token.expand(len(x), -1, -1), self.projection(x)], 1) + self.position_embeddings

    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings, self.encoder, self.layernorm = Embeddings(), Encoder(3), nn.LayerNorm(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layernorm(self.encoder(self.embeddings(x)))

    class VitForImageClassification(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit, self.classifier = Vit(), nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.vit(x)[:, 0])

    model = VitForImageClassification()
    depths = depth_of(model)
    stem = {name for name, depth in depths.of.items() if depth == 0}
    assert stem == {name for name, _ in model.named_parameters() if name.startswith("vit.embeddings.")}
    assert depths.of["vit.layernorm.weight"] == depths.of["vit.encoder.layer.2.norm.weight"] == 3
    assert falls(model, depths.of, torch.zeros(2, 3, 5)) == []


def test_gpt_whose_head_is_its_embedding(falls):
    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.ModuleDict(
                {
                    "wte": nn.Embedding(9, 2),
                    "wpe": nn.Embedding(4, 2),
                    "h": nn.ModuleList(Layer() for _ in range(3)),
                    "ln_f": nn.LayerNorm(2),
                }
            )
            self.lm_head = nn.Linear(2, 9, bias=False)
            self.lm_head.weight = self.transformer["wte"].weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.transformer
            x = parts["wte"](x) + parts["wpe"](torch.arange(x.shape[1]))
            for each in parts["h"]:
                x = each(x)
            return self.lm_head(parts["ln_f"](x))

    model = Gpt()
    depths = depth_of(model)
    assert depths.of["transformer.wte.weight"] == depths.of["transformer.wpe.weight"] == 0
    assert [depths.of[f"transformer.h.{n}.output.bias"] for n in range(3)] == [1, 2, 3]
    assert depths.of["transformer.ln_f.weight"] == 3
    assert depths.of["lm_head.weight"] == depths.deepest == 4, "under its other name it is the head"
    assert depths.head == {"lm_head.weight"}
    assert falls(model, depths.of, torch.zeros(2, 4, dtype=torch.long)) == []


def test_wav2vec2_with_two_rows_one_behind_the_other(falls):
    class Conv(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv, self.layer_norm = nn.Conv1d(width, 2, 3, padding=1), nn.GroupNorm(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer_norm(self.conv(x)).relu()

    class Wav2Vec2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.masked_spec_embed = nn.Parameter(torch.zeros(2))
            self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList([Conv(1), Conv(2), Conv(2)])})
            self.feature_projection = nn.ModuleDict({"layer_norm": nn.LayerNorm(2), "projection": nn.Linear(2, 2)})
            self.encoder = nn.ModuleDict(
                {
                    "pos_conv_embed": nn.Conv1d(2, 2, 3, padding=1),
                    "layer_norm": nn.LayerNorm(2),
                    "layers": nn.ModuleList(Layer() for _ in range(2)),
                }
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for each in self.feature_extractor["conv_layers"]:
                x = each(x)
            x = self.feature_projection["projection"](self.feature_projection["layer_norm"](x.mT))
            x = self.encoder["layer_norm"](x + self.encoder["pos_conv_embed"](x.mT).mT)
            for each in self.encoder["layers"]:
                x = each(x)
            return x

    class Wav2Vec2ForCTC(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wav2vec2, self.lm_head = Wav2Vec2(), nn.Linear(2, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.wav2vec2(x))

    model = Wav2Vec2ForCTC()
    depths = depth_of(model)
    assert [depths.of[f"wav2vec2.feature_extractor.conv_layers.{n}.conv.weight"] for n in range(3)] == [1, 2, 3]
    assert depths.of["wav2vec2.masked_spec_embed"] == 0
    assert depths.of["wav2vec2.feature_projection.projection.weight"] == 3
    assert depths.of["wav2vec2.encoder.pos_conv_embed.weight"] == 3
    assert [depths.of[f"wav2vec2.encoder.layers.{n}.norm.weight"] for n in range(2)] == [4, 5]
    assert depths.of["lm_head.weight"] == 6
    assert falls(model, depths.of, torch.zeros(2, 1, 8)) == []


# The depth of the last block, as the papers' tables count blocks, and the path of the classifier.
TORCHVISION = {
    "resnet18": (8, "fc"),
    "vgg11_bn": (7, "classifier"),  # convolutions only: the two hidden layers belong to torchvision's classifier
    "densenet121": (58, "classifier"),
    "mobilenet_v2": (17, "classifier"),
    "mobilenet_v3_small": (11, "classifier"),
    "efficientnet_b0": (16, "classifier"),
    "regnet_y_400mf": (16, "fc"),
    "vit_b_16": (12, "heads"),
    "convnext_tiny": (18, "classifier"),
    "swin_t": (15, "head"),  # twelve blocks and three mergings
    "shufflenet_v2_x0_5": (16, "fc"),
    "mnasnet0_5": (16, "classifier"),
    "squeezenet1_0": (8, "classifier"),
    "googlenet": (13, "fc"),  # three convolutions, nine Inceptions, and two auxiliary classifiers
    "inception_v3": (16, "fc"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_rises_along_the_forward_pass(name, falls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = import_torchvision("models")
    # On the meta device nothing is computed; RegNet reads numbers while it is built.
    device = "cpu" if name.startswith("regnet") else "meta"
    extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    with torch.device(device):
        model = models.get_model(name, **extra)
        size = 299 if name == "inception_v3" else 224
        images = torch.zeros(2, 3, size, size)
    depths = depth_of(model)
    trunk, head = TORCHVISION[name]
    assert depths.deepest == trunk + 1
    assert set(depths.of.values()) == set(range(trunk + 2)), "no gaps"
    classifier = {path for path, _ in model.named_parameters() if names.is_under(path, head)}
    assert depths.head == classifier
    assert {path for path, depth in depths.of.items() if depth == depths.deepest} == classifier
    with torch.device(device):
        assert falls(model, depths.of, images) == []


def test_the_check_of_rising_depths_sees_a_swap(falls):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    depths = dict(depth_of(model).of)
    assert falls(model, depths, torch.zeros(1, 2)) == []
    depths["1.weight"] = 2
    assert falls(model, depths, torch.zeros(1, 2)) == ["1.bias"]


def leaf() -> st.SearchStrategy[nn.Module]:
    return st.sampled_from([nn.Linear, nn.LayerNorm, nn.ReLU, Layer, nn.BatchNorm1d]).map(
        lambda kind: kind(2, 2) if kind is nn.Linear else kind() if kind in (nn.ReLU, Layer) else kind(2)
    )


nets = st.recursive(
    leaf(),
    lambda inner: st.lists(inner, min_size=1, max_size=4).flatmap(
        lambda parts: st.sampled_from(
            [
                nn.Sequential,
                lambda *p: nn.ModuleList(p),
                lambda *p: nn.ModuleDict({f"m{i}": q for i, q in enumerate(p)}),
            ]
        ).map(lambda make: make(*parts))
    ),
    max_leaves=14,
)


@settings(max_examples=150, deadline=None)
@given(net=nets)
def test_of_any_net_each_parameter_lies_in_one_block_that_lies_above_it(net):
    model = nn.Sequential(net, nn.Linear(2, 2))
    found = block_of(model)
    assert list(found) == [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert all(names.is_under(name, block.path) for name, block in found.items())
    paths = set(paths_of(model))
    assert not any(names.is_under(a, b) for a in paths for b in paths if a != b), "no block lies in another"
    depths = depths_of(found)
    seen = [depths[name] for name in found]
    assert seen == sorted(seen), "in the order of registration depths never fall"
    assert {b - a for a, b in pairwise(seen)} <= {0, 1}
