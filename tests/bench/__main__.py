"""Prints figures: `python -m tests.bench [NAME] [figures or options …]`.

Names: spine, platforms, memory, recall, thresholds, kills, llm, cron, hands, routing, usage, reload, web, api.
"""

import runpy
import sys

from tests.bench import hands, spine

if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["spine"]
    if what == "spine":
        spine.main(rest)
    elif what == "hands":
        hands.main(rest)
    else:
        sys.argv = [f"bench_{what}", *rest]
        runpy.run_module(f"tests.bench.bench_{what}", run_name="__main__")
