"""Parameters filled into texts and variables: `{name}` in commands and paths, ECLOUD_PARAM_NAME in the environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

PARAMETERS = "ECLOUD_PARAMETERS"
"""Variable that holds all parameters of a task as one JSON object."""
_NOT_IN_VARIABLES = re.compile(r"[^A-Za-z0-9_]")


def variable_of(name: str) -> str:
    """Return the variable that holds a parameter: `lr` is in ECLOUD_PARAM_LR."""
    return "ECLOUD_PARAM_" + _NOT_IN_VARIABLES.sub("_", name).upper()


def filled(text: str, values: Mapping[str, str], quote: Callable[[str], str] = str) -> str:
    """Replace `{name}` by the value of each parameter. `${name}` and other braces stay."""
    if "{" not in text:
        return text
    return re.sub(
        r"(?<!\$)\{([^{}\s]+)\}", lambda found: quote(values[found[1]]) if found[1] in values else found[0], text
    )
