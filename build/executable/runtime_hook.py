"""First code of the frozen program: gives child processes the environment that the person had.

The frozen start-up lets the dynamic linker find the bundled libraries through LD_LIBRARY_PATH and keeps the old value
aside. Our own process has read it by now. A shell, browser or git that we start must not load our libraries.
"""

import os

if "LD_LIBRARY_PATH_ORIG" in os.environ:
    os.environ["LD_LIBRARY_PATH"] = os.environ.pop("LD_LIBRARY_PATH_ORIG")
elif "LD_LIBRARY_PATH" in os.environ:
    del os.environ["LD_LIBRARY_PATH"]
for name in [name for name in os.environ if name.startswith("_PYI_")]:
    del os.environ[name]
