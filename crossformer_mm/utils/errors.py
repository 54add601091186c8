"""What is wrong with a checkpoint or a data set, in one line."""

import re
import traceback


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the reason, no password."""

    def __init__(self, message: str) -> None:
        super().__init__(mask_secrets(message))


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint names or does something that loading weights does not need."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


class ExportError(ValueError):
    """A model cannot be exported as asked; the message says why in one line."""


def printable(text: str) -> str:
    """Escape what a terminal would act on, such as line breaks: text of files and paths has it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def mask_secrets(text: object) -> str:
    """Text without the passwords, tokens and signatures of the URLs in it."""
    text = re.sub(r"(://)[^/@\s]*@", r"\1***@", str(text))
    secret = r"[^&=\s]*(?:auth|cred|key|pass|pwd|secret|sig|token)[^&=\s]*"
    return re.sub(rf"(?i)([?&]{secret}=)[^&#\s]*[^&#\s:,.'\")]", r"\1***", text)


def one_line(text: str, limit: int = 300) -> str:
    """Make text that comes from a file fit to be shown: printable, and not longer than a limit."""
    return printable(text[:limit] + ("..." if len(text) > limit else ""))


def reason_of(error: BaseException) -> str:
    """The text of an error, or for an assertion without any, what was asserted and where."""
    if str(error) or not isinstance(error, AssertionError):
        return str(error) or type(error).__name__
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.line} does not hold in {last.name} ({last.filename}:{last.lineno})"


def describe(value: object) -> str:
    """Describe a value of a file without its own ``repr``, whose length has no limit."""
    if isinstance(value, str):
        return repr(one_line(value, 100))
    if isinstance(value, type):
        return value.__qualname__
    return f"a {type(value).__name__}"


class DataError(RuntimeError):
    """Something is wrong with a data set; the message names the file or folder."""
