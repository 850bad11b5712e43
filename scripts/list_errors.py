"""Prints every message of an exception or a warning of the package, with its place.

python scripts/list_errors.py [FOLDER ...]
"""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "toedit_collate"
WARNS = {"warn", "warning", "warning_once", "error"}


def text_of(node: ast.expr) -> str:
    """The text of a string, with `{...}` for what is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.FormattedValue):
        node = node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        return text_of(node.left) + text_of(node.right)
    return f"{{{ast.unparse(node)}}}"


def messages(path: Path) -> list[tuple[int, str, str]]:
    """Line, name of the exception or the function that warns, and text, in the file's order."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = node.exc if isinstance(node, ast.Raise) else node
        if isinstance(call, ast.Call) and call.args:
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if isinstance(node, ast.Raise) or name in WARNS:
                found.add((call.lineno, name, text_of(call.args[0])))
    return sorted(found)


def main() -> None:
    for folder in [Path(name) for name in sys.argv[1:]] or [PACKAGE]:
        for path in sorted(folder.rglob("*.py")):
            for line, name, text in messages(path):
                print(f"{path.relative_to(folder)}:{line}: {name}: {text}")


if __name__ == "__main__":
    main()
