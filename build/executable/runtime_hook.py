"""First code of the frozen program: sets the environment right, for libraries and for child processes.

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

# The ONNX runtime otherwise makes a device id under ~/.cache/Microsoft and reports to its maker over the network. It
# reads this when it is imported; its disable_telemetry_events() comes too late. Seen in onnxruntime 1.31.1.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
