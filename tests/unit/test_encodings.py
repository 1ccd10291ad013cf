"""Files are UTF-8 whatever the locale says: nothing in the package opens a text file without saying so."""

import ast
from pathlib import Path

import fedpft

TEXT = {"read_text": 0, "write_text": 1}
"""Method -> place of its argument `encoding`."""

NO_TEXT = ("os.open", "Image.open", "self._opener.open", "secure.open", "source.open", "self.task.open", "train.open")
"""Calls of that name that open no text file."""


def opens_by_locale(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name in TEXT and isinstance(call.func, ast.Attribute):
        return len(call.args) <= TEXT[name]
    if name != "open" or ast.unparse(call.func) in NO_TEXT:
        return False
    words = [one.value for one in (*call.args, *(k.value for k in call.keywords)) if isinstance(one, ast.Constant)]
    return not any(isinstance(word, str) and "b" in word for word in words)


def test_every_text_file_is_opened_as_utf_8():
    root = Path(fedpft.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_by_locale(node)
    ]
    assert found == []
