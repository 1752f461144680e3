"""`params.yaml` on disk: read as DVC reads it, checked, explained, and changed.

YAML 1.2 by ruamel, the parser that DVC uses, so that `1e-4`, `on` and `010` mean the same to both.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks import files, problems
from tasks.errors import ParamsError, nearest
from tasks.params import NUMBER, UNFIT, Params, key_paths, kind_of

PARAMS_FILE = "params.yaml"
MAX_BYTES = 1_000_000  # a params file is written by hand; more is a mistake or an attack


def load(root: Path) -> Params:
    """Read and check a project's `params.yaml`.

    Raises `ParamsError` with every problem, one a line, each naming its key path.
    """
    path = root / PARAMS_FILE
    if not path.is_file():
        raise ParamsError(
            f"{root} is not a Thawline project: it has no {PARAMS_FILE}; "
            "go to a project folder or make one with: thawline new DIR --data PATH"
        )
    return check(parse(path.read_bytes(), str(path)), str(path))


def check(tree: Any, where: str = PARAMS_FILE) -> Params:
    """Check parsed parameters; `where` names their origin in the error."""
    if not isinstance(tree, dict):
        raise ParamsError(f"{where} must be a mapping of sections, not {type(tree).__name__}")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(found, tree.get("problem", problems.DEFAULT)) for found in error.errors()]
        raise ParamsError(
            f"{where} cannot be used:\n" + "\n".join(f"  {x}" for x in lines)
        ) from None


def parse(data: bytes, where: str = PARAMS_FILE) -> Any:
    """Parse YAML 1.2 safely: no aliases, no duplicate keys, a size limit, UTF-8."""
    if len(data) > MAX_BYTES:
        raise ParamsError(f"{where} is larger than {MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParamsError(f"{where} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    yaml = YAML(typ="safe", pure=True)
    try:
        for token in yaml.scan(io.StringIO(text)):
            if type(token).__name__ == "AliasToken":
                line = token.start_mark.line + 1
                raise ParamsError(f"{where}, line {line}: YAML aliases (*name) are not allowed")
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ParamsError(f"{where}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ParamsError(f"{where}: nested too deeply") from None


def set_values(root: Path, assignments: list[str]) -> Params:
    """Write `key=value` assignments into `params.yaml`, keeping its comments.

    Nothing is written when any assignment, or the whole afterwards, is wrong.
    """
    path = root / PARAMS_FILE
    load(root)
    yaml = YAML()  # round trip: comments and layout stay
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    yaml.representer.add_representer(type(None), _null)
    tree = yaml.load(path.read_text(encoding="utf-8-sig"))
    known = list(key_paths(tree.get("problem", problems.DEFAULT)))
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator:
            raise ParamsError(f"--set {assignment!r} is not key=value, such as train.epochs=8")
        open_ended = any(key.startswith(f"{p}.") for p in ("tune.space", "embed.weights"))
        if key not in known and not open_ended:
            raise ParamsError(f"--set: {key!r} is not a parameter{nearest(key, known)}")
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = parse(text.encode(), f"--set {key}")
        if node[last] in ("", None) and text.strip("'\" ").lower() not in ("", "null", "~"):
            raise ParamsError(  # such as `|`, which begins a text of several lines
                f"--set {key}: {text} alone is nothing in YAML; write it in quotes: "
                f"--set '{key}=\"{text}\"'"
            )
    stream = io.StringIO()
    yaml.dump(tree, stream)
    params = check(parse(stream.getvalue().encode(), str(path)), str(path))
    with files.atomic(path) as temporary:
        temporary.write_text(stream.getvalue(), encoding="utf-8")
    return params


def _null(representer: Any, _: None) -> Any:
    """`null`, as people write it; by itself ruamel leaves nothing."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _explain(error: Any, problem: Any) -> str:
    """One line for one pydantic error in parameters for a problem, naming the key path."""
    path = ".".join(str(part) for part in error["loc"] if part != NUMBER)
    kind, message, value = error["type"], error["msg"], error["input"]
    if kind == "extra_forbidden":
        siblings = _fields_at(error["loc"][:-1], problem)
        last = str(error["loc"][-1])
        elsewhere = [p for p in key_paths(problem) if p.rsplit(".", 1)[-1] == last and p != path]
        hint = nearest(last, siblings) or (f": did you mean {elsewhere[0]!r}?" if elsewhere else "")
        return f"{path}: unknown key{hint}"
    if kind == "missing":
        return f"{path}: is required"
    if kind == UNFIT:
        return f"{path}: {message}"
    message = message.removeprefix("Value error, ")
    if not path:
        return message
    shown = "" if isinstance(value, dict) else f" (it is {value!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path}: must be a finite number{shown}"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _fields_at(loc: tuple[Any, ...], problem: Any) -> list[str]:
    """The names allowed at a place of the schema."""
    model: Any = Params
    for part in loc:
        named = (n for n, f in model.model_fields.items() if part in (n, f.alias))
        name = next(named, None)
        kind = None if name is None else kind_of(model, name, problem)
        if get_origin(kind) is dict:
            return []
        candidates = [kind, *get_args(kind)]
        model = next(
            (k for k in candidates if isinstance(k, type) and issubclass(k, BaseModel)), None
        )
        if model is None:
            return []
    return [f.alias or n for n, f in model.model_fields.items()]
