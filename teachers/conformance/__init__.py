"""Proof, in numbers, that an adapter keeps the contract of `teachers.base`; what `mfd teachers check` prints."""

from __future__ import annotations

from teachers.base import Data, Teacher
from teachers.conformance import students, velocity
from teachers.conformance.case import Case, Check, Finding, contract

__all__ = ["Finding", "check"]


def check(teacher: Teacher, data: Data, *, seed: int = 0, samples: int = 256) -> list[Finding]:
    """Every check, in an order in which the first failure is the one to mend first.

    Args:
        teacher: a loaded teacher.
        data: the data source it is used with.
        seed: of noise and times.
        samples: rows that averages are taken over; each is evaluated about ten times.

    Raises:
        TeacherError: the teacher is not loaded.
    """
    case = Case(teacher, data, seed, samples)
    findings = [finding for each in velocity.FIRST for finding in _guarded(each, case)]
    if any(finding.passed is False for finding in findings):
        return findings
    return findings + [finding for each in (*velocity.CHECKS, *students.CHECKS) for finding in _guarded(each, case)]


def _guarded(check: Check, case: Case) -> list[Finding]:
    """A check's findings; an exception in it is a finding too, whoever's code raised it."""
    findings: list[Finding] = []
    try:
        findings.extend(check.run(case))
    except Exception as error:
        findings.append(Finding(check.name, False, f"{type(error).__name__}: {error}", contract(check.member)))
    return findings
