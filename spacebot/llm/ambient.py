"""Headers that a vendor's SDK takes from the environment, kept from hosts that are not the vendor's.

They are meant for one gateway and may hold its credentials; the SDKs send them to every base URL.

Flow:   without_ambient -> default_headers of an SDK client
Floor:  llm
"""

import os
from collections.abc import Mapping
from typing import Any


def without_ambient(variable: str, own: Mapping[str, str], omit: object) -> dict[str, Any]:
    """Headers that undo those of an environment variable: one `name: value` per line, as the SDKs read it.

    Args:
        own: by lower-case name, what the SDK itself would send; put back instead of omitted.
        omit: the SDK's word for "send no such header".
    """
    lines = os.environ.get(variable, "").split("\n")
    names = [line.partition(":")[0].strip() for line in lines if ":" in line]
    return {name: own.get(name.lower(), omit) for name in names}
