"""From a simulated cluster's history to the judge's words."""

from __future__ import annotations

from drillyard.emulator.simulation.clusters import Call, Outcome, Scale, Violation, simulate
from drillyard.judge import consistency

STEPS_PER_KEY = 100_000


def operation_of(call: Call) -> consistency.Operation:
    return consistency.Operation(
        consistency.Kind("compare-and-swap" if call.kind == "swap" else call.kind),
        call.key,
        call.called_us,
        call.returned_us,
        call.value,
        consistency.Outcome(call.outcome),
        call.expected,
        call.swapped,
        call.previous,
        str(call.client),
    )


def run(seed: int, scale: Scale | None = None) -> Outcome:
    """Simulates a seed and judges what its clients saw."""
    outcome = simulate(seed, scale)
    judgement = consistency.check(map(operation_of, outcome.history), steps_per_key=STEPS_PER_KEY)
    if judgement.verdict is consistency.Verdict.NOT_LINEARIZABLE:
        raise Violation("linearizable history", f"seed {seed}: {judgement.explain()}")
    return outcome
