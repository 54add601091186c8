"""What the doctor found, a line each, and whether training would start."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the report; with advice it is a problem, or else a fact."""

    topic: str
    text: str
    advice: str = ""
    stops_training: bool = False
    # Of several alternatives, one without problems is enough.
    is_alternative: bool = False


def attempt(topic: str, function: Callable[[], str], advice: str) -> Finding:
    """Call a function that returns the finding's text; if it fails, training would too.

    Broken libraries raise anything, or end the program; and what they print is not the doctor's.
    """
    try:
        with redirect_stdout(StringIO()):
            return Finding(topic, function())
    except SystemExit as error:
        # The project's own tools end with a line for the user.
        line = _first_line(error.code)
        own = line.startswith("error: ")
        text = line.removeprefix("error: ") if own else f"ends the program with {line!r}"
    except Exception as error:
        # The text of a KeyError is its key in quotes.
        what = error.args[0] if isinstance(error, KeyError) and error.args else error
        text = f"{type(error).__name__}: {_first_line(what)}".removesuffix(": ")
    return Finding(topic, text, advice, stops_training=True)


def _first_line(what: object) -> str:
    return next(iter(str(what).strip().splitlines()), "")


def would_train(findings: Sequence[Finding]) -> bool:
    """Tell whether training would start: nothing stops it, or not each of the alternatives."""
    alternatives = [finding for finding in findings if finding.is_alternative]
    if any(finding.stops_training for finding in findings if not finding.is_alternative):
        return False
    return not alternatives or any(not finding.stops_training for finding in alternatives)


def report(findings: Sequence[Finding]) -> str:
    """The findings as text, a line each, and advice below the problems."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.topic:<12}{finding.text}")
        if finding.advice:
            lines.append(f"{'':<12}-> {finding.advice}")
    ready = "Training would start." if would_train(findings) else "Training would not start."
    return "\n".join([*lines, ready])
