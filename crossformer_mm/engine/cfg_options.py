"""The option ``--cfg-options``: values as they are quoted, and keys that something reads."""

import ast
import inspect
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from crossformer_mm.utils.cli import fail, warn
from crossformer_mm.utils.errors import reason_of

# What mmengine's runner and loops, and this project's tools, read of a config itself.
READ = (
    *inspect.signature(Runner.__init__).parameters,
    *("broadcast_buffers", "compile", "custom_imports", "detect_anomalous_params"),
    *("find_unused_parameters", "model_wrapper_cfg", "sync_bn", "tta_model", "tta_pipeline"),
    *("check_data", "check_loss", "check_weights", "check_work_dir"),
)
# Of get_close_matches, for keys of the config itself and of its entries.
SIMILAR = (0.85, 0.9)
SPACE = "\N{SYMBOL FOR SPACE}"


class _CfgOptions(DictAction):
    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: list[str], *args: object
    ) -> None:
        for value in values:
            if not value.partition("=")[0].strip() or "=" not in value:
                fail(f"--cfg-options takes KEY=VALUE, not {value!r}")
        try:
            super().__call__(parser, namespace, values, *args)
        except (AssertionError, ValueError) as error:
            fail(f"--cfg-options takes KEY=VALUE: {error}")
        except (MemoryError, RecursionError):
            fail("--cfg-options takes KEY=VALUE: too many brackets in a value")

    @staticmethod
    def _parse_iterable(value: str) -> object:
        try:
            return ast.literal_eval(value)
        except (SyntaxError, ValueError):
            # mmengine deletes spaces; those within a word are kept from it.
            kept = re.sub(r"(?<=[^\s,(\[]) +(?=[^\s,)\]])", lambda m: SPACE * len(m[0]), value)
            return _restore_spaces(DictAction._parse_iterable(kept))


def _restore_spaces(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_restore_spaces, value))
    return value.replace(SPACE, " ") if isinstance(value, str) else value


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add the option that overrides config entries."""
    what = "override config entries; data_root=DIR moves all data paths"
    parser.add_argument(
        "--cfg-options", nargs="+", action=_CfgOptions, metavar="KEY=VALUE", help=what
    )


def merge_options(cfg: Config, options: Mapping[str, object]) -> None:
    """Write the options into a config; fail at a key that nothing can read.

    An option whose key only the config's own text reads has no effect any more, which is said.
    """
    for key, value in options.items():
        _check_key(cfg, key)
        try:
            cfg.merge_from_dict({key: value})
        except Exception as error:
            fail(f"--cfg-options {key}: {reason_of(error)}")
        name = key.partition(".")[0]
        if name not in READ:
            places = ", ".join(_places_of(cfg, name)) or "what uses it"
            warn(
                f"--cfg-options {key} has no effect: the config's text has read {name} already, "
                f"and nothing reads it now; set {places}"
            )


def _check_key(cfg: Config, key: str) -> None:
    """Fail where a key leads to nothing, and another one is near."""
    parent, seen = cfg.to_dict(), []
    names = key.split(".")
    for name in names:
        place = ".".join(seen) or "the config"
        if isinstance(parent, (list, tuple)):
            if not name.isdigit() or int(name) >= len(parent):
                last = len(parent) - 1
                fail(f"--cfg-options {key}: {place} is a list with places 0 to {last}, not {name}")
            parent = parent[int(name)]
        elif not isinstance(parent, Mapping):
            fail(f"--cfg-options {key}: {place} is {parent!r}, which has no entry {name!r}")
        elif name in parent:
            parent = parent[name]
        else:
            known = [*parent, *(() if seen else READ)]
            similar = get_close_matches(name, map(str, known), 1, SIMILAR[bool(seen)])
            near = () if name in known else similar
            if near:
                fail(f"--cfg-options {key}: {place} has no {name!r}; did you mean {near[0]!r}?")
            return
        seen.append(name)


def _places_of(cfg: Config, name: str, limit: int = 3) -> list[str]:
    """Entries below the top that have a variable's name."""
    places = [p for p in _walk(cfg.to_dict(), "") if p.endswith(f".{name}")]
    return places[:limit]


def _walk(value: object, place: str) -> Iterator[str]:
    yield place
    children = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, child in value.items() if isinstance(value, Mapping) else children:
        yield from _walk(child, f"{place}.{key}" if place else str(key))
