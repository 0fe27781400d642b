"""Corrections ↔ the status of an EngineProfile: written for people, exact enough to go on from after a restart.

Weights are in thousandths, logarithms in millionths, factors in thousandths; the factor that planning holds is in whole
hundredths, so it survives exactly and a plan from exported objects is the operator's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from controller.corrections import Corrections
from controller.render import timestamp
from controller.resources import parse_engine_config
from controller.schema_profile import EngineConfigSpec, EngineProfileStatus, ProfileCorrection
from controller.validation import Json, explain, subject_of
from solvers.correction import Belief, Held, Learning, Phase, factor
from solvers.engine import ProfileKey

Body = dict[str, Any]


def render_corrections(known: Corrections, key: ProfileKey, generation: int) -> list[Body]:
    """Say what is known of one profile, a row for each phase that was observed."""
    found = ((phase, known.beliefs.get((key, phase))) for phase in Phase)
    return [_row(known, key, phase, belief, generation) for phase, belief in found if belief is not None]


def _row(known: Corrections, key: ProfileKey, phase: Phase, belief: Belief, generation: int) -> Body:
    seen = factor(belief, phase, belief.as_of_s, Learning())
    held = known.held.get((key, phase))
    planned = {"plannedPermille": round(1000 * held.factor), "since": timestamp(held.since_s)} if held else {}
    return {
        "phase": str(phase),
        "likelyPermille": round(1000 * seen.likely),
        "lowPermille": round(1000 * seen.low),
        "highPermille": round(1000 * seen.high),
        **planned,
        "observationsMilli": round(1000 * belief.weight),
        "meanMicro": round(1e6 * belief.mean),
        "squaresMicro": round(1e6 * belief.squares),
        "observedAt": timestamp(belief.as_of_s),
        "profileGeneration": generation,
    }


def key_of_profile(body: Json) -> ProfileKey:
    """Read of an EngineProfile's body what it is for; the body passed the API server's schema.

    Raises
    ------
    pydantic.ValidationError
        When it did not.
    """
    spec = body["spec"]
    config = EngineConfigSpec.model_validate_json(json.dumps(spec.get("config") or {}))
    return ProfileKey(model=spec["model"], gpu_class=spec["gpuClass"], config=parse_engine_config(config))


def read_back(known: Corrections, bodies: Iterable[Json], *, anew: bool = False) -> Corrections:
    """Take over what the statuses of EngineProfiles hold.

    Parameters
    ----------
    bodies : iterable of EngineProfile
    anew : bool
        Forget what is known first, as a standby does, which follows the leader. Else only profiles that were not there
        before are read.

    Notes
    -----
    A status that cannot be read is passed over with a notice; rows of an older spec are, too, as they speak of another
    profile.
    """
    start = replace(known, beliefs={}, held={}, names={}) if anew else known
    beliefs, held, names = dict(start.beliefs), dict(start.held), dict(start.names)
    notices = []
    present = set()
    for body in sorted(bodies, key=subject_of):
        name = body["metadata"]["name"]
        try:
            key = key_of_profile(body)
            present.add(key)
            if key in names:
                continue
            names[key] = name
            rows = _rows(body)
            found = {(key, row.phase): (_belief(row), _planned(row)) for row in rows}
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            notices.append((name, "CorrectionIgnored", f"its status is passed over: {_said(error, body)}", True))
            continue
        beliefs |= {place: belief for place, (belief, _) in found.items()}
        held |= {place: planned for place, (_, planned) in found.items() if planned is not None}
    names = {key: name for key, name in names.items() if key in present}
    return replace(start, beliefs=beliefs, held=held, names=names, notices=(*start.notices, *notices))


def corrections_of(bodies: Iterable[Json]) -> Corrections:
    """What exported EngineProfiles say of themselves, for a plan without a cluster."""
    return read_back(Corrections(), [body for body in bodies if body.get("kind") == "EngineProfile"])


def _rows(body: Json) -> tuple[ProfileCorrection, ...]:
    status: Mapping[str, Any] = body.get("status") or {}
    given = {"corrections": status.get("corrections") or []}
    rows = EngineProfileStatus.model_validate_json(json.dumps(given)).corrections
    generation = int(body["metadata"].get("generation", 0))
    return tuple(row for row in rows if row.profile_generation == generation)


def _belief(row: ProfileCorrection) -> Belief:
    return Belief(
        weight=row.observations_milli / 1e3,
        mean=row.mean_micro / 1e6,
        squares=row.squares_micro / 1e6,
        as_of_s=_seconds(row.observed_at),
    )


def _planned(row: ProfileCorrection) -> Held | None:
    if row.planned_permille is None or row.since is None:
        return None
    return Held(factor=row.planned_permille / 1000, since_s=_seconds(row.since))


def _seconds(written: str) -> float:
    return datetime.fromisoformat(written).timestamp()


def _said(error: Exception, body: Json) -> str:
    if isinstance(error, ValidationError):
        return str(explain(error, subject_of(body), "status")[0])
    return repr(error)
