"""Measuring and training import none of torch's compiler, and what is compiled afterwards is compiled as ever."""

import subprocess
import sys

SAME = """
import sys
import torch
from flops_fit_ray.training.loop.loop import train_experiment
from tests.parts import planned, regression, spec_of, user_parts_of

def losses(optimizer):
    spec = spec_of(budgets=[2e4, 4e4], train={"batch_size": 8, "lr": 1e-2, "optimizer": optimizer})
    user = user_parts_of(spec, train=regression(20_000))
    return train_experiment(planned(spec, user).experiments[0], user, eval_samples=9).loss

before = [losses("sgd"), losses("adamw")]
assert "torch._dynamo" not in sys.modules
graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph

model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
weights = model.weight.detach().clone()

@torch.compile(backend=backend)
def trained(x):
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

trained(torch.ones(3, 2))
assert graphs and torch.allclose(model.weight, weights - 0.3) and model.weight.grad is None
assert [losses("sgd"), losses("adamw")] == before
print("as ever")
"""


def test_the_compiler_is_imported_by_what_is_compiled() -> None:
    done = subprocess.run([sys.executable, "-c", SAME], capture_output=True, text=True, check=False)
    assert done.stdout == "as ever\n", done.stderr
