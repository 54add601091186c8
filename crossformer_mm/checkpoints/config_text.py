"""The configs that a checkpoint holds as text, which the libraries run as Python."""

import ast
import logging

from mmengine.logging import print_log

# Inferencers and resuming read these.
PLACES = (("meta", "cfg"), ("meta", "config"), ("message_hub", "runtime_info", "cfg"))


def drop_programs(checkpoint: dict, filename: str) -> None:
    """Take the texts of configs that are more than plain data out of a checkpoint.

    What mmengine writes, assignments of values and of ``dict(...)``, stays.
    """
    for place in PLACES:
        *outer, key = place
        holder: object = checkpoint
        for name in outer:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and key in holder and not is_plain(holder[key]):
            del holder[key]
            print_log(
                f"{filename}: the config in {'.'.join(place)} is a program, not plain data; it is "
                "left out",
                logger="current",
                level=logging.WARNING,
            )


def is_plain(text: object) -> bool:
    """Whether a config's text only assigns numbers, strings, and what holds them, to names."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return all(
        isinstance(statement, ast.Assign)
        and all(isinstance(t, ast.Name) and t.id != "_base_" for t in statement.targets)
        and _is_value(statement.value)
        for statement in statements
    )


def _is_value(node: ast.expr | None) -> bool:
    match node:
        case ast.Constant() | ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant()):
            return True
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return all(map(_is_value, parts))
        case ast.Dict(keys=keys, values=values):
            return all(map(_is_value, [*keys, *values]))
        case ast.Call(func=ast.Name(id="dict" | "set"), args=parts, keywords=named):
            return all(map(_is_value, [*parts, *(keyword.value for keyword in named)]))
    return False
