"""Results that were trained by several versions of the user's code, named."""

from __future__ import annotations

from collections.abc import Sequence

from flops_fit_ray.ledger import ExperimentResult, Ledger
from flops_fit_ray.planning.code_facts import named


def mixed_code(ledger: Ledger, results: Sequence[ExperimentResult]) -> str | None:
    """Return a warning where results have other code than the newest one; those of earlier versions do not say."""
    known = [r for r in results if r.code is not None]
    newest = max(known, key=lambda r: r.finished_at, default=None)
    others = [r for r in known if newest is not None and r.code != newest.code]
    if newest is None or not others:
        return None
    now = ledger.code(str(newest.code))
    found = []
    for digest in dict.fromkeys(str(r.code) for r in others):
        before = ledger.code(digest)
        found += [] if now is None or before is None else before.changes_to(now)
    what = f" ({named(list(dict.fromkeys(found)))})" if found else ""
    return (
        f"{len(others)} of {len(known)} results were trained by other code than the newest one{what}: a law of both "
        "holds only if the change does not touch the loss; another --output trains all of them by one code"
    )
