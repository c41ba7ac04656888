"""A split layer is, for the current domain, the plain layer with that domain's statistics: equal to the bit."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from frostline.attach.instance_method import InstanceMethod
from frostline.errors import DomainError
from frostline.norms import EMA, Cumulative, Domain, StatsPolicy
from frostline.norms.domain_forward import Tags, domain_buffers, forward_of
from frostline.norms.domain_split import split_domains
from frostline.norms.domains import domain, domains_of

NAMES = ("ground", "aerial", "night")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Rebinding(nn.BatchNorm2d):
    """Puts new tensors in place of its statistics, as hand-written layers do; and does more than normalize."""

    def forward(self, input):  # noqa: A002 - as torch names it
        if self.training:
            self.num_batches_tracked = self.num_batches_tracked + 1
            self.running_mean = 0.8 * self.running_mean + 0.2 * input.detach().mean((0, 2, 3))
            return super().forward(input).relu()
        return super().forward(input).relu()


def timm_layer():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        from timm.layers import BatchNormAct2d
    return BatchNormAct2d(3)


LAYERS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (3,)),
    "BatchNorm1d, sequences": (lambda: nn.BatchNorm1d(3, eps=1e-2), (3, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (3, 4, 4)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(3), (3, 2, 2, 2)),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(3), (3, 4, 4)),
    "cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 4, 4)),
    "without affine": (lambda: nn.BatchNorm2d(3, affine=False), (3, 4, 4)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (3, 4, 4)),
    "BatchNormAct2d": (timm_layer, (3, 4, 4)),
    "a forward of its own": (lambda: Rebinding(3), (3, 4, 4)),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=LAYERS)
def kind(request):
    make, shape = LAYERS[request.param]
    layer = make()
    for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 2)
    return layer, shape


def batch(shape, n=6, shift=0.0):
    return (torch.randn(n, *shape) * 2 + shift).requires_grad_()


def steps(layers, inputs, current=None):
    """Train on each domain's inputs, then look in eval mode; everything that can be told from outside."""
    seen = []
    for mode in (True, False):
        for name, x in inputs:
            layer = layers[name]
            layer.train(mode)
            x = x.detach().requires_grad_()
            with current(name) if current else warnings.catch_warnings():
                out = layer(x)
            (out * out).sum().backward()
            seen += [out.detach(), x.grad]
    return seen


def statistics(layer, name=None):
    return [getattr(layer, f"{key}_{name}" if name else key) for key in STATISTICS]


def all_equal(these, those):
    return len(these) == len(those) and all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


def interleaved(shape):
    return [(name, batch(shape, shift=3.0 * i)) for i, name in [(0, "ground"), (1, "aerial"), (0, "ground")]]


def test_each_domain_is_a_plain_layer_with_its_statistics(kind):
    layer, shape = kind
    plain = {name: copy.deepcopy(layer) for name in NAMES}
    shared = copy.deepcopy(layer)
    source = [t.clone() for t in statistics(layer)]
    split_domains(layer, NAMES)
    inputs = interleaved(shape)
    seen = steps(dict.fromkeys(NAMES, layer), inputs, lambda name: domain(layer, name))
    assert all_equal(seen, steps(plain, inputs))
    for name in NAMES:
        assert all_equal(statistics(layer, name), statistics(plain[name]))
    assert all_equal(statistics(layer), source)
    assert all_equal(statistics(layer, "night"), source)
    # One layer for all of them is what this repairs: the same steps through it end elsewhere.
    assert not all_equal(steps(dict.fromkeys(NAMES, shared), inputs), seen)


def test_gradients_of_shared_parameters_add_up(kind):
    layer, shape = kind
    plain = {name: copy.deepcopy(layer) for name in NAMES}
    for name in NAMES:
        for key in layer._parameters:
            setattr(plain[name], key, getattr(layer, key))
    inputs = interleaved(shape)
    steps(plain, inputs)
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    split_domains(layer, NAMES)
    steps(dict.fromkeys(NAMES, layer), inputs, lambda name: domain(layer, name))
    assert all_equal([p.grad for p in layer.parameters()], expected)


@pytest.mark.parametrize("as_numbers", [False, True])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_tags_are_the_domains_one_by_one(kind, mode, as_numbers):
    layer, shape = kind
    split_domains(layer, NAMES)
    with domain(layer, "aerial"):
        layer(batch(shape, shift=2.0))
    one_by_one = copy.deepcopy(layer.train(mode))
    tags = ["aerial", "ground", "aerial", "ground", "ground", "aerial", "aerial"]
    x = batch(shape, n=len(tags))
    given = torch.tensor([NAMES.index(tag) for tag in tags]) if as_numbers else tags
    with domains_of(layer).tags(given):
        out = layer(x)
    (out * out).sum().backward()
    expected, gradient = torch.empty_like(out), torch.empty_like(x)
    for name in ("ground", "aerial"):
        positions = [i for i, tag in enumerate(tags) if tag == name]
        part = x.detach()[positions].requires_grad_()
        with domain(one_by_one, name):
            of_part = one_by_one(part)
        (of_part * of_part).sum().backward()
        expected[positions], gradient[positions] = of_part, part.grad
    assert torch.equal(out, expected)
    assert torch.equal(x.grad, gradient)
    assert all_equal(list(layer.state_dict().values()), list(one_by_one.state_dict().values()))
    for p, q in zip(layer.parameters(), one_by_one.parameters(), strict=True):
        # Gradients add up in another order: that of the parts in backward.
        torch.testing.assert_close(p.grad, q.grad)
    assert torch.equal(layer.num_batches_tracked_night, layer.num_batches_tracked)  # no samples, no update


class FirstSampleDecides(nn.Module):
    """As in the published code: model/dsbn.py of woozch/DSBN."""

    def __init__(self, layer):
        super().__init__()
        self.bns = nn.ModuleList([copy.deepcopy(layer) for _ in NAMES[:2]])

    def forward(self, x, domain_label):
        return self.bns[domain_label[0]](x)


class CallsDecide(nn.ModuleList):
    """As detectron2/layers/batch_norm.py:CycleBatchNormList."""

    def __init__(self, layer):
        super().__init__([copy.deepcopy(layer) for _ in NAMES[:2]])
        self._pos = 0

    def forward(self, x, domain_label):
        out = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        return out


class PlaceDecides(nn.Module):
    """timm/layers/split_batchnorm.py: the first half of the batch is one domain; in eval mode all of it is."""

    def __init__(self, layer):
        super().__init__()
        timm_layer()
        from timm.layers import convert_splitbn_model

        self.bn = convert_splitbn_model(copy.deepcopy(layer), 2)

    def forward(self, x, domain_label):
        return self.bn(x)


class Ours(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.bn = copy.deepcopy(layer)
        split_domains(self.bn, NAMES[:2])

    def forward(self, x, domain_label):
        with domain(self.bn, tags=torch.tensor(domain_label)):
            return self.bn(x)


def routed_as_told(make):
    """Batches in which the domains come in any order and number; what would be right, layer by layer."""
    layer = nn.BatchNorm2d(3)
    routed, plain = make(layer), [copy.deepcopy(layer) for _ in range(2)]
    for labels, mode in [((0, 0, 1, 1), True), ((1, 0, 1, 0), True), ((1, 1, 1, 1), True), ((0, 1, 0, 1), False)]:
        x = torch.randn(len(labels), 3, 4, 4) + 5 * torch.tensor(labels)[:, None, None, None]
        routed.train(mode)
        out = routed(x, labels)
        for i, one in enumerate(plain):
            one.train(mode)
            where = [k for k, label in enumerate(labels) if label == i]
            if where and not torch.equal(out[where], one(x[where])):
                return False
    return True


def test_samples_go_where_their_tags_say():
    assert routed_as_told(Ours)


@pytest.mark.parametrize("naive", [FirstSampleDecides, CallsDecide, PlaceDecides])
def test_others_route_by_something_else(naive):
    assert not routed_as_told(naive)


def test_routing_by_call_order_is_wrong_after_one_call_too_many():
    torch.manual_seed(0)
    cycle, ground, aerial = CallsDecide(nn.BatchNorm1d(3)).eval(), torch.randn(4, 3), torch.randn(4, 3)
    cycle[1].running_mean.fill_(5)
    before = cycle(ground, None), cycle(aerial, None)
    cycle(ground, None)  # a look at one picture
    assert not torch.equal(before[0], cycle(ground, None))
    layer = nn.BatchNorm1d(3).eval()
    split_domains(layer, NAMES)
    layer.running_mean_aerial.fill_(5)
    for _ in range(3):
        with domain(layer, "ground"):
            assert torch.equal(layer(ground), before[0])


@pytest.fixture
def layer():
    layer = nn.BatchNorm2d(3)
    split_domains(layer, NAMES)
    return layer


def test_without_a_current_domain_nothing_runs(layer):
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(2))
    split_domains(model, ["ground", "aerial"])
    with pytest.raises(DomainError) as error:
        model(torch.ones(2, 2))
    assert str(error.value) == (
        "layer '1' (BatchNorm1d) keeps statistics of ground, aerial, and none of them is current\n"
        "  fix: with frostline.norms.domain(model, 'ground'): model(x)"
    )
    assert model[1].num_batches_tracked.item() == 0


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["ground"] * 3, "layer '' (BatchNorm2d) was given 4 samples, and there are 3 tags\n"),
        (["ground"] * 5, "layer '' (BatchNorm2d) was given 4 samples, and there are 5 tags\n"),
        (["ground", "groud"] * 2, "there is no domain 'groud'\n  known: ground, aerial, night\n  fix: 'ground'?"),
        (torch.tensor([0, 1, 2, 3]), "tags: there is no domain 3\n  known: ground, aerial, night (0 to 2)"),
        (torch.tensor([0, 1, 0, -1]), "tags: there is no domain -1\n"),
        (torch.tensor([0.0, 1.0, 0.0, 1.0]), "found: torch.float32 of shape (4,)"),
        (torch.tensor([[0, 1], [0, 1]]), "found: torch.int64 of shape (2, 2)"),
        ("ground", "one name for each sample is expected, not the string 'ground'"),
        ([], "tags: there are none"),
    ],
)
def test_tags_that_do_not_fit(layer, tags, message):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(DomainError) as error, domain(layer, tags=tags):
        layer(torch.randn(4, 3, 2, 2))
    assert message in str(error.value)
    assert all_equal(list(layer.state_dict().values()), list(before.values()))


def test_a_domain_with_one_value_per_channel_leaves_all_as_it_was():
    layer = nn.BatchNorm1d(3)
    split_domains(layer, NAMES)
    before = copy.deepcopy(layer.state_dict())
    with domain(layer, tags=["ground", "ground", "aerial"]):
        with pytest.raises(DomainError, match="domain 'aerial' has one value per channel in this batch"):
            layer(torch.randn(3, 3))
        assert all_equal(list(layer.state_dict().values()), list(before.values()))
        layer(torch.randn(3, 3, 2))  # two positions are two values
        layer.eval()(torch.randn(3, 3))  # and eval mode asks for none


def test_processes_are_not_left_waiting_for_one_another(monkeypatch):
    layer = nn.SyncBatchNorm(3)
    split_domains(layer, NAMES)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with domain(layer, tags=["ground", "ground", "aerial", "aerial"]):
        with pytest.raises(DomainError, match="waiting for one another"):
            layer(torch.randn(4, 3, 2, 2))
        layer.eval()(torch.randn(4, 3, 2, 2))


def test_keyword_arguments_reach_the_forward_of_the_class(layer):
    x = torch.randn(4, 3, 2, 2)
    with domain(layer.eval(), "ground"):
        assert torch.equal(layer(input=x), layer(x))
    with domain(layer, tags=["ground", "aerial"] * 2):
        assert torch.equal(layer(input=x), layer(x))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_has_statistics_and_a_domain_of_its_own(layer, make):
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with domain(model, "aerial"):
        other = make(model)
        with pytest.raises(DomainError, match="none of them is current"):
            other(torch.randn(4, 3, 2, 2))
        with domain(other, "night"):
            other(torch.randn(4, 3, 2, 2))
        assert layer.num_batches_tracked_aerial.item() == layer.num_batches_tracked_night.item() == 0
        model(torch.randn(4, 3, 2, 2))
    assert layer.num_batches_tracked_aerial.item() == other[0].num_batches_tracked_night.item() == 2
    assert other[0].num_batches_tracked_aerial.item() == 0
    assert other[0] is other[2]


def test_an_exception_in_the_forward_puts_the_tensors_back(layer):
    tensors = dict(layer._buffers)
    with domain(layer, "aerial"), pytest.raises(ValueError, match="expected 4D input"):
        layer(torch.randn(4, 3))
    assert all(layer._buffers[key] is tensor for key, tensor in tensors.items())


def test_functional_call_replaces_a_domains_statistics(layer):
    plain = nn.BatchNorm2d(3)
    given, x = torch.full((3,), 7.0), torch.randn(4, 3, 2, 2)
    plain.running_mean.copy_(given)
    with domain(layer, "aerial"):
        out = torch.func.functional_call(layer, {"running_mean_aerial": given}, (x,))
    assert torch.equal(out, plain(x))
    assert torch.equal(given, plain.running_mean)
    assert layer.running_mean_aerial.abs().max() == 0


@pytest.mark.parametrize(
    ("make", "mode", "update"),
    [
        (lambda: nn.BatchNorm2d(3, momentum=0.25), True, EMA(0.25)),
        (lambda: nn.BatchNorm2d(3, momentum=None), True, Cumulative()),
        (lambda: nn.BatchNorm2d(3), False, None),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True, momentum=None), True, EMA(0.0)),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), False, None),
    ],
)
def test_policy_is_what_the_switches_say_now(make, mode, update):
    layer = make().train(mode)
    split_domains(layer, NAMES)
    assert layer.__dict__["forward"].policy() == StatsPolicy(Domain(NAMES), update)
    before = copy.deepcopy(layer.state_dict())
    with domain(layer, "night"):
        layer(torch.randn(4, 3, 2, 2))
    moved = {key for key, value in layer.state_dict().items() if not torch.equal(value, before[key])}
    # A momentum of zero moves a mean that is not zero by rounding alone; these are zero.
    assert bool({"running_mean_night"} & moved) is (update not in (None, EMA(0.0)))
    assert not any(key.endswith(("ground", "aerial", "mean", "var", "tracked")) for key in moved)


def test_policy_with_the_flag_flipped():
    layer = nn.BatchNorm2d(3)
    layer.track_running_stats = False
    split_domains(layer, NAMES)
    assert layer.__dict__["forward"].policy() == StatsPolicy(Domain(NAMES), None)


def test_layout_says_where_the_current_statistics_are(layer):
    forward = forward_of(layer)
    assert forward is not None
    assert forward.layout().mean == "running_mean"
    with domain(layer, "aerial"):
        assert (forward.layout().mean, forward.layout().var) == ("running_mean_aerial", "running_var_aerial")
    with domain(layer, tags=["aerial"]):
        assert forward.layout().mean == "running_mean"


def test_domain_buffers(layer):
    mean, var, count = domain_buffers(layer, "night")
    assert (mean, var, count) == (layer.running_mean_night, layer.running_var_night, layer.num_batches_tracked_night)
    with pytest.raises(DomainError, match="there is no domain 'day'\n  known: ground, aerial, night"):
        domain_buffers(layer, "day")
    with pytest.raises(DomainError, match="this BatchNorm1d keeps statistics of no domains"):
        domain_buffers(nn.BatchNorm1d(3), "night")


def test_no_other_forward_is_taken_for_a_split():
    class Other(InstanceMethod[nn.Module]):
        pass

    layer = nn.BatchNorm1d(3)
    layer.__dict__["forward"] = Other(layer)
    assert forward_of(layer) is None
    split = nn.BatchNorm1d(3)
    split_domains(split, NAMES)
    assert forward_of(split) is not None
    assert forward_of(copy.copy(split)) is None  # a shallow copy shares it, and it acts on the first


def test_tags_put_the_parts_back_in_order():
    x = torch.tensor([10, 20, 30, 40])
    tags = Tags(["b", "a", "b", "a"], ("a", "b", "c"))
    assert [(name, positions.tolist()) for name, positions in tags.parts] == [("a", [1, 3]), ("b", [0, 2])]
    assert torch.equal(torch.cat([x[positions] for _, positions in tags.parts])[tags.back], x)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: tags on a GPU need a CUDA device")
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_on_a_gpu_tags_are_the_domains_one_by_one(mode):
    layer = nn.BatchNorm2d(8).cuda().train(mode)
    split_domains(layer, NAMES)
    layer.running_mean_aerial.fill_(2)
    plain, x = copy.deepcopy(layer), torch.randn(6, 8, 5, 5, device="cuda")
    expected = torch.empty_like(x)
    for name, positions in [("ground", [1, 4, 5]), ("aerial", [0, 2, 3])]:
        with domain(plain, name):
            expected[positions] = plain(x[positions])
    for tags in (["aerial", "ground", "aerial", "aerial", "ground", "ground"], torch.tensor([1, 0, 1, 1, 0, 0])):
        other = copy.deepcopy(layer)
        with domain(other, tags=tags):
            torch.testing.assert_close(other(x), expected)
        for key, value in other.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key])
