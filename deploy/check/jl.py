"""Stands in for JarvisLabs' `jl` in check/machines.py: the real program, but for the calls that
need an account. What the machine would be told to run goes to the file `exec`."""

import os
import sys
from types import SimpleNamespace

from jarvislabs.cli import app, instance
from jarvislabs.instances import Instances
from jarvislabs.models import Instance

TELL = "import json, os, shlex, sys; json.dump(shlex.split(sys.argv[1]), open(sys.argv[2], 'w'))"
FILE = os.path.join(os.environ["WORLD"], "exec")

Instances.create = lambda self, **_: Instance(machine_id=42, template="vm", status="Running")
# The last word, the remote command, is appended by the caller.
instance._resolve_ssh = lambda machine_id: (
    SimpleNamespace(machine_id=machine_id),
    [sys.executable, "-c", TELL.replace("sys.argv[2]", repr(FILE))],
)
app.main()
