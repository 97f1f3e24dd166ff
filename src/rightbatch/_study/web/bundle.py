"""The page's modules as one script, for a report: a page from a file cannot import modules.

Each module becomes a function that returns its exports. Only the forms that the page's modules use
are supported, and every other is an error: `import { a, b } from './other.js'` at the beginning of
a line, and `export` before a `const`, a `function` or a `class`. Data URLs in an import map would
not do: relative imports cannot be resolved against a data URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_IMPORT = re.compile(r"^import \{([\w\s,]*)\} from '\./([\w-]+\.js)'$", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:const|(?:async )?function|class) (\w+))", re.MULTILINE)
_OTHER = re.compile(
    r"^(?:import|export)\b.*|\bimport\s*\(.*|</script", re.MULTILINE | re.IGNORECASE
)


def bundle(modules: Mapping[str, str], start: str) -> str:
    """Build a script that does the same as importing the module `start`.

    Args:
        modules: the modules' texts by name.
        start: the name of the module that is imported.

    Raises:
        ValueError: if a module has an unsupported form, is missing, or imports itself.
    """
    done: dict[str, str] = {}
    _add(start, modules, done, ())
    return "\n".join(done.values())


def _add(
    name: str, modules: Mapping[str, str], done: dict[str, str], above: tuple[str, ...]
) -> None:
    if name in done:
        return
    if name in above:
        raise ValueError(f"modules import each other: {' -> '.join((*above, name))}")
    if name not in modules:
        raise ValueError(f"there is no module {name!r}, which {above[-1:] or 'nothing'} imports")
    text = modules[name]
    for _, needed in _IMPORT.findall(text):
        _add(needed, modules, done, (*above, name))
    exported = [match[1] for match in _EXPORT.finditer(text)]
    body = _IMPORT.sub(lambda match: f"const {{{match[1]}}} = {_variable(match[2])};", text)
    body = _EXPORT.sub("", body)
    other = _OTHER.search(body)
    if other:
        raise ValueError(f"{name} has {other[0]!r}, which is not supported")
    result = ", ".join(exported)
    done[name] = f"const {_variable(name)} = (() => {{\n{body}\nreturn {{ {result} }};\n}})();"


def _variable(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name)
