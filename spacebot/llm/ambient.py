"""Headers that a vendor's SDK takes from the environment, kept from hosts that are not the vendor's.

They are meant for one gateway and may hold its credentials; the SDKs send them to every base URL.

Flow:   without_ambient -> default_headers of an SDK client
Floor:  llm
"""

import os
from typing import Any


def without_ambient(variable: str, omit: object) -> dict[str, Any]:
    """Headers that undo those of an environment variable: one `name: value` per line, as the SDKs read it.

    What is to be sent under one of these names has to be laid over them.

    Args:
        omit: the SDK's word for "send no such header".
    """
    lines = os.environ.get(variable, "").split("\n")
    names = [line.partition(":")[0].strip() for line in lines if ":" in line]
    return dict.fromkeys(names, omit)
