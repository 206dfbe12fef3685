"""Options that are mappings: in a YAML as they are, on a command line as JSON."""

import json


def read_mapping(given: dict | str | None) -> dict | str | None:
    """
    An option's value, parsed where it is JSON. A `dict` alone could not be given on the command line: the parser would
    call `dict` on the text. Text that is no JSON is given back, for the option to refuse.
    """
    try:
        return json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError:
        return given
