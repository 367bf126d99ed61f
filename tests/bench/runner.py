"""Runs a command and writes what it took, as JSON, to standard output.

runner.py LOG COMMAND…

A process of its own, and a small one: what a command is said to have had resident at most cannot be less than what the
process had that started it.
"""

import os
import sys
import time

log, *command = sys.argv[1:]
out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
# Flush the data of earlier programs first, so that this one does not pay for it.
os.sync()
started = time.monotonic()
actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
_, status, usage = os.wait4(process, 0)
wall = time.monotonic() - started
cpu = usage.ru_utime + usage.ru_stime
# Blocks of 512 bytes that became dirty in a file system on a disk.
print(f'[{status}, {wall}, {cpu}, {usage.ru_maxrss / 1024}, {usage.ru_oublock / 2048}]')
