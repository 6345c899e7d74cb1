"""The whole of flops_fit_ray from one Python file: `python examples/python_api.py` (a minute or two on two cores).

A student network learns the outputs of a teacher. The sweep asks how wide the student should be for C FLOPs.
"""

import torch
from torch import Tensor, nn

from flops_fit_ray import check, find_optimal, fit_table


class Student(nn.Module):
    """`width` is what the sweep varies."""

    def __init__(self, width: int, inputs: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def lessons(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (samples, 32), and what a teacher of 256 neurons, the same for every seed, says of them (samples, 1)."""
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(32, 256, generator=random) / 4, torch.randn(256, 1, generator=random) / 8
    x = torch.randn(samples, 32, generator=torch.Generator().manual_seed(seed))
    return x, torch.tanh(x @ first) @ second


def deviation(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of the absolute errors."""
    return (outputs - targets).abs().mean()


WHAT = {
    "model_cls": Student,
    "model_size_param": "width",
    "dataset": lessons(400_000, seed=1),
    "eval_dataset": lessons(4_000, seed=2),
    "loss_fn": "mse",
    "metrics": {"deviation": deviation},
    "batch_size": 16,
    "lr": {"base": 1e-2, "at": 16, "exponent": -0.5, "of": "size"},  # left out, it is measured first
    "output_dir": "runs/student",
}
BUDGETS = [3e7, 1e8, 3e8, 1e9]


def main() -> None:
    plan = find_optimal(**WHAT, compute_budgets=BUDGETS, train=False)  # nothing is run or written
    print(plan)
    print(check(**WHAT, compute_budgets=BUDGETS))  # the smallest and the largest student on a real worker
    result = find_optimal(**WHAT, compute_budgets=BUDGETS)  # run again, it finds its results and trains nothing
    print(result)
    answer = result.predict(1e10)
    print(answer)
    print(answer.params_opt, answer.tokens_opt)
    print(result.chinchilla_table([1e9, 1e10]))  # a pandas DataFrame
    print(result.to_frame()[["budget", "size", "params", "tokens", "loss", "metric_deviation"]].head())
    print(result.next_runs(3, 1e10))  # the runs that would narrow N_opt there most
    result.plot("runs/student.png")
    again = fit_table("runs/student/results.csv", at=[1e10])  # any table of runs, this one too
    print(again.fit.params_opt)


if __name__ == "__main__":
    main()
