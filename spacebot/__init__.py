"""Spacebot: an AI agent for teams and communities that talks, thinks, works and remembers at the same time.

Map of the program, floor by floor (imports go downwards only, `ARCHITECTURE.md` has the whole picture):

    cli                       words typed by a person
    app                       composition root
    api                       HTTP face
    agent                     the processes: channel, branch, worker
    tools                     what a model may do
    conversations llm memory messaging    independent of each other
    config storage            independent of each other
    base                      vocabulary
"""

__version__ = "0.1.0"
