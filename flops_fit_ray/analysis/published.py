"""Published scaling laws: constants as printed, where they are from, and what they say of N, D and loss.

No law here was fitted by this package. A constant stands here once; worlds of simulations and priors take it from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._law import Law
from flops_fit_ray.analysis._methods import surface_laws
from flops_fit_ray.analysis.arrays import Floats
from flops_fit_ray.analysis.surface import CostLaw, Surfaces
from flops_fit_ray.errors import FitError, SpecError

Span: TypeAlias = tuple[float, float]
Form: TypeAlias = Literal["additive", "kaplan", "power_laws"]
FORMULAS: Mapping[Form, str] = {
    "additive": "L(N, D) = E + A/N^alpha + B/D^beta",
    "kaplan": "L(N, D) = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
    "power_laws": "N_opt = k_N·C^a, D_opt = k_D·C^b",
}
SIX_ND = CostLaw(log_k=math.log(6), n_exponent=1.0, scatter=0.0)  # C = 6·N·D (Kaplan et al. 2020, section 2.1)
PF_DAY = 8.64e19  # FLOPs


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedLaw:
    """One law of one paper. Losses are in nats per token; N, D and C are parameters, tokens and FLOPs."""

    name: str  # that commands take
    label: str  # of the paper, for people
    source: str  # paper, and the table or section
    form: Form
    constants: Mapping[str, float]  # in the symbols of `formula`
    data: str  # what the runs were trained on
    params_counted: str  # what counts as N
    note: str = ""  # what a reader of the numbers should know
    stderr: Mapping[str, float] = field(default_factory=dict)  # of the constants, where the paper has them
    loss_unit: str | None = "nats per token"  # None: the law says nothing of the loss
    budgets: Span | None = None  # C of the runs; None where the paper does not say
    params: Span | None = None  # N of the runs
    tokens: Span | None = None  # D of the runs

    @property
    def formula(self) -> str:
        """The law in its symbols; C in FLOPs."""
        if self.form != "power_laws":
            repeated = "; repeated data as in equations 5 and 6" if "R_D" in self.constants else ""
            return FORMULAS[self.form] + repeated
        return FORMULAS[self.form] + (", L_opt = K·C^-gamma" if "K" in self.constants else "")

    @cached_property
    def surface(self) -> Surfaces | None:
        """L(N, D), arrays (1,); None where only optima are published."""
        c = self.constants
        if self.form == "power_laws":
            return None
        if self.form == "additive":
            log_e, log_a, log_b = (math.log(c[name]) for name in ("E", "A", "B"))
            values = (log_e, log_a, log_b, c["alpha"], c["beta"], 1.0)
        else:  # E = 0, and both terms under one power: A = N_c^(alpha_N/alpha_D), B = D_c, k = alpha_D
            ratio = c["alpha_N"] / c["alpha_D"]
            values = (-math.inf, ratio * math.log(c["N_c"]), math.log(c["D_c"]), ratio, 1.0, c["alpha_D"])
        names = ("log_e", "log_a", "log_b", "alpha", "beta", "k")
        return Surfaces(**{name: np.array([value]) for name, value in zip(names, values, strict=True)})

    @cached_property
    def laws(self) -> tuple[Law, Law, Law | None]:
        """The laws of N_opt, D_opt and L_opt at C = 6·N·D, or as printed; L_opt is None where no loss is published."""
        if self.surface is not None:
            n, d, loss = (Law.first_of(law) for law in surface_laws(self.surface, SIX_ND))
            return n, d, loss
        c = self.constants
        powers = [("k_N", c["a"]), ("k_D", c["b"]), *([("K", -c["gamma"])] if "K" in c else [])]
        found = [Law(exponent=power, log10_coefficient=math.log10(c[k])) for k, power in powers]
        return found[0], found[1], found[2] if len(found) > 2 else None

    def loss(self, params: Floats | float, tokens: Floats | float, unique: Floats | float | None = None) -> Floats:
        """Return L(N, D) in nats per token, of the broadcast shape of N and D.

        Args:
            unique: distinct tokens among D (Muennighoff et al. 2023, equations 5 and 6); None: all are new.

        Raises:
            FitError: only optima are published, or the law says nothing of repeated data.
        """
        if self.surface is None:
            raise FitError(f"{self.name} is a law of optima, {self.formula}: it has no loss at another N and D")
        n, d = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        if unique is not None:
            n, d = self._effective(n, d, np.minimum(np.asarray(unique, dtype=np.float64), d))
        return self.surface.loss(n, d)

    def _effective(self, params: Floats, tokens: Floats, unique: Floats) -> tuple[Floats, Floats]:
        """Return N' and D' of repeated data (Muennighoff et al. 2023, equations 5 and 6).

        1) U_N = min(N, N that is optimal for U tokens) = min(N, (U·G)^(beta/alpha)·G), equation 7
        2) x' = U_x + U_x·R*·(1 - exp(-R/R*)), R = x / U_x - 1
        """
        c = self.constants
        if "R_D" not in c:
            raise FitError(f"{self.name} says nothing of repeated data; muennighoff2023 does")
        g = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1 / (c["alpha"] + c["beta"]))
        unique_params = np.minimum((unique * g) ** (c["beta"] / c["alpha"]) * g, params)
        worth = []
        for value, own, scale in ((params, unique_params, c["R_N"]), (tokens, unique, c["R_D"])):
            worth.append(own * (1 - scale * np.expm1(-(value / own - 1) / scale)))
        return worth[0], worth[1]

    def optimum(self, budget: float) -> tuple[float, float, float | None]:
        """Return N_opt, D_opt and L_opt at C = `budget` FLOPs; no loss where none is published."""
        n, d, loss = self.laws
        return n.at(budget), d.at(budget), None if loss is None else loss.at(budget)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; coefficients are of C in FLOPs."""
        n, d, loss = self.laws
        return {
            "name": self.name,
            "label": self.label,
            "source": self.source,
            "formula": self.formula,
            "constants": dict(self.constants),
            "stderr": dict(self.stderr) or None,
            "n_opt": {"exponent": n.exponent, "coefficient": n.coefficient},
            "d_opt": {"exponent": d.exponent, "coefficient": d.coefficient},
            "l_opt": None
            if loss is None
            else {"exponent": loss.exponent, "coefficient": loss.coefficient, "offset": loss.offset},
            "loss_unit": self.loss_unit,
            "params_counted": self.params_counted,
            "data": self.data,
            "fitted_budgets": None if self.budgets is None else list(self.budgets),
            "fitted_params": None if self.params is None else list(self.params),
            "fitted_tokens": None if self.tokens is None else list(self.tokens),
            "note": self.note,
        }


def _through(low: tuple[float, float, float], high: tuple[float, float, float]) -> dict[str, float]:
    """Return the power laws through two rows (C, N, D) of a table that prints no coefficients."""
    span = math.log(high[0] / low[0])
    a, b = math.log(high[1] / low[1]) / span, math.log(high[2] / low[2]) / span
    return {"k_N": low[1] / low[0] ** a, "a": a, "k_D": low[2] / low[0] ** b, "b": b}


_MASSIVETEXT = {
    "data": "MassiveText, SentencePiece of 32,000 tokens",
    "params_counted": "all, embeddings too",
    "budgets": (6e18, 3e21),
    "params": (7e7, 1.6e10),
    "tokens": (5e9, 5e11),
}
_TABLE = "The paper prints the exponents and this table, no coefficients: the laws go through its first and last row."
_LAWS: tuple[PublishedLaw, ...] = (
    PublishedLaw(
        name="hoffmann2022",
        label="Hoffmann et al. 2022 (Chinchilla), approach 3",
        source="arXiv 2203.15556, equation 10 in full precision, from the comments of its TeX source",
        form="additive",
        constants={
            "E": math.exp(0.5267228),
            "A": math.exp(6.0073404),
            "B": math.exp(6.0179186),
            "alpha": 0.33917084,
            "beta": 0.2849083,
        },
        note="Its optimizer stopped early (Besiroglu et al. 2024): at Chinchilla's 5.76e23 FLOPs it says 59 tokens per "
        "parameter, where hoffmann2022-1 and -2 say 21 and 24.",
        **_MASSIVETEXT,  # type: ignore[arg-type] # of several types
    ),
    PublishedLaw(
        name="hoffmann2022-printed",
        label="Hoffmann et al. 2022 (Chinchilla), approach 3 as printed",
        source="arXiv 2203.15556, equation 10",
        form="additive",
        constants={"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        note="Two digits of the exponents do not give the paper's own table A3 again; hoffmann2022 does.",
        **_MASSIVETEXT,  # type: ignore[arg-type]
    ),
    PublishedLaw(
        name="hoffmann2022-1",
        label="Hoffmann et al. 2022 (Chinchilla), approach 1",
        source="arXiv 2203.15556, table 3; exponents a = 0.50 (0.488, 0.502), b = 0.50 (0.501, 0.512) in table 2",
        form="power_laws",
        constants=_through((1.92e19, 4e8, 8.0e9), (1.30e28, 1e13, 216.2e12)),
        loss_unit=None,
        note=_TABLE,
        **_MASSIVETEXT,  # type: ignore[arg-type]
    ),
    PublishedLaw(
        name="hoffmann2022-2",
        label="Hoffmann et al. 2022 (Chinchilla), approach 2",
        source="arXiv 2203.15556, table A3; exponents a = 0.49 (0.462, 0.534), b = 0.51 (0.483, 0.529) in table 2",
        form="power_laws",
        constants=_through((1.84e19, 4e8, 7.7e9), (1.75e28, 1e13, 292.0e12)),
        loss_unit=None,
        note=_TABLE,
        **_MASSIVETEXT,  # type: ignore[arg-type]
    ),
    PublishedLaw(
        name="besiroglu2024",
        label="Besiroglu et al. 2024 (Chinchilla's runs)",
        source="arXiv 2404.10102, table 1: approach 3 of Hoffmann et al. fitted again to 240 runs of their figure 4",
        form="additive",
        constants={"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        stderr={"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02},
        data="MassiveText, SentencePiece of 32,000 tokens",
        params_counted="all, embeddings too",
        note="Its standard errors come without their correlations, and so give no interval of N, D or the loss.",
        budgets=(1.4e18, 1.3e22),
        params=(5.7e7, 1.62e10),
        tokens=(8.2e8, 3.18e11),
    ),
    PublishedLaw(
        name="kaplan2020",
        label="Kaplan et al. 2020",
        source="arXiv 2001.08361, tables 5 and 6 (appendix A), in PF-days there",
        form="power_laws",
        constants={
            "k_N": 1.3e9 / PF_DAY**0.73,
            "a": 0.73,
            "k_D": 2e10 / PF_DAY**0.27,
            "b": 0.27,
            "K": (3.1e8 * PF_DAY) ** 0.050,
            "gamma": 0.050,
        },
        data="WebText2, byte-level BPE of 50,257 tokens",
        params_counted="without embeddings",
        note="C is C_min, of training far below the critical batch size: 6·N·D is 1.8 times as much at 1 PF-day. "
        "N_opt = 1.3e9·C^0.73, D_opt = 2e10·C^0.27, L = (3.1e8/C)^0.050 with C in PF-days.",
        params=(768, 1.5e9),
        tokens=(2.2e7, 2.3e10),
    ),
    PublishedLaw(
        name="kaplan2020-surface",
        label="Kaplan et al. 2020, L(N, D)",
        source="arXiv 2001.08361, equation 1.5 with table 2",
        form="kaplan",
        constants={"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13},
        data="WebText2, byte-level BPE of 50,257 tokens",
        params_counted="without embeddings",
        note="Of training with early stopping. Its optimum at C = 6·N·D goes as C^0.58, not as the C^0.73 of the "
        "paper's table 6, which kaplan2020 is.",
        params=(768, 1.5e9),
        tokens=(2.2e7, 2.3e10),
    ),
    PublishedLaw(
        name="llama3",
        label="Llama 3 (Grattafiori et al. 2024)",
        source="arXiv 2407.21783, legend of figure 3 (section 3.2.1); N = C/(6·D)",
        form="power_laws",
        constants={"k_N": 1 / (6 * 0.299), "a": 1 - 0.537, "k_D": 0.299, "b": 0.537},
        data="the pre-training data of Llama 3, tiktoken of 128,000 tokens",
        params_counted="not said",
        loss_unit=None,
        note="At 3.8e25 FLOPs the paper says 402B parameters and 16.55T tokens, which are 6·N·D = 4.0e25: this law "
        "says 389B and 16.3T. The rounded (0.53, 0.29) of the text would say 10.5T.",
        budgets=(6e18, 1e22),
        params=(4e7, 1.6e10),
    ),
    PublishedLaw(
        name="deepseek2024",
        label="DeepSeek LLM (Bi et al. 2024)",
        source="arXiv 2401.02954, equation 4 (section 3.2): M_opt = 0.1715·C^0.5243, D_opt = 5.8316·C^0.4757",
        form="power_laws",
        constants={"k_N": 0.1715 / 6, "a": 0.5243, "k_D": 5.8316, "b": 0.4757},
        data="DeepSeek's bilingual text, byte-level BPE of 102,400 tokens",
        params_counted="M / 6: FLOPs per token over 6, attention counted, without embeddings",
        loss_unit=None,
        note="M are the FLOPs per token, C = M·D; N = M / 6 is 2.3 (8 layers of 512) to 1.1 (80 of 8192) times the "
        "parameters without embeddings (table 3).",
        budgets=(1e17, 3e20),
    ),
    PublishedLaw(
        name="porian2024",
        label="Porian et al. 2024, tuned",
        source="arXiv 2406.19146, figure 1 (RefinedWeb, tuned optimizer): a = 0.497 (0.49, 0.50); in full precision "
        "from the data published with it",
        form="power_laws",
        constants={
            "k_N": 0.11892648397493802,
            "a": 0.49689507817885203,
            "k_D": 1 / (6 * 0.11892648397493802),
            "b": 1 - 0.49689507817885203,
        },
        data="RefinedWeb, BPE of GPT-NeoX",
        params_counted="with the output head, without the input embedding",
        loss_unit=None,
        note="D = C/(6·N). The same runs say a = 0.835 where they are made and counted as those of Kaplan et al.",
        budgets=(1.25e16, 2.56e19),
        params=(5.2e6, 9.0e8),
    ),
    PublishedLaw(
        name="muennighoff2023",
        label="Muennighoff et al. 2023",
        source="arXiv 2305.16264, appendix A (R_D, R_N) and B (the others), in full precision from their repository",
        form="additive",
        constants={
            "E": math.exp(0.6254804),
            "A": math.exp(6.255414),
            "B": math.exp(7.3049974),
            "alpha": 0.3526596,
            "beta": 0.3526596,
            "R_D": 15.387756,
            "R_N": 5.309743,
        },
        data="C4, BPE of GPT-2 (50,257 tokens)",
        params_counted="all, embeddings too",
        note="alpha = beta was imposed. N, D and loss at a C are those of new data.",
        params=(7e6, 9e9),
        tokens=(1e8, 9e11),
    ),
)
PUBLISHED: Mapping[str, PublishedLaw] = {law.name: law for law in _LAWS}
REFERENCE = PUBLISHED["besiroglu2024"]  # that sweeps are held against


def published_law(name: str) -> PublishedLaw:
    """Return the published law of a name.

    Raises:
        SpecError: there is none.
    """
    if name not in PUBLISHED:
        near = fmt.did_you_mean(name, PUBLISHED)
        raise SpecError("laws", [f"{name!r}: no such law; {near or 'there are ' + ', '.join(PUBLISHED)}"])
    return PUBLISHED[name]
