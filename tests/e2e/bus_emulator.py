#!/usr/bin/env python3
"""Starts the emulator ministack with one change: whoever calls PutEvents may do so in the name of an AWS service, which only the services themselves may.

ministack refuses that as AWS does, and has no setting for it. So the default of a private parameter is turned; another version may not have it.
"""

import importlib.metadata
import inspect
import sys

from ministack.app import main
from ministack.services import eventbridge

put_events = getattr(eventbridge, "_put_events", None)
parameters = list(inspect.signature(put_events).parameters) if callable(put_events) else None
if parameters != ["data", "allow_aws_source"] or put_events.__defaults__ != (False,):
    version = importlib.metadata.version("ministack")
    sys.exit(f"ministack {version} has no eventbridge._put_events(data, allow_aws_source=False) any more: {parameters}; see tests/e2e/requirements.txt for the version that has")
put_events.__defaults__ = (True,)
main()
