"""Errors: what they inherit, what they say, and that they survive the trip between processes."""

from __future__ import annotations

import pickle

import pytest

from scgrpo import errors

STDLIB_BASES = {
    "ConfigError": ValueError,
    "ShapeError": ValueError,
    "NonFiniteError": ArithmeticError,
    "VerifierError": RuntimeError,
    "DataError": ValueError,
    "MissingDataError": ValueError,
    "RunError": OSError,
    "MissingExtraError": ImportError,
    "IncompatibleHostError": RuntimeError,
    "SandboxError": RuntimeError,
    "RolloutError": RuntimeError,
}


def test_the_table_above_is_complete() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ScgrpoError) and value is not errors.ScgrpoError
    }
    assert defined == set(STDLIB_BASES)


@pytest.mark.parametrize(("name", "base"), STDLIB_BASES.items())
def test_error_refines_a_standard_one_and_survives_pickling(name: str, base: type[Exception]) -> None:
    error = getattr(errors, name)("The cup is empty.", "Fill it.")
    assert isinstance(error, base)
    assert isinstance(error, errors.ScgrpoError)
    assert str(error) == "The cup is empty. Fill it."

    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.problem, copy.remedy, str(copy)) == ("The cup is empty.", "Fill it.", "The cup is empty. Fill it.")


def test_error_without_remedy_has_no_trailing_space() -> None:
    assert str(errors.ConfigError("Broken.")) == "Broken."


def test_standard_except_clauses_catch_them() -> None:
    with pytest.raises(ValueError, match="too short"):
        raise errors.DataError("too short")
    with pytest.raises(OSError, match="in use"):
        raise errors.RunError("in use")
