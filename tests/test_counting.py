"""FLOPs of the training step as it runs, and N, against counts by hand: models as other people write them."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning import COUNTING, ModelSize, expected_centre, make_plan
from flops_fit_ray.training.preflight.model_size import measure_sizes
from tests.parts import Bigram, regression, spec_of, text, user_parts_of

W = 16  # width
X = 8  # raw inputs
V, T = 32, 16  # vocabulary, context


def measured(model: Callable[..., nn.Module], train: Any = None, loss: Any = None, sizes: tuple[int, ...] = (W,)
             ) -> ModelSize:  # fmt: skip
    """The last of the sizes, of a regression or of next tokens."""
    spec = spec_of(
        loss="mse" if train is None else "cross_entropy",
        model={"target": "tests.parts:X", "size_param": "width", "sizes": list(sizes)},
    )
    user = user_parts_of(spec, model=model, train=regression(100) if train is None else train, loss=loss)
    return measure_sizes(spec, user).sizes[-1]


class Two(nn.Module):
    """Two layers without biases on raw inputs: 8 -> width -> 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(X, width, bias=False), nn.Linear(width, 1, bias=False)
        self.inner(width)

    def inner(self, width: int) -> None:
        """What a test adds."""

    def middle(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.middle(self.a(x)))
        return out


OUTER = 2 * X * W * 2 + 2 * W * 3  # the first layer passes no gradient on to its inputs


class Shared(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h @ self.weight)


class TiedOnCpu(Two):
    def inner(self, width: int) -> None:
        with torch.device("cpu"):
            weight = nn.Parameter(torch.eye(width))
        self.layers = nn.Sequential(*[Shared(weight) for _ in range(6)])

    def middle(self, h: Tensor) -> Tensor:
        out: Tensor = self.layers(h)
        return out


class SharedMemory(Two):
    def inner(self, width: int) -> None:
        self.c = nn.Linear(width, width, bias=False)
        self.d = nn.Linear(width, width, bias=False)
        self.d.weight = nn.Parameter(self.c.weight.T)  # another parameter, the same numbers

    def middle(self, h: Tensor) -> Tensor:
        out: Tensor = self.d(self.c(h))
        return out


class NoGrad(Two):
    def inner(self, width: int) -> None:
        self.teacher = nn.Linear(width, width, bias=False).requires_grad_(False)

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            taught: Tensor = self.teacher(h)
        return h + taught


class Frozen(Two):
    def inner(self, width: int) -> None:
        self.base = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, width, bias=False)

    def middle(self, h: Tensor) -> Tensor:
        out: Tensor = self.base(h) + self.up(self.down(h))
        return out


class Detached(Two):
    def middle(self, h: Tensor) -> Tensor:
        return h.detach()


class Recomputed(Two):
    reentrant = True

    def inner(self, width: int) -> None:
        self.c, self.d = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def block(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.c(h)
        return torch.relu(self.d(torch.relu(self.c(h + shift))))

    def middle(self, h: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # checkpoint warns of it
            return self.block(h)
        out: Tensor = checkpoint(self.block, h, use_reentrant=self.reentrant)
        return out


class RecomputedOnce(Recomputed):
    reentrant = False


class Spectral(Two):
    def inner(self, width: int) -> None:
        self.w = nn.Parameter(torch.eye(width).to(torch.cfloat))

    def middle(self, h: Tensor) -> Tensor:
        found: Tensor = torch.fft.ifft(torch.fft.fft(h.to(torch.cfloat)) @ self.w).real
        return found


class Bilinear(Two):
    def inner(self, width: int) -> None:
        self.c = nn.Bilinear(width, width, width, bias=False)

    def middle(self, h: Tensor) -> Tensor:
        out: Tensor = self.c(h, h)
        return out


class Grouped(Two):
    def inner(self, width: int) -> None:
        self.c = nn.Conv1d(width, width, 1, groups=4, bias=False)
        self.d = nn.ConvTranspose1d(width, width, 1, groups=width, bias=False)

    def middle(self, h: Tensor) -> Tensor:
        out: Tensor = self.d(self.c(h[..., None]))[..., 0]
        return out


class VectorHead(Two):
    def inner(self, width: int) -> None:
        self.c = nn.Parameter(torch.ones(width))

    def middle(self, h: Tensor) -> Tensor:
        return h * (h @ self.c)[:, None]


class Sparse(Two):
    def middle(self, h: Tensor) -> Tensor:
        found: Tensor = torch.sparse.mm(torch.eye(len(h)).to_sparse(), h)
        return found


class Routed(Two):
    """Each sample goes to one of two experts: shapes depend on the data."""

    def inner(self, width: int) -> None:
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))

    def middle(self, h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            (rows,) = torch.where(torch.arange(len(h)) % 2 == i)
            out = out.index_add(0, rows, expert(h[rows]))
        return out


MIDDLE = 2 * W * W
TWO = X * W + W
COUNTS: list[tuple[type[nn.Module], int, int, float]] = [  # model, N, parameters, FLOPs per sample
    (Two, TWO, TWO, OUTER),
    (TiedOnCpu, TWO + W * W, TWO + W * W, OUTER + 6 * 3 * MIDDLE),
    (SharedMemory, TWO + W * W, TWO + W * W, OUTER + 2 * 3 * MIDDLE),
    (NoGrad, TWO, TWO + W * W, OUTER + MIDDLE),  # forward alone
    (Frozen, TWO + 4 * W, TWO + 4 * W + W * W, OUTER + 2 * MIDDLE + 3 * 2 * 4 * W),
    (Detached, TWO, TWO, 2 * X * W + 2 * W * 2),
    (Recomputed, TWO + 2 * W * W, TWO + 2 * W * W, OUTER + MIDDLE + 2 * 3 * MIDDLE),
    (RecomputedOnce, TWO + 2 * W * W, TWO + 2 * W * W, OUTER + MIDDLE + 2 * 3 * MIDDLE),
    (Spectral, TWO + W * W, TWO + W * W, OUTER + 3 * 4 * MIDDLE + 4 * 5 * W * 4),
    (Bilinear, TWO + W**3, TWO + W**3, OUTER + 4 * (2 * W**3 + 2 * W**2)),
    (Grouped, TWO + W * W // 4 + W, TWO + W * W // 4 + W, OUTER + 3 * (MIDDLE // 4 + 2 * W)),
    (VectorHead, TWO + W, TWO + W, OUTER + 2 * 2 * W),
    (Sparse, TWO, TWO, OUTER + 2 * 2 * W),
    (Routed, TWO + 2 * W * W, TWO + 2 * W * W, OUTER + 3 * MIDDLE),
]


@pytest.mark.parametrize(("model", "params", "total", "flops"), COUNTS, ids=[m.__name__ for m, *_ in COUNTS])
def test_a_step_is_counted_as_it_runs(model: type[nn.Module], params: int, total: int, flops: float) -> None:
    found = measured(model)
    assert (found.params, found.params_total, found.flops_per_token) == (params, total, flops)


class Lookup(Bigram):
    """Embedding, one layer and a head by function."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.places = nn.Embedding(T, width)
        del self.head
        self.layer = nn.Linear(width, width, bias=False)

    def hidden(self, ids: Tensor) -> Tensor:
        found: Tensor = self.layer(self.table(ids) + self.places.weight[: ids.shape[1]])
        return found

    def forward(self, ids: Tensor) -> Tensor:
        return functional.linear(self.hidden(ids), self.table.weight)


class Transposed(Lookup):
    def forward(self, ids: Tensor) -> Tensor:
        return self.hidden(ids) @ self.table.weight.T


class Einsum(Lookup):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.einsum("btd,vd->btv", self.hidden(ids), self.table.weight)


class Normed(Lookup):
    def forward(self, ids: Tensor) -> Tensor:
        return self.hidden(ids) @ functional.normalize(self.table.weight.double(), dim=1).float().T


@pytest.mark.parametrize("model", [Lookup, Transposed, Einsum, Normed])
def test_a_head_by_function_makes_its_table_a_matrix(model: type[nn.Module]) -> None:
    found = measured(model, text(100))
    assert (found.params, found.params_total) == (W * W + V * W, W * W + V * W + T * W)
    assert found.flops_per_token == 6 * (W * W + V * W)
    assert found.params_source == "all parameters but lookup tables (head included)"
    assert found.first_count is not None and found.first_count.params == W * W  # as earlier versions counted


def test_the_common_model_costs_three_times_its_forward_pass_as_ever() -> None:
    found = measured(Bigram, text(100))
    assert (found.flops_per_token, found.first_count) == (6.0 * V * W, None)


def perceptual(width: int = 32) -> Callable[[Tensor, Tensor], Tensor]:
    network = nn.Linear(1, width, bias=False).requires_grad_(False)
    return lambda outputs, targets: functional.mse_loss(network(outputs), network(targets))


class Perceptual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 32, bias=False).requires_grad_(False)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(self.network(outputs), self.network(targets))


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets)[targets > -100] ** 2).mean()


@pytest.mark.parametrize(("loss", "flops", "source"), [
    (Perceptual(), 2 * 32 + 2 * 2 * 32, "counted on the meta device"),  # targets forward alone, outputs both ways
    (perceptual(), 2 * 32 + 2 * 2 * 32, "counted on the meta device"),
    (masked, 0, "counted on the CPU"),
])  # fmt: skip
def test_what_the_loss_computes_is_counted(loss: Any, flops: int, source: str) -> None:
    found = measured(Two, loss=loss)
    assert (found.flops_per_token, found.flops_source) == (OUTER + flops, source)


def declaring(value: Any) -> type[nn.Module]:
    return type("Declaring", (Two,), {"num_params": value})


def _raising(self: nn.Module) -> int:
    raise KeyError("n")


NUM_PARAMS: list[tuple[Any, str]] = [
    (lambda self, non_embedding: 3, r"num_params\(\) of Declaring needs non_embedding; give it defaults"),
    (_raising, r"num_params of Declaring .* raised KeyError: 'n'"),
    (lambda self: 0.144, r"gave 0.144, which is no count of parameters \(72 of it train\)"),
    (lambda self: "144", "gave '144', which is no count"),
    (lambda self: None, "gave None"),
    (lambda self: -5, "gave -5"),
    (property(lambda self: True), "gave True"),
    (lambda self: sum(p.numel() for p in self.parameters()) // 1000, "gave 0, which is no count"),
]


@pytest.mark.parametrize(("value", "message"), NUM_PARAMS, ids=[m for _, m in NUM_PARAMS])
def test_a_num_params_that_is_no_count_is_refused_once(value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as refused:
        measured(declaring(value), sizes=(8, W))
    assert len(refused.value.faults) == 1


@pytest.mark.parametrize("value", [
    lambda self: float(sum(p.numel() for p in self.parameters())),
    property(lambda self: TWO),
    lambda self, exact=True: TWO,
])  # fmt: skip
def test_a_num_params_that_is_plainly_a_count_is_taken(value: Any) -> None:
    found = measured(declaring(value))
    assert (found.params, found.params_source) == (TWO, "num_params() of the model")


TABLES: dict[int, Tensor] = {}
TABLE: Tensor | None = None


@functools.cache
def cached(width: int) -> Tensor:
    return torch.ones(width)


class Caching(Two):
    """Tables that a model's code keeps between calls, in every place where one can."""

    table: Tensor | None = None
    lists: ClassVar[list[Tensor]] = []

    def middle(self, h: Tensor) -> Tensor:
        global TABLE
        width = h.shape[-1]
        if TABLE is None or len(TABLE) != width:
            TABLE = torch.ones(width)
        if width not in TABLES:
            TABLES[width] = torch.ones(width)
        if Caching.table is None or len(Caching.table) != width:
            Caching.table = torch.ones(width)
        if not self.lists or len(self.lists[-1]) != width:
            self.lists.append(torch.ones(width))
        return h * cached(width) * TABLE * TABLES[width] * Caching.table * self.lists[-1]


def test_tables_kept_between_calls_have_numbers_after_measuring() -> None:
    TABLES[-1] = torch.ones(2)
    assert measured(Caching, sizes=(8, W)).flops_source == "counted on the meta device"
    assert Caching(W)(torch.ones(1, X)).device.type == "cpu"
    assert set(TABLES) == {-1, W, 8}  # 8 by the smoke test on the CPU
    assert not any(t.is_meta for t in (*TABLES.values(), *Caching.lists, cached(W)))


def test_a_model_that_meets_its_own_tables_on_the_cpu() -> None:
    class Both(Caching):
        def middle(self, h: Tensor) -> Tensor:
            return super().middle(h) * (1 if h.sum().item() < 1e9 else 2)

    assert measured(Both).flops_source == "counted on the CPU"


def test_a_loss_that_no_parameter_reaches_is_refused() -> None:
    with pytest.raises(SpecError, match="loss: does not depend on any parameter that trains; is it detached"):
        measured(Two, loss=lambda outputs, targets: (outputs.detach() - targets).square().mean())
    with pytest.raises(SpecError, match="has no parameters that train; all 144 are frozen"):
        measured(lambda width: Two(width).requires_grad_(False))


@torch.library.custom_op("flops_fit_ray_tests::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return x * 2


double.register_fake(torch.empty_like)
double.register_autograd(lambda ctx, grad: grad * 2)


def test_an_operation_without_a_formula_is_named() -> None:
    class Custom(Two):
        def inner(self, width: int) -> None:
            self.core = nn.Module()
            self.core.forward = double  # a module of one function

        def middle(self, h: Tensor) -> Tensor:
            out: Tensor = self.core(h)
            return out

    class Normal(Two):
        def middle(self, h: Tensor) -> Tensor:
            return functional.normalize(h, dim=-1)

    assert measured(Custom).uncounted == ("flops_fit_ray_tests::double in core",)
    assert measured(Normal).uncounted == ()


@pytest.mark.parametrize("skips", [False, True], ids=["runs on no rows", "is not run"])
def test_an_expert_without_tokens_is_not_uncounted(skips: bool) -> None:
    class Experts(Two):
        def inner(self, width: int) -> None:
            self.one, self.other = (nn.Linear(width, width, bias=False) for _ in range(2))
            self.unseen = nn.Module()  # of which nothing is counted where it does compute
            self.unseen.weight = nn.Parameter(torch.ones(1, width))

        def middle(self, h: Tensor) -> Tensor:
            h = h * self.unseen.get_parameter("weight")
            out: Tensor = self.one(h)
            return out if skips else out + self.other(h[:0]).sum()

    size = measured(Experts)
    assert size.uncounted == ("unseen",)
    assert size.without_gradient == (("other.weight",) if skips else ())


def test_a_directory_goes_on_with_the_rule_it_began_with() -> None:
    spec = spec_of(model={"target": "tests.parts:X", "size_param": "width", "sizes": [8, W, 32]}, budgets=[4e5, 8e5])
    user = user_parts_of(spec, model=NoGrad, train=regression(3000))
    now = make_plan(spec, measure_sizes(spec, user))
    assert now.constants.counting == COUNTING
    assert [s.params for s in now.sizes] == [X * w + w for w in (8, W, 32)]
    before = replace(now.constants, counting=1)  # what directories say that do not say it
    for counting in (1, COUNTING):  # the planner changes the rule itself where it was not known when measuring
        old = make_plan(spec, measure_sizes(spec, user, counting), constants=before)
        assert [s.params for s in old.sizes] == [X * w + w + w * w for w in (8, W, 32)]
        assert [s.flops_per_token for s in old.sizes] == [6 * (X * w + w + w * w) for w in (8, W, 32)]
        assert old.notes[0].startswith("N and FLOPs are counted as when this directory's sweep began: counted on")
        assert old.constants == before
    assert not any("sweep began" in note for note in now.notes)


class Patches(Two):
    """8 patches of a sample go through the same layer."""

    def inner(self, width: int) -> None:
        self.patch, self.c = nn.Linear(1, width, bias=False), nn.Linear(width, width, bias=False)
        del self.a

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.c(self.patch(x[..., None])).mean(dim=1))
        return out


def test_images_are_planned_by_their_cost_and_the_plan_says_how_to_count_patches() -> None:
    grid = {"tokens_per_param": 20}
    model = {"target": "tests.parts:X", "size_param": "width", "sizes": [8, W, 32]}
    spec = spec_of(model=model, budgets=[2e7, 4e7], grid=grid)
    user = user_parts_of(spec, model=Patches, train=regression(20_000))
    measurements = measure_sizes(spec, user)
    centre = expected_centre(20, measurements.sizes, 2e7)
    cost = np.interp(np.log(centre), np.log([s.params for s in measurements.sizes]),
                     np.log([s.flops_per_token for s in measurements.sizes]))  # fmt: skip
    assert 20 * centre * np.exp(cost) == pytest.approx(2e7, rel=0.02)  # D = 20·N costs C
    said = [w for w in make_plan(spec, measurements).warnings if "times 6·N·D" in w]
    assert "if a sample holds many tokens (about 8 patches or pixels), set data.tokens_per_sample" in said[0]
    patches = spec_of(model=model, budgets=[2e7, 4e7], grid=grid, data={"train": "t:x", "tokens_per_sample": X})
    assert not any("times 6·N·D" in w for w in make_plan(patches, measure_sizes(patches, user)).warnings)
