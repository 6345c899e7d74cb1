"""The code that a sweep was planned with, as it travels to the processes that train: each compares its own first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flops_fit_ray.engine._surroundings import Surroundings, surroundings_of_driver
from flops_fit_ray.errors import NodeUnfitError
from flops_fit_ray.planning.code_facts import CodeFacts, named
from flops_fit_ray.storage.lock import hostname

WAY_OUT = "put it on shared storage, or send it with a job (flops-fit-ray submit)"


@dataclass(frozen=True)
class PlannedCode:
    """The code, and the directory that its files lie in; a relative one is that of a job's upload."""

    here: Surroundings = field(default_factory=surroundings_of_driver, kw_only=True)  # first: where it is looked for
    facts: CodeFacts
    base: Path | None

    def differences(self) -> list[str]:
        """Describe how the code of this machine differs."""
        from flops_fit_ray.training.user.source_code import code_differences

        return code_differences(self.facts, None if self.base is None else Path.cwd() / self.base)

    def refuse_other(self) -> None:
        """Compare the code of this machine before any of it is imported.

        Raises:
            NodeUnfitError: it is not that of the plan.
        """
        import ray

        found = self.differences()
        if found:
            node = str(ray.get_runtime_context().get_node_id())
            raise NodeUnfitError(node, f"node {hostname()} {other_code(found)}")


def other_code(differences: list[str]) -> str:
    """Return the words for a node whose code differs, with the way out."""
    return f"has other code than the plan ({named(differences)}): {WAY_OUT}"
